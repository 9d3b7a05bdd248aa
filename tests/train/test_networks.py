"""Networks of MONAI from training to their file, and one that stays float in part from training to its scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sessions import start_small, train_small

from medquant.errors import ConfigError


def test_deep_supervision_from_training_to_an_integer_program(tmp_path: Path) -> None:
    finished = train_small(tmp_path / "run", "model.name=dynunet", "model.deep_supervision=true")
    # Both slices of the watched case, three outputs, 45 × 45 padded to multiples of 4.
    assert finished.document["agreement"] == {"checked": 2 * 3 * 48 * 48, "differing": 0}
    assert finished.document["network"]["deep_supervision"] is True
    assert (tmp_path / "run" / "model.mq").is_file()


def test_a_network_that_stays_float_in_part_is_scored_without_a_file(tmp_path: Path) -> None:
    finished = train_small(tmp_path / "run", "model.name=attention_unet")
    assert finished.document["agreement"] is None
    assert not (tmp_path / "run" / "model.mq").exists()
    rows = {row["name"]: row for row in finished.document["memory"]["layers"]}
    assert sum(row["activation_bits"] == 32 for row in rows.values()) == 2 * 3  # sigmoid, multiplication and join of each gate
    assert finished.document["float_twin"] is not None


def test_an_option_the_network_does_not_have_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"basic_unet has model\.depth 5, found 3"):
        start_small(tmp_path / "run", "model.name=basic_unet")
