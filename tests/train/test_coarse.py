"""The coarse stage: a run of its own inside the run, whose network travels in the model file.

Expected: the bits of an uninterrupted run, and the scores of the run itself.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_sessions import after_steps, finish_small, half_written, resume_small, small_phantom, start_small, trained_bits

from medquant.config.schema import Config
from medquant.data.content import array_sha256, volume_sha256
from medquant.data.split import Split, make_split
from medquant.data.volume import Case, Volume
from medquant.deploy.packed import load_model
from medquant.errors import CheckpointError, InterruptedRunError
from medquant.train import coarse as coarse_module
from medquant.train import stage as stage_module
from medquant.train.coarse import ForegroundVolume, coarse_config, foreground_dataset
from medquant.train.reporting import SilentReporter
from medquant.train.rescore import EvalRequest, rescore

COARSE = ("data.region=coarse", "data.region_margin_mm=2", "train.float_twin=false")
EPOCHS, STEPS = 3, 2
"""Of the coarse stage in these tests: with a warm start of 60 %, 2 epochs float and 1 quantized, 6 steps in all."""


@pytest.fixture(autouse=True)
def small_coarse_stage(small_world: pytest.MonkeyPatch) -> None:
    for name, value in (("_PATCH", 32), ("_BATCH", 2), ("_CHANNELS", 2), ("_DEPTH", 3), ("_EPOCHS", EPOCHS), ("_STEPS", STEPS)):
        small_world.setattr(coarse_module, name, value)
    small_world.setattr("medquant.train.finish.draw_pictures", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the run that nobody disturbed lies, once it was made."""
    return {"folder": tmp_path_factory.mktemp("coarse") / "run"}


@pytest.fixture
def run(whole: dict[str, Path]) -> Path:
    """A finished run with a coarse stage; not to be changed."""
    folder = whole["folder"]
    if not folder.exists():
        session = start_small(folder, *COARSE)
        session.run()
        finish_small(session)
    return folder


def _json(path: Path) -> dict[str, object]:
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def _bits(folder: Path) -> dict[str, object]:
    found = {f"coarse/{name}": value for name, value in trained_bits(folder / "coarse").items()}
    models = {name: (folder / name).read_bytes() for name in ("model.mq", "coarse/model.mq")}
    return {**trained_bits(folder), **found, **models}


def test_the_coarse_stage_is_a_finished_run_inside_the_run(run: Path) -> None:
    document = _json(run / "coarse" / "run.json")
    assert document["status"] == "finished"
    assert document["split"] == _json(run / "run.json")["split"]
    records = [json.loads(line) for line in (run / "coarse" / "metrics.jsonl").read_text().splitlines()]
    assert [(record["stage"], record["epoch"]) for record in records] == [("warm", 0), ("warm", 1), ("quantized", 0)]
    assert half_written(run) == []
    # It is watched on the validation part and never sees the test part.
    scored = _json(run / "coarse" / "eval.json")["split"]
    assert isinstance(scored, dict)
    assert scored["part"] == "validation"
    assert set(scored["cases"]) == set(document["split"]["validation"])  # type: ignore[index, call-overload]


def test_the_model_file_holds_both_networks(run: Path) -> None:
    model, alone = load_model(run / "model.mq"), load_model(run / "coarse" / "model.mq")
    assert model.coarse is not None
    assert model.coarse.sha256 == alone.sha256
    assert model.metadata.region == {"kind": "coarse", "margin_mm": 2.0, "minimum": [32, 32]}
    assert dict(model.coarse.metadata.classes) == {0: "background", 1: "foreground"}
    assert model.coarse.metadata.region == {"kind": "whole"}
    assert len(model.coarse.program.output_exponents) == 1
    assert str(run.parent).encode() not in (run / "model.mq").read_bytes()


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_model_file_alone_gives_the_scores_of_the_run(run: Path, tmp_path: Path, part: str) -> None:
    shutil.copy(run / "model.mq", tmp_path / "m.mq")
    alone = rescore(EvalRequest(tmp_path / "m.mq", part=part), SilentReporter())
    whole = rescore(EvalRequest(run, part=part), SilentReporter())
    for key in ("dice", "cases", "metrics", "baseline"):
        assert alone[key] == whole[key], key
    if part == "test":
        stored = _json(run / "eval.json")
        for key in ("dice", "cases", "metrics", "baseline"):
            assert alone[key] == stored[key], key


# Inside the first and at the end of the last stage of the coarse run, which takes 6 steps.
@pytest.mark.parametrize("steps", [1, 6])
def test_stopped_and_resumed_it_ends_with_the_same_bits(run: Path, tmp_path: Path, steps: int) -> None:
    folder = tmp_path / "run"
    session = start_small(folder, *COARSE, stop_requested=after_steps(steps))
    with pytest.raises(InterruptedRunError):
        session.run()
    assert not (folder / "model.mq").exists()
    assert (folder / "warm").exists() is False
    session = resume_small(folder)
    session.run()
    finish_small(session)
    found, expected = _bits(folder), _bits(run)
    assert sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)) == []


def test_a_finished_coarse_stage_is_left_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = {file: file.stat().st_mtime_ns for file in (folder / "coarse").rglob("*")}
    (folder / "model.mq").unlink()
    monkeypatch.setattr(stage_module, "segmentation_loss", None)  # not a step is trained
    session = resume_small(folder)
    session.run()
    finish_small(session)
    assert {file: file.stat().st_mtime_ns for file in (folder / "coarse").rglob("*")} == before
    assert (folder / "model.mq").read_bytes() == (run / "model.mq").read_bytes()


def test_its_parameters_are_counted_and_fit_the_file(run: Path) -> None:
    memory = _json(run / "eval.json")["memory"]
    assert isinstance(memory, dict)
    alone = _json(run / "coarse" / "eval.json")["memory"] if (run / "coarse" / "eval.json").exists() else None
    assert memory["coarse_parameter_bytes"] > 0
    assert alone is None or memory["coarse_parameter_bytes"] == alone["parameter_bytes"]  # type: ignore[index]
    # Two networks, each with room for its header.
    assert memory["parameter_bytes"] < memory["model_file_bytes"] <= 1.01 * memory["parameter_bytes"] + 2 * 16 * 1024


def test_killed_while_its_folder_was_made_it_is_made_again(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    session = start_small(folder, *COARSE, stop_requested=after_steps(1))
    with pytest.raises(InterruptedRunError):
        session.run()
    shutil.rmtree(folder / "coarse")
    (folder / "coarse").mkdir()
    (folder / "coarse" / ".run.json.abc.part").write_text('{"schema"')
    resume_small(folder).run()
    assert (folder / "coarse" / "model.mq").read_bytes() == (run / "coarse" / "model.mq").read_bytes()
    assert half_written(folder) == []


def test_a_coarse_stage_of_other_data_or_settings_is_refused(run: Path, tmp_path: Path) -> None:
    for key, change, words in (
        ("data", {"content_sha256": "0" * 64}, "made with other data"),
        ("config", {"train": {"seed": 5}}, "made with another configuration than the run it belongs to"),
    ):
        folder = tmp_path / key
        shutil.copytree(run, folder)
        document = _json(folder / "coarse" / "run.json")
        section = document[key]
        assert isinstance(section, dict)
        for name, value in change.items():
            section[name] = {**section[name], **value} if isinstance(value, dict) else value
        (folder / "coarse" / "run.json").write_text(json.dumps({**document, "status": "training"}))
        with pytest.raises(CheckpointError, match=words):
            resume_small(folder).run()


def test_a_missing_coarse_network_is_named(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "coarse" / "model.mq").unlink()
    with pytest.raises(CheckpointError, match=r"coarse/model\.mq: found nothing, expected a model file"):
        rescore(EvalRequest(folder), SilentReporter())


# --- its configuration and its data -----------------------------------------------------------------------------------


def _split() -> Split:
    return make_split(small_phantom())


def test_it_is_a_small_network_of_slices_whatever_the_run_trains() -> None:
    wanted = Config.model_validate(
        {
            "data": {"region": "coarse", "spacing_mm": [0.3, 0.3], "patch_size": [128, 128], "fold": 1, "raters": "staple"},
            "model": {"dimensions": 3, "channels": 32, "depth": 4, "dropout": 0.3},
            "quant": {"wbits": 1, "abits": 2, "layer_bits": ["head=8/"]},
            "train": {"epochs": 100, "seed": 7, "twin_from": "elsewhere"},
        }
    )
    found = coarse_config(wanted, small_phantom(), _split(), "axial")
    assert (found.data.region, found.data.raters, found.data.patch_size) == ("whole", "majority", (32, 32))
    # 45 pixels of 1 mm across, on 128.
    assert found.data.spacing_mm == (45 / 128, 45 / 128)
    assert (found.model.name, found.model.dimensions, found.model.channels, found.model.dropout) == ("unet", 2, 2, 0.0)
    assert (found.quant.wbits, found.quant.abits, found.quant.layer_bits) == (8, 8, ())
    assert (found.train.epochs, found.train.float_twin, found.train.twin_from, found.train.seed) == (EPOCHS, False, None, 7)
    assert (found.eval.split, coarse_config(wanted, small_phantom(), replace(_split(), validation=()), "axial").eval.split) == (
        "validation",
        "train",
    )
    # It must survive run.json.
    assert Config.model_validate_json(found.model_dump_json()) == found


def test_its_spacing_shows_the_widest_slice_of_all() -> None:
    # Axes run right, head, front, 40×30×20 voxels of 1, 2 and 4 mm: 40 mm wide, 60 mm high, 80 mm deep. The phantom has 45 mm.
    affine = np.array([[1.0, 0, 0, 0], [0, 0, 4, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    image = Volume(np.zeros((40, 30, 20), np.float32), affine)
    dataset = replace(small_phantom(), cases=(*small_phantom().cases, Case("c", "c", "", image, None, "made")))
    for axis, widest_mm in (("axial", 80), ("coronal", 60), ("sagittal", 80), ("stored", 60)):
        spacing = coarse_config(Config(), dataset, _split(), axis).data.spacing_mm  # type: ignore[arg-type]
        assert spacing == (widest_mm / 128, widest_mm / 128)


def test_all_classes_are_one() -> None:
    dataset = small_phantom()
    found = foreground_dataset(dataset)
    assert dict(found.info.classes) == {0: "background", 1: "foreground"}
    assert [case.id for case in found.cases] == [case.id for case in dataset.cases]
    for case, own in zip(found.cases, dataset.cases, strict=True):
        assert case.mask is not None
        assert own.mask is not None
        np.testing.assert_array_equal(case.mask.array, np.asarray(own.mask.array) > 0)
        assert (case.mask.array.dtype, case.mask.dtype, case.mask.shape) == (np.uint8, np.uint8, own.mask.shape)
        assert case.image is own.image
        assert case.raters == ()
    # The digest follows the masks it is made from, and cannot be that of the run's own data.
    assert found.content_sha256 != dataset.content_sha256
    assert found.content_sha256 == foreground_dataset(small_phantom()).content_sha256
    assert found.content_sha256 != foreground_dataset(small_phantom(1)).content_sha256
    unlabelled = foreground_dataset(replace(dataset, cases=(replace(dataset.cases[0], mask=None),)))
    assert unlabelled.cases[0].mask is None


def test_its_mask_is_not_taken_for_the_one_it_comes_from() -> None:
    # A mask of 0 and 1 alone has the same voxels; the cache must still be right for both.
    mask = Volume(np.array([[[0, 1], [1, 0]]], np.uint8), np.eye(4))
    own = ForegroundVolume(mask)
    np.testing.assert_array_equal(own.array, mask.array)
    assert volume_sha256(own) != volume_sha256(mask) == array_sha256(mask.array)
