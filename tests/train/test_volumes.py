"""A network that takes volumes is trained, made an integer program, scored in blocks and scored again from its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_sessions import start_small, train_small

from medquant.deploy.packed import load_model
from medquant.errors import ConfigError
from medquant.train.reporting import SilentReporter
from medquant.train.rescore import EvalRequest, rescore

VOLUMES = ("model.dimensions=3", "data.patch_slices=4")


def test_a_volume_network_from_training_to_its_file(tmp_path: Path) -> None:
    finished = train_small(tmp_path / "run", *VOLUMES)
    # Three outputs for each voxel of the watched case, 45 × 45 × 2 padded to multiples of 4.
    assert finished.document["agreement"] == {"checked": 3 * 48 * 48 * 4, "differing": 0}
    assert load_model(tmp_path / "run" / "model.mq").program.dimensions == 3
    again = rescore(EvalRequest(tmp_path / "run" / "model.mq", engine="reference"), SilentReporter())
    assert again["cases"] == finished.document["cases"]
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["network"]["dimensions"] == 3


def test_patches_must_halve_evenly_along_the_slices_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patch_slices must be a multiple of 4"):
        start_small(tmp_path / "run", "model.dimensions=3", "data.patch_slices=6")
