"""A run and its model file scored again give what the run said; what cannot be scored is refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_sessions import PROCESS_PEAK_BYTES, after_steps, finish_small, small_phantom, start_small

from medquant.data.datasets import phantom
from medquant.data.reading import ReadOptions
from medquant.data.volume import Dataset
from medquant.errors import CheckpointError, InputError, InterruptedRunError, MedquantError, UsageError
from medquant.train import rescore as rescore_module
from medquant.train.reporting import SilentReporter
from medquant.train.rescore import EvalRequest, rescore
from medquant.train.run_folder import RunFolder, newest_run, write_json


def _rescore(target: Path | None = None, **options: object) -> dict[str, object]:
    return rescore(EvalRequest(target, **options), SilentReporter())  # type: ignore[arg-type]


def _stored(run: Path) -> dict[str, object]:
    document = json.loads((run / "eval.json").read_text())
    assert isinstance(document, dict)
    return document


def test_run_and_model_file_are_scored_as_the_run_was(finished_run: Path) -> None:
    stored = _stored(finished_run)
    for target in (finished_run, finished_run / "model.mq"):
        found = _rescore(target)
        for key in ("dice", "cases", "metrics", "baseline", "bits", "engine"):
            assert found[key] == stored[key], key
        for key in ("parameter_bytes", "paper_bytes", "float_bytes", "model_file_bytes", "activation_peak_bytes"):
            assert found["memory"][key] == stored["memory"][key], key  # type: ignore[index]
        assert found["memory"]["process_peak_bytes"] == PROCESS_PEAK_BYTES  # type: ignore[index]
        assert found["split"]["part"] == "test"  # type: ignore[index]
    assert _rescore(finished_run)["float_twin"]["dice"] == stored["float_twin"]["dice"]  # type: ignore[index]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_the_reference_engine_gives_the_same_dice_on_every_part(finished_run: Path, part: str) -> None:
    run, model = (_rescore(finished_run / name, part=part, engine="reference") for name in ("", "model.mq"))
    fast = _rescore(finished_run / "model.mq", part=part, engine="torch")
    assert (run["engine"], model["engine"], fast["engine"]) == ("reference", "reference", "torch")
    assert run["dice"] == model["dice"] == fast["dice"]
    expected = json.loads((finished_run / "run.json").read_text())["split"][part]
    assert [case["id"] for case in model["cases"]] == expected  # type: ignore[attr-defined]


def test_scoring_changes_nothing_in_the_run(finished_run: Path) -> None:
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in finished_run.rglob("*")}
    _rescore(finished_run)
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in finished_run.rglob("*")} == before


def _other_phantom(seed: int = 0) -> Dataset:
    return small_phantom(seed + 1)


def test_a_model_is_scored_on_every_labelled_case_of_other_data(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "make_phantom", _other_phantom)
    found = _rescore(finished_run / "model.mq")
    assert found["split"] == {"part": "all labelled cases", "cases": ["site1-sub01", "site1-sub02", "site1-sub03"]}
    with pytest.raises(CheckpointError, match=r"made with other data.*give the --data it was made with"):
        _rescore(finished_run)


def test_the_raters_of_the_model_are_joined_by_its_own_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By another rule the masks differ, the data look like other data, and training cases would be scored among the rest.
    session = start_small(tmp_path / "run", "data.raters=each", "train.float_twin=false")
    session.run()
    finish_small(session)
    asked: list[object] = []

    def opened(*arguments: object, options: ReadOptions | None = None, **_: object) -> Dataset:
        asked.extend((arguments, None if options is None else options.raters))
        return small_phantom()

    monkeypatch.setattr(rescore_module, "open_dataset", opened)
    found = _rescore(tmp_path / "run" / "model.mq", data=tmp_path / "data")
    assert asked == [(tmp_path / "data",), "each"]
    assert found["split"]["part"] == "test"  # type: ignore[index]


def test_data_of_other_classes_or_without_labels_are_refused(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _other_phantom()
    other = replace(data, info=replace(data.info, classes={0: "background", 1: "liver", 2: "spleen"}, scored=("liver",)))
    unlabelled = replace(data, cases=tuple(replace(case, mask=None) for case in data.cases))
    for found, words in ((other, r"model\.mq: finds .*gray_matter.*the data hold .*spleen"), (unlabelled, "no labelled case")):
        monkeypatch.setattr(rescore_module, "open_dataset", lambda *_, found=found, **__: found)
        with pytest.raises(InputError, match=words):
            _rescore(finished_run / "model.mq")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "holdout"}, "--split 'holdout': expected train, validation, test"),
        ({"engine": "tpu"}, "unknown engine 'tpu'.*known: auto, .*reference, torch"),
    ],
)
def test_unknown_names_are_refused(finished_run: Path, options: dict[str, str], words: str) -> None:
    for target in (finished_run, finished_run / "model.mq"):
        with pytest.raises(UsageError, match=words):
            _rescore(target, **options)


def test_an_unfinished_run_says_how_to_end_it(tmp_path: Path) -> None:
    session = start_small(tmp_path / "run", stop_requested=after_steps(1))
    with pytest.raises(InterruptedRunError):
        session.run()
    with pytest.raises(UsageError, match=f"not finished; end it first with medquant train --resume --out {tmp_path / 'run'}"):
        _rescore(tmp_path / "run")


def test_nothing_and_no_model_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a model, but long enough to be taken for one by its size alone" * 3)
    cases: list[tuple[Path | None, type[MedquantError], str]] = [
        (None, UsageError, "nothing to score: no run below this folder"),
        (Path("missing"), UsageError, "missing: no such run folder or model file"),
        (Path("empty"), CheckpointError, r"empty: no run folder \(run\.json is missing\)"),
        (Path("notes.txt"), CheckpointError, r"notes\.txt: no model file: found b'not "),
    ]
    for target, error, words in cases:
        with pytest.raises(error, match=words):
            _rescore(target)


def test_every_flipped_byte_of_a_model_file_is_caught(finished_run: Path, tmp_path: Path) -> None:
    data = bytearray((finished_run / "model.mq").read_bytes())
    model = tmp_path / "model.mq"
    for position in np.linspace(0, len(data) - 1, 40).astype(int):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        model.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.mq: "):
            _rescore(model)


def test_the_newest_run_is_found(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest_run(Path("runs")) is None
    for name in ("runs/old", "runs/new"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(finished_run / "run.json", tmp_path / name)
    (tmp_path / "runs" / "old" / "run.json").touch()
    os.utime(tmp_path / "runs" / "new" / "run.json", (10, 10))
    assert newest_run(Path("runs")) == Path("runs/old")
    os.utime(tmp_path / "runs" / "old" / "run.json", (5, 5))
    assert newest_run(Path("runs")) == Path("runs/new")


DAMAGES = {
    "": "not readable as a run",
    "[]": "not readable as a run",
    "{}": "not readable as a run",
    '{"schema": "new"}': "not readable as a run",
    '{"schema": 2}': r"schema 2, this medquant reads up to 1; upgrade",
}


@pytest.mark.parametrize("text", DAMAGES)
def test_a_damaged_run_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"run\.json: {DAMAGES[text]}"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("config", None, "its configuration cannot be read"),
        ("config", {"train": {"epochs": "three", "mood": 1}}, "its configuration cannot be read .*train.epochs"),
        ("split", None, "holds no split"),
        ("split", {"train": ["a"]}, r"run\.json: .*stored split has the keys"),
        ("data", None, "made with other data"),
        ("data", {"content_sha256": "0" * 64, "path": None}, "made with other data.*give the --data it was made with"),
    ],
)
def test_a_damaged_part_of_run_json_is_named(finished_run: Path, tmp_path: Path, key: str, value: object, words: str) -> None:
    document = json.loads((finished_run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**document, key: value}))
    with pytest.raises(CheckpointError, match=words) as refused:
        _rescore(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize("text", ["", "[]", '{"dice": {}}'])
def test_a_damaged_evaluation_is_refused(finished_run: Path, tmp_path: Path, text: str) -> None:
    shutil.copy(finished_run / "run.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"not finished \(eval\.json is missing\)"):
        _ = RunFolder.open(tmp_path).evaluation
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"eval\.json: not .*write it again with medquant train --resume"):
        _ = RunFolder.open(tmp_path).evaluation


def test_a_figure_json_does_not_know_is_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "eval.json", {"dice": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "eval.json", {"dice": float("nan")})
    assert json.loads((tmp_path / "eval.json").read_text()) == {"dice": 0.5}
    assert len(list(tmp_path.iterdir())) == 1
