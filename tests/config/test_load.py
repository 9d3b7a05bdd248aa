"""Layers of a configuration, and how mistakes are reported. Places are counted by hand in the texts below."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medquant.config import Config, dump_config, load_config
from medquant.config.document import parse_document
from medquant.config.schema import DataConfig, QuantConfig, TrainConfig
from medquant.config.sources import MAX_FILE_BYTES
from medquant.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def mistakes(file: Path | None = None, *overrides: str, **layers: dict[str, object]) -> list[str]:
    """Lines of the error, the file's folder left out, the headline of several checked and left out."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, layers.get("recipe", {}), overrides, layers.get("options", {}))
    text = str(caught.value) if file is None else str(caught.value).replace(f"{file.parent}{os.sep}", "")
    first, *rest = text.split("\n  ")
    if not rest:
        return [first]
    assert first == f"{len(rest)} mistakes in the configuration:"
    return rest


def test_nothing_given_is_the_default() -> None:
    assert load_config() == load_config(None, {}, (), {}) == Config()


def test_later_layers_win(file: Path) -> None:
    file.write_text("train: {epochs: 3, lr: 3e-3}\nmodel:\n  channels: 30\n  depth: 3\n")
    recipe: dict[str, object] = {"train.epochs": 2, "train.lr": 0.002, "model.channels": 20, "model.depth": 2, "data.batch_size": 2}
    config = load_config(file, recipe, ["train.lr=4e-3", "model.channels=40"], {"model.channels": 50})
    assert config.data.batch_size == 2  # recipe
    assert (config.train.epochs, config.model.depth) == (3, 3)  # file
    assert config.train.lr == 0.004  # -o
    assert config.model.channels == 50  # named option
    assert config.data.workers is None  # default


def test_the_last_of_two_overrides_counts_and_an_option_not_given_changes_nothing() -> None:
    config = load_config(None, {}, ["quant.wbits=2", "quant.wbits=3"], {"quant.wbits": None, "quant.abits": 5})
    assert (config.quant.wbits, config.quant.abits) == (3, 5)


def test_lists_are_replaced_as_a_whole(file: Path) -> None:
    file.write_text("quant:\n  layer_bits: ['head=32/32', 'enc*=2/']\n")
    assert load_config(file).quant.layer_bits == ("head=32/32", "enc*=2/")
    assert load_config(file, options={"quant.layer_bits": ["dec*=8/"]}).quant.layer_bits == ("dec*=8/",)


def test_yaml_traps(file: Path) -> None:
    file.write_text("data:\n  path: no\n  dataset: 1e-4x\n  batch_size: 010\ntrain:\n  lr: 1e-4\n  weight_decay: 0\neval:\nquant: {}\n")
    config = load_config(file)
    assert config.data.path == "no"
    assert config.data.batch_size == 10
    assert config.train.lr == 0.0001
    assert config.train.weight_decay == 0.0


@pytest.mark.parametrize(
    ("override", "value"),
    [("data.path=", None), ("data.path=~", None), ("data.path=no", "no"), ("data.path='010'", "010"), ("data.path=a=b", "a=b")],
)
def test_overrides_are_yaml(override: str, value: object) -> None:
    assert load_config(None, {}, [override]).data.path == value


def test_overrides_take_lists() -> None:
    config = load_config(None, {}, ["data.patch_size=[64, 128]", "quant.layer_bits=['*=4/', 'head=8/8']"])
    assert config.data.patch_size == (64, 128)
    assert config.quant.layer_bits == ("*=4/", "head=8/8")


def test_a_path_may_be_a_path_object(tmp_path: Path) -> None:
    assert load_config(options={"data.path": tmp_path}).data.path == str(tmp_path)


def test_all_mistakes_are_reported_together_each_with_its_place(file: Path) -> None:
    file.write_text("quant:\n  wbits: 12\n  abits: six\ntrian:\n  lr: 1\ntrain:\n  lr: 1\n  lr: 2\n")
    lines = mistakes(file, "train.epochs=0", "lr=1", recipe={"model.chanels": 3}, options={"quant.wbits": 9})
    assert sorted(lines) == sorted(
        [
            "dataset recipe: unknown key 'model.chanels'; did you mean 'model.channels'?",
            "run.yaml:2:3: wbits must be 1 to 8, or 32 for float; found 12",
            "run.yaml:3:3: quant.abits must be a whole number; found 'six'",
            "run.yaml:4:1: unknown key 'trian' (did you mean 'train'?); known: card, data, eval, model, quant, schema_version, train",
            "run.yaml:8:3: train.lr is given twice; keep one",
            "-o train.epochs=0: train.epochs must be at least 1; found 0",
            "-o lr=1: unknown key 'lr'; did you mean 'train.lr'?",
            "--wbits: wbits must be 1 to 8, or 32 for float; found 9",
        ]
    )


def test_a_mistake_that_a_later_layer_hides_is_still_reported(file: Path) -> None:
    file.write_text("quant: {wbits: 12}\n")
    assert mistakes(file, "quant.wbits=4") == ["run.yaml:1:9: wbits must be 1 to 8, or 32 for float; found 12"]


def test_keys_that_only_fit_together_may_come_from_different_layers(file: Path) -> None:
    # 24 is no multiple of 32, which depth 6 needs; the file alone would be wrong
    file.write_text("data: {patch_size: [24, 24]}\n")
    assert load_config(file, {"model.depth": 6}, ["model.depth=4"]).model.depth == 4
    assert mistakes(file, "model.depth=6") == ["data.patch_size must hold multiples of 32 for model.depth 6; found [24, 24]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: 7\n", "run.yaml:1:1: data must hold keys (path, dataset, "),
        ("- data\n", "run.yaml: expected sections (data, model, quant, train, eval, card); found ['data']"),
        ("just text\n", "run.yaml: expected sections"),
        ("a: 1\n", "run.yaml:1:1: unknown key 'a'"),
        ("wbits: 4\n", "run.yaml:1:1: unknown key 'wbits'; did you mean 'quant.wbits'?"),
        ("quant.wbits: 4\n", "run.yaml:1:1: write 'quant.wbits' as 'wbits' below 'quant:'"),
        ("train:\n  wbits: 4\n", "run.yaml:2:3: unknown key 'train.wbits'; did you mean 'quant.wbits'?"),
        ("eval:\n  qqqqqq: 4\n", "run.yaml:2:3: unknown key 'eval.qqqqqq'; eval has split, engine"),
        ("train:\n  lr: {a: 1}\n", "run.yaml:2:3: train.lr must be a number; found a mapping"),
        ("train:\n  device: tpu\n", "run.yaml:2:3: train.device must be 'auto', 'cpu' or 'cuda'; found 'tpu'"),
        ("train:\n  channels_last: no\n", "run.yaml:2:3: train.channels_last must be true or false; found 'no'"),
        ("data:\n  patch_size: [16]\n", "run.yaml:2:3: data.patch_size[1] is missing"),
        ("data:\n  patch_size: [16, x]\n", "run.yaml:2:3: data.patch_size[1] must be a whole number; found 'x'"),
        ("data:\n  patch_size: 16\n", "run.yaml:2:3: data.patch_size must be a list; found 16"),
        ("quant:\n  layer_bits: ['dec*=4']\n", "run.yaml:2:3: bit rule 'dec*=4' has no '/'"),
        ("schema_version: 2\n", "run.yaml:1:1: schema_version must be 1; found 2"),
        ("data:\n  path: !!python/name:os.system ''\n", "run.yaml:2:9: tags (!) are not read"),
        ("data: &d\n  path: x\n", "run.yaml:1:7: anchors and aliases"),
        ("data: [1\n", "run.yaml:2:1: not valid YAML"),
        ("data:\n  _target_: os.system\n", "run.yaml:2:3: unknown key 'data._target_'"),
    ],
)
def test_mistakes_in_files(file: Path, text: str, expected: str) -> None:
    file.write_text(text)
    (line,) = mistakes(file)
    assert line.startswith(expected)


@pytest.mark.parametrize("text", ["$import os", "${oc.env:HOME}", "$(touch x)", "`id`x", "__import__('os')"])
def test_text_that_other_tools_run_is_text(file: Path, text: str) -> None:
    file.write_text(f'data:\n  path: "{text}"\n')
    assert load_config(file).data.path == text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr", "-o train.lr: expected key=value, for example -o train.lr=1e-3"),
        ("=3", "-o =3: unknown key ''"),
        ("train=3", "-o train=3: train is a section, not a value"),
        ("train.lr=", "-o train.lr=: train.lr must be a number; found None"),
        ("train.lr=.nan", "-o train.lr=.nan: train.lr must be a finite number; found nan"),
        ("train.lr={a: 1}", "-o train.lr={a: 1}: the value must be one value or a list in brackets"),
        ("data.patch_size=[16", "-o data.patch_size=[16: not valid YAML"),
        ("data.path=*x", "-o data.path=*x: anchors and aliases"),
        ("trian.lr=1", "-o trian.lr=1: unknown key 'trian.lr'; did you mean 'train.lr'?"),
    ],
)
def test_mistakes_in_overrides(override: str, expected: str) -> None:
    (line,) = mistakes(None, override)
    assert line.startswith(expected)


def test_options_are_named_as_they_are_typed() -> None:
    lines = mistakes(options={"data.path": 3, "quant.layer_bits": ["x"], "model.name": ""})
    assert sorted(line.split(":")[0] for line in lines) == ["--data", "--layer-bits", "--model"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "none.yaml") == ["none.yaml: cannot be read: No such file or directory; expected a YAML file"]
    assert mistakes(tmp_path)[0].endswith(": not a file; expected a YAML file")
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    assert mistakes(fifo) == ["fifo.yaml: not a file; expected a YAML file"]


def test_bytes_that_are_no_text_are_placed(file: Path) -> None:
    file.write_bytes(b"data:\n  path: \xff\n")
    assert mistakes(file) == ["run.yaml:2:9: not UTF-8 text; save the file as UTF-8"]


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbftrain: {epochs: 7}\n")
    assert load_config(file).train.epochs == 7


def test_large_files_are_refused_before_they_are_parsed(file: Path) -> None:
    file.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert mistakes(file) == ["run.yaml: larger than 64 KiB; a configuration is a few lines"]
    file.write_bytes(b"#" * MAX_FILE_BYTES)
    assert load_config(file) == Config()


def test_every_key_can_be_overridden_with_its_default() -> None:
    written = parse_document(dump_config(Config()))
    overrides = []
    for name, section in Config().model_dump(mode="json").items():
        if isinstance(section, dict):
            overrides += [f"{name}.{key}={'~' if value is None else value}" for key, value in section.items()]
    assert len(overrides) > 35
    assert written is not None
    assert load_config(None, {}, [text.replace("True", "true") for text in overrides]) == Config()


CONFIGS = st.builds(
    Config,
    data=st.builds(
        DataConfig,
        path=st.none() | st.text(min_size=1),
        patch_size=st.tuples(*[st.integers(2, 128).map(lambda eighth: 8 * eighth)] * 2),
        augmentation=st.sampled_from(get_args(DataConfig.model_fields["augmentation"].annotation)),
    ),
    quant=st.builds(
        QuantConfig,
        wbits=st.sampled_from([1, 8, 32]),
        layer_bits=st.lists(st.text(min_size=1).filter(str.strip).map(lambda name: f"{name}=4/"), max_size=3).map(tuple),
    ),
    train=st.builds(TrainConfig, lr=st.floats(0, 10, exclude_min=True), channels_last=st.booleans(), threads=st.none() | st.integers(1, 9)),
)


@given(CONFIGS)
def test_yaml_and_json_round_trip(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    file = tmp_path_factory.mktemp("round") / "run.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("text", ["no", "1e-4", "010", "~", "null", " x ", "a: b", "# x", "Übung/𝛼", "\x00\x7f\x85\u2028\ufeff", "'\"\\"])
def test_awkward_text_survives(file: Path, text: str) -> None:
    config = Config(data=DataConfig(path=text))
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config
