"""What a run records of its layers, against its model file, its checkpoints and its images."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sessions import start_small, train_small

from medquant.deploy.engines import open_engine
from medquant.deploy.packed import load_model
from medquant.errors import CheckpointError, UsageError
from medquant.evaluate.layer_statistics import BINS, histogram, program_statistics, relative_error
from medquant.quant.program import IntegerProgram
from medquant.report.comparison import group_runs
from medquant.train.checkpoint import load_checkpoint
from medquant.train.finish import checked_images
from medquant.train.layer_record import LAYERS_NAME, layers_of_run
from medquant.train.report_runs import find_runs, read_run
from medquant.train.reporting import SilentReporter
from medquant.train.run_folder import RunFolder
from medquant.train.start import open_session


def _by_name(document: object) -> dict[str, dict[str, object]]:
    return {layer["name"]: layer for layer in document["layers"]}  # type: ignore[index]


@pytest.fixture(scope="module")
def program(finished_run: Path) -> IntegerProgram:
    return load_model(finished_run / "model.mq").program


def test_shares_and_exponents_are_those_of_the_model_file(finished_run: Path, program: IntegerProgram) -> None:
    recorded = _by_name(json.loads((finished_run / LAYERS_NAME).read_text()))
    assert len(program.convolutions) > 5
    for node in program.convolutions:
        row = recorded[node.name]
        ends = (-(2 ** (node.weight_bits - 1)), 2 ** (node.weight_bits - 1) - 1)
        assert row["weight_zero"] == pytest.approx(np.mean(node.weight == 0))
        assert row["weight_saturated"] == pytest.approx(np.mean(np.isin(node.weight, ends)))
        assert row["weight_exponents"] == [node.weight_exponents.min(), node.weight_exponents.max()]
        if node.output is not None:
            assert (row["activation_bits"], row["activation_exponent"]) == (node.output.bits, node.output.exponent)


def test_the_rounding_error_is_that_of_the_file_against_the_latent_weights(finished_run: Path, program: IntegerProgram) -> None:
    recorded = _by_name(json.loads((finished_run / LAYERS_NAME).read_text()))
    tensors = load_checkpoint(finished_run / "best").tensors
    for node in program.convolutions:
        latent = tensors[f"model/weights.{node.name.replace('.', '/')}"].double().numpy()
        axis = 1 if node.geometry.transposed else 0
        shape = [-1 if number == axis else 1 for number in range(latent.ndim)]
        real = node.weight * np.exp2(-node.weight_exponents.reshape(shape).astype(float))
        assert recorded[node.name]["rounding_error"] == pytest.approx(((real - latent) ** 2).sum() / (latent**2).sum())


def test_activations_are_counted_as_the_engine_writes_them(finished_run: Path, program: IntegerProgram) -> None:
    recorded = json.loads((finished_run / LAYERS_NAME).read_text())
    session = open_session(RunFolder.open(finished_run), None, SilentReporter(), lambda: False)
    images = checked_images(session)
    assert recorded["activation_images"] == len(images)
    stored = program.image.output
    assert stored is not None
    integers = np.clip(np.rint(images.astype(np.float64) * 2.0**stored.exponent) + stored.zero_point, 0, stored.highest)
    row = _by_name(recorded)["input"]
    assert row["activation_zero"] == pytest.approx(np.mean(integers == stored.zero_point))
    assert row["activation_saturated"] == pytest.approx(np.mean((integers == 0) | (integers == stored.highest)))
    # The first layer alone, run by the reference engine: what it writes has no negative values.
    first = program.convolutions[0]
    nodes = program.nodes[: program.nodes.index(first) + 1]
    assert first.output is not None
    written = open_engine("reference", IntegerProgram(nodes, (first.output.exponent,))).run(integers.astype(np.uint8))
    row = _by_name(recorded)[first.name]
    assert row["activation_zero"] == pytest.approx(np.mean(written == first.output.zero_point))


def test_histograms_count_every_weight_as_numpy_does() -> None:
    chance = np.random.default_rng(3)
    before, after = chance.normal(size=500), chance.normal(size=500) / 2
    found = histogram(before, after, "float twin")
    limit = max(np.abs(before).max(), np.abs(after).max())
    edges = np.linspace(-limit, limit, BINS + 1)
    assert found["before"] == [
        int(((before >= a) & (before < b)).sum() + (before == limit).sum() * (b == limit)) for a, b in itertools.pairwise(edges)
    ]
    assert sum(found["before"]) == sum(found["after"]) == 500  # type: ignore[arg-type]
    assert histogram(None, None, "")["limit"] == 1.0


def test_the_relative_error_by_hand() -> None:
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx(1 / 10)
    assert relative_error(np.array([1.0]), np.array([0.0])) is None


def test_without_a_record_the_checkpoints_give_the_same_but_the_activations(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "old", ignore=shutil.ignore_patterns(LAYERS_NAME))
    found, missing = layers_of_run(RunFolder.open(tmp_path / "old"))
    assert "activations were not measured" in missing
    recorded = json.loads((finished_run / LAYERS_NAME).read_text())
    for row, known in zip(found["layers"], recorded["layers"], strict=True):
        measured = {"activation_zero", "activation_saturated"}
        assert {key: value for key, value in row.items() if key not in measured} == {
            key: value for key, value in known.items() if key not in measured
        }


def test_without_checkpoints_the_model_file_gives_the_weights(finished_run: Path, tmp_path: Path, program: IntegerProgram) -> None:
    shutil.copytree(finished_run, tmp_path / "old", ignore=shutil.ignore_patterns(LAYERS_NAME, "best", "float", "warm"))
    found, missing = layers_of_run(RunFolder.open(tmp_path / "old"))
    assert "model.mq alone" in missing
    recorded = _by_name(json.loads((finished_run / LAYERS_NAME).read_text()))
    assert len(found["layers"]) == len(program.convolutions)
    for row in found["layers"]:
        known = recorded[row["name"]]
        assert (row["weight_zero"], row["weight_saturated"]) == (known["weight_zero"], known["weight_saturated"])
        assert row["histogram"]["before"] is None
        assert sum(row["histogram"]["after"]) == row["weights"]
    (tmp_path / "old/model.mq").unlink()
    with pytest.raises(CheckpointError, match="checkpoints cannot be read"):
        layers_of_run(RunFolder.open(tmp_path / "old"))


@pytest.mark.slow
def test_a_float_run_records_its_weights(tmp_path: Path) -> None:
    train_small(tmp_path / "f", "quant.wbits=32", "quant.abits=32")
    rows = json.loads((tmp_path / "f" / LAYERS_NAME).read_text())["layers"]
    assert all(row["weight_bits"] == 32 and sum(row["histogram"]["before"]) == row["weights"] for row in rows)


def test_the_exact_reals_of_the_program_fill_its_histograms(program: IntegerProgram) -> None:
    rows = {row["name"]: row for row in program_statistics(program)["layers"]}  # type: ignore[attr-defined]
    node = program.convolutions[0]
    exponents = torch.as_tensor(node.weight_exponents).reshape(-1, *[1] * (node.weight.ndim - 1))
    real = torch.as_tensor(node.weight).double() * torch.exp2(-exponents.double())
    assert rows[node.name]["histogram"]["limit"] == pytest.approx(float(real.abs().max()))


def test_runs_are_found_once_and_unfinished_ones_counted(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "many/runs").mkdir(parents=True)
    (tmp_path / "many/runs/a").symlink_to(finished_run, target_is_directory=True)
    start_small(tmp_path / "many/runs/b")
    found = find_runs([tmp_path / "many", finished_run])
    assert (len(found.folders), found.unfinished) == (1, 1)
    with pytest.raises(UsageError, match="none is finished"):
        find_runs([_only_unfinished(tmp_path)])
    network = read_run(found.folders[0]).evaluation["network"]
    assert network["upsample"] != "auto", "what auto stands for, so that a run that names it is of the same network"


def test_only_seeds_and_folds_are_averaged(finished_run: Path, tmp_path: Path) -> None:
    for name, section, key, value in (
        ("seed", "train", "seed", 5),
        ("long", "train", "epochs", 40),
        ("plain", "data", "augmentation", "none"),
    ):
        shutil.copytree(finished_run, tmp_path / name)
        document = json.loads((tmp_path / name / "run.json").read_text())
        document["config"][section][key] = value
        (tmp_path / name / "run.json").write_text(json.dumps(document))
    runs = find_runs([finished_run, *(tmp_path / name for name in ("seed", "long", "plain"))]).folders
    groups = {group.label: len(group.documents) for group in group_runs([read_run(run).evaluation for run in runs])}
    common = json.loads((finished_run / "run.json").read_text())["config"]
    usual = f"data.augmentation={common['data']['augmentation']}, train.epochs="
    assert groups == {
        f"W4A6 {usual}{common['train']['epochs']}": 2,
        f"W4A6 {usual}40": 1,
        f"W4A6 data.augmentation=none, train.epochs={common['train']['epochs']}": 1,
    }


def _only_unfinished(place: Path) -> Path:
    (place / "none").mkdir()
    shutil.copytree(place / "many/runs/b", place / "none/b")
    return place / "none"
