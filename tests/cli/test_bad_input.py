"""Everything that can be typed or handed over wrongly: an exit code of its own, one or two lines that name it and the way out."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command_line import SMALL_OPTIONS, em_folder, em_stack, typed
from small_sessions import half_written

from medquant.train.checkpoint import load_checkpoint

USAGE, CONFIG, INPUT, CHECKPOINT = 2, 3, 4, 6


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _refused(code: int, words: tuple[str, ...], *arguments: object) -> str:
    """Type it; it must end with this code and these words, without a result and without a word on its inside."""
    result = typed(*arguments)
    said = result.stderr
    assert result.exit_code == code, said
    assert result.stdout == ""
    assert "Traceback" not in said
    assert "internal error" not in said
    complaint = said[said.rindex("medquant: ") :]
    assert len(complaint.splitlines()) <= 2, complaint
    for word in words:
        assert word in complaint, complaint
    return complaint


# --- data ---------------------------------------------------------------------------------------------------------------


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _unknown(folder: Path) -> Path:
    _empty(folder)
    (folder / "Doe^Jane_19700101.dcm").write_bytes(b"x")
    return folder


def _file(folder: Path) -> Path:
    folder.write_text("text")
    return folder


def _without_labels(folder: Path) -> Path:
    (em_folder(folder) / "train-labels.tif").unlink()
    return folder


def _cut(name: str, share: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = em_folder(folder) / name
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        return folder

    return make


def _fewer_labels(folder: Path) -> Path:
    return em_folder(folder, labels=em_stack()[1][:-1])


def _narrower_labels(folder: Path) -> Path:
    return em_folder(folder, labels=em_stack()[1][:, :, :-2])


def _other_values(folder: Path) -> Path:
    labels = em_stack()[1]
    labels[3, 5, 5] = 128
    return em_folder(folder, labels=labels)


def _not_finite(folder: Path) -> Path:
    image = em_stack()[0].astype(np.float32)
    image[2, 3, 4] = np.nan
    return em_folder(folder, image=image)


def _no_tiff(folder: Path) -> Path:
    (em_folder(folder) / "train-volume.tif").write_bytes(b"GIF89a" + bytes(200))
    return folder


def _few_slices(folder: Path) -> Path:
    image, labels = em_stack()
    return em_folder(folder, image=image[:5], labels=labels[:5])


DATA: dict[Callable[[Path], Path], tuple[str, ...]] = {
    lambda folder: folder: ("no such folder", "leave it out to use the built-in phantom"),
    _empty: ("the folder is empty", "give another folder"),
    _unknown: ("no known dataset", "isbi_em", "Give the folder"),
    _file: ("found a file, expected a dataset folder",),
    _without_labels: ("train-labels.tif is missing", "copy the missing file"),
    _cut("train-labels.tif", 0.5): ("train-labels.tif",),
    _cut("train-volume.tif", 0.9): ("train-volume.tif",),
    _fewer_labels: ("train-volume.tif has 8 slices", "train-labels.tif has 7 slices", "one download"),
    _narrower_labels: ("34×34", "32×34", "one download"),
    _other_values: ("train-labels.tif", "128", "expected only 0 and 255", "threshold the labels"),
    _not_finite: ("train-volume.tif",),
    _no_tiff: ("train-volume.tif",),
    _few_slices: ("found 5 slices, expected at least 6",),
}


@pytest.mark.parametrize("make", DATA, ids=lambda make: make.__name__)
def test_bad_data_are_refused(in_an_empty_folder: Path, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "data")
    commands = [["train", "--out", "run", *SMALL_OPTIONS], ["plan"]]
    # A plan needs no split.
    for command in commands[: 1 if make is _few_slices else 2]:
        complaint = _refused(INPUT, (str(folder), *DATA[make]), *command, "--data", folder)
        assert "Doe" not in complaint
    assert list(in_an_empty_folder.iterdir()) == []


# --- options ------------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[list[str], int, tuple[str, ...]]] = [
    (["--wbits", "12"], CONFIG, ("wbits must be 1 to 8, or 32 for float; found 12",)),
    (["--wbits", "0"], CONFIG, ("wbits must be 1 to 8, or 32 for float; found 0",)),
    (["--abits", "-1"], CONFIG, ("abits must be 1 to 8, or 32 for float; found -1",)),
    (["--layer-bits", "dec9*=8/"], USAGE, ("'dec9*=8/' matches no layer", "near: 'dec")),
    (["--layer-bits", "xyz=8/"], USAGE, ("'xyz=8/' matches no layer", "`medquant plan` prints all")),
    (["--layer-bits", "dec1"], CONFIG, ("'dec1' has no '='", "expected PATTERN=W/A")),
    (["--layer-bits", "dec1*=8"], CONFIG, ("has no '/'", "expected PATTERN=W/A")),
    (["--layer-bits", "=8/8"], CONFIG, ("names no layer", "expected PATTERN=W/A")),
    (["--layer-bits", "dec1*=/"], CONFIG, ("no bits on either side",)),
    (["--layer-bits", "dec1*=9/"], CONFIG, ("weight bits must be 1 to 8, or 32 for float; found '9'",)),
    (["--layer-bits", "dec1*=x/"], CONFIG, ("found 'x'",)),
    (["--method", "fixed_pont"], CONFIG, ("unknown quantization method 'fixed_pont'", "did you mean 'fixed_point'", "known:")),
    (["-o", "model.name=u_net"], CONFIG, ("unknown network 'u_net'", "did you mean 'unet'")),
    (["-o", "eval.engine=torhc"], USAGE, ("unknown engine 'torhc'", "did you mean 'torch'?", "reference")),
    (["-o", "data.dataset=isbi"], USAGE, ("unknown dataset 'isbi'", "isbi_em")),
    (["-o", "data.dataset=isbi_em"], USAGE, ("needs its folder",)),
    (["-o", "model.chanels=4"], CONFIG, ("unknown key 'model.chanels'", "did you mean 'model.channels'?")),
    (["-o", "channels=4"], CONFIG, ("unknown key 'channels'", "did you mean 'model.channels'?")),
    (["-o", "modle.channels=4"], CONFIG, ("modle",)),
    (["-o", "model.channels"], CONFIG, ("model.channels",)),
    (["-o", "model.channels=many"], CONFIG, ("model.channels must be a whole number", "'many'")),
    (["-o", "train.lr=-1"], CONFIG, ("train.lr must be above 0", "-1")),
    (["-o", "data.patch_size=[30,32]"], CONFIG, ("patch_size must hold multiples of 8", "30")),
    (["-o", "train.warm_fraction=1.0"], CONFIG, ("train.warm_fraction", "lower it")),
    (["-o", "train.twin_from=nowhere"], CHECKPOINT, ("nowhere: no run folder", "run.json")),
    (["--device", "tpu"], CONFIG, ("train.device must be", "'tpu'", "'cpu'")),
    (["--seed", "-1"], CONFIG, ("train.seed must be at least 0", "-1")),
    (["--epochs", "0"], CONFIG, ("train.epochs must be at least 1", "0")),
    (["--config", "nowhere.yaml"], CONFIG, ("nowhere.yaml",)),
    (["-o", "model.dimensions=4"], CONFIG, ("model.dimensions", "2 or 3")),
    (["-o", "model.dimensions=3", "-o", "data.patch_slices=6"], CONFIG, ("data.patch_slices", "multiple of 4")),
    (["-o", "data.fold=1", "-o", "data.test_site=site1"], CONFIG, ("data.fold", "data.test_site", "leave one out")),
    (["-o", "data.window=[0,1]"], CONFIG, ("data.window", "normalisation range", "zscore_slice")),
    (["-o", "data.test_site=site9"], INPUT, ("test_site", "site9", "site1")),
]


@pytest.mark.parametrize(("options", "code", "words"), OPTIONS, ids=[" ".join(options) for options, _, _ in OPTIONS])
def test_bad_options_are_refused_before_anything_is_written(
    in_an_empty_folder: Path, options: list[str], code: int, words: tuple[str, ...]
) -> None:
    _refused(code, words, "train", "--out", "run", *SMALL_OPTIONS, *options)
    assert list(in_an_empty_folder.iterdir()) == []


def test_all_mistakes_of_a_config_are_named_together_with_their_places(in_an_empty_folder: Path) -> None:
    Path("run.yaml").write_text("model:\n  chanels: 4\nquant:\n  wbits: 12\ntrain:\n  lr: 1e-3\n")
    result = typed("train", "--config", "run.yaml", "--abits", "9", "--out", "run")
    assert result.exit_code == CONFIG
    for words in ("run.yaml:2", "model.channels", "run.yaml:4", "found 12", "abits must be 1 to 8, or 32 for float; found 9"):
        assert words in result.stderr
    assert "train.lr" not in result.stderr  # read as a number, which YAML 1.1 would not
    assert not Path("run").exists()


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _refused(USAGE, ("device cuda", "--device cpu or auto"), "train", "--out", "run", *SMALL_OPTIONS, "--device", "cuda")
    assert not Path("run").exists()


@pytest.mark.parametrize("arguments", [["train", "--nonsense"], ["train", "--wbits", "four"], ["trian"], ["inspect"], ["report"]])
def test_what_cannot_be_parsed_is_a_usage_error(arguments: list[str]) -> None:
    result = typed(*arguments)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert "Usage:" in result.stderr


# --- run folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "file", "below a file"])
def test_an_occupied_out_is_refused(finished_run: Path, kind: str) -> None:
    Path("file").write_text("text")
    place, words = {
        "run": (finished_run, ("exists already", "--resume")),
        "file": (Path("file"), ("file exists already",)),
        "below a file": (Path("file/run"), ("cannot be made", "choose another --out")),
    }[kind]
    _refused(USAGE, words, "train", "--out", place, *SMALL_OPTIONS)
    assert Path("file").read_text() == "text"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--wbits", "2"], "quant.wbits"),
        (["-o", "train.epochs=9"], "train.epochs"),
        (["--seed", "0"], "train.seed"),
        (["--config", "x.yaml"], "--config"),
    ],
)
def test_a_resumed_run_takes_no_other_options(finished_run: Path, options: list[str], named: str) -> None:
    _refused(USAGE, ("--resume continues", str(finished_run), f"leave out {named}"), "train", "--resume", "--out", finished_run, *options)


def _changed(run: Path, **values: object) -> Path:
    """A copy of a run whose run.json says something else."""
    copy = Path("copy")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("pictures"))
    document = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**document, **values}))
    return copy


def test_nothing_to_resume_is_named() -> None:
    _refused(USAGE, ("no run found in runs/", "--out"), "train", "--resume")
    Path("other").mkdir()
    _refused(CHECKPOINT, ("other: no run folder", "run.json is missing"), "train", "--resume", "--out", "other")


def test_a_run_of_other_data_is_not_continued(finished_run: Path, tmp_path: Path) -> None:
    data = json.loads((finished_run / "run.json").read_text())["data"]
    run = _changed(finished_run, data={**data, "content_sha256": "0" * 64})
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for command in (("train", "--resume", "--out", run), ("eval", run)):
        _refused(
            CHECKPOINT, ("copy: this run was made with other data", "digest 000000000000", "give the --data it was made with"), *command
        )
    em = em_folder(tmp_path / "em")
    _refused(CHECKPOINT, ("made with other data", "isbi_em"), "train", "--resume", "--out", finished_run, "--data", em)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1}', '{"schema": 99}', "[1]", '{"schema": 1, "config": {"mood": 1}}'])
def test_a_damaged_run_is_not_continued(text: str) -> None:
    Path("run").mkdir()
    Path("run/run.json").write_text(text)
    for command in (("train", "--resume", "--out", "run"), ("plan", "run"), ("report", "run")):
        _refused(CHECKPOINT, ("run",), *command)


def test_a_damaged_checkpoint_is_not_continued(finished_run: Path) -> None:
    run = _changed(finished_run)
    file = next((run / "last").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    _refused(CHECKPOINT, (file.name, "SHA-256", "restore it or train anew"), "train", "--resume", "--out", run)


def test_what_cannot_be_scored_is_named(finished_run: Path) -> None:
    _refused(USAGE, ("nothing to score", "train first"), "eval")
    Path("notes.txt").write_text("no model " * 30)
    model = bytearray((finished_run / "model.mq").read_bytes())
    model[len(model) // 2] ^= 1
    Path("damaged.mq").write_bytes(model)
    unfinished = _changed(finished_run, status="training")
    (unfinished / "eval.json").unlink()
    _refused(USAGE, ("copy: this run is not finished", "medquant train --resume --out copy"), "eval", unfinished)
    _refused(CHECKPOINT, ("copy: not finished", "eval.json is missing"), "report", unfinished)
    _refused(CHECKPOINT, ("notes.txt: no model file",), "eval", "notes.txt")
    _refused(CHECKPOINT, ("damaged.mq: damaged or incomplete", "SHA-256"), "eval", "damaged.mq")
    _refused(USAGE, ("missing.mq: no such run folder or model file",), "eval", "missing.mq")
    _refused(USAGE, ("--split 'all'", "train, validation, test"), "eval", finished_run, "--split", "all")
    _refused(USAGE, ("unknown engine 'fast'",), "eval", finished_run / "model.mq", "--engine", "fast")
    _refused(INPUT, ("nowhere: no such folder",), "eval", finished_run / "model.mq", "--data", "nowhere")


def test_what_cannot_be_planned_is_named(finished_run: Path) -> None:
    _refused(USAGE, ("has its plan already", "leave out the other options"), "plan", finished_run, "--wbits", "2")
    _refused(CHECKPOINT, ("missing.mq: found nothing, expected a model file",), "plan", "missing.mq")


def test_a_report_needs_a_folder_to_write_to(finished_run: Path) -> None:
    Path("file").write_text("text")
    for out in ("file", "file/below"):
        _refused(USAGE, (out, "choose another --out"), "report", finished_run, "--out", out)
    assert Path("file").read_text() == "text"


def test_what_cannot_be_inspected_is_named() -> None:
    _refused(INPUT, ("nowhere",), "inspect", "nowhere")
    tifffile.imwrite("scan.tif", em_stack()[0])
    Path("scan.tif").write_bytes(Path("scan.tif").read_bytes()[:300])
    result = typed("inspect", "scan.tif")
    assert result.exit_code == INPUT
    assert "scan.tif" in result.stderr
    assert "Traceback" not in result.stderr


# --- the disk -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_a_run_that_can_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    replace, tensors = os.replace, iter(range(1, 100))

    def full(source: object, target: object) -> None:
        if str(target).endswith(".safetensors") and "last" in str(target) and next(tensors) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        words = ("run/last: checkpoint not written", "No space left on device", "free some space and resume", "the previous one is intact")
        _refused(CHECKPOINT, words, "train", "--out", "run", *SMALL_OPTIONS, "-o", "train.float_twin=false")
    assert load_checkpoint(Path("run/last")).values["progress"]["stage"] == "warm"  # type: ignore[index, call-overload]
    assert half_written(Path("run")) == []
    assert not Path("run/model.mq").exists()
    monkeypatch.setattr("medquant.train.finish.draw_pictures", lambda *_: None)
    assert typed("train", "--resume", "--out", "run").exit_code == 0


def test_bits_that_do_not_go_together_are_refused_before_training(in_an_empty_folder: Path) -> None:
    # enc1.conv2 and the up-sampled tensor meet in a concatenation, so one cannot be float and the other six bits wide.
    words = ("enc1.conv2", "meet in a concatenation")
    for command in ("train", "plan"):
        out = ("--out", "run") if command == "train" else ()
        _refused(CONFIG, words, command, *SMALL_OPTIONS, "--layer-bits", "enc1.conv2=/32", *out)
    assert not Path("run").exists()


def test_too_few_values_for_batch_norm_are_refused(in_an_empty_folder: Path) -> None:
    options = ("-o", "model.depth=5", "-o", "data.patch_size=[16,16]", "-o", "data.batch_size=1")
    _refused(CONFIG, ("batch_size", "batch norm"), "train", *options, "--out", "run")
    assert not Path("run").exists()


def test_a_place_that_cannot_be_is_a_usage_error(in_an_empty_folder: Path) -> None:
    _refused(USAGE, ("--out",), "train", *SMALL_OPTIONS, "--out", "x" * 300)
