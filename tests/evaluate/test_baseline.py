"""Trivial predictions: closed form 2n / (V + n), the same prediction scored in full, and the real EM truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from medquant.errors import InputError
from medquant.evaluate.baseline import baseline
from medquant.evaluate.dice import dice

EM = {0: "membrane", 1: "cell"}


def test_by_hand() -> None:
    # 4 voxels with 3 and 1 of the class: 2·3/(4+3) and 2·1/(4+1) for cell; membrane 2·1/(4+1) and 2·3/(4+3)
    truths = [np.array([1, 1, 1, 0]), np.array([[0, 0], [0, 1]])]
    result = baseline(truths, EM)
    assert list(result) == ["all_membrane", "all_cell"]
    assert result["all_cell"] == {"membrane": 0.0, "cell": pytest.approx((6 / 7 + 2 / 5) / 2)}
    assert result["all_membrane"] == {"membrane": pytest.approx((2 / 5 + 6 / 7) / 2), "cell": 0.0}


def test_equals_scoring_constant_masks() -> None:
    rng = np.random.default_rng(0)
    classes = {0: "background", 1: "gray", 5: "white"}
    truths = [rng.choice([0, 1, 5], size=(6, 5, 3)) for _ in range(4)]
    result = baseline(iter(truths), classes)
    for number, called in classes.items():
        for name in classes.values():
            expected = np.mean([dice(np.full_like(truth, number), truth, classes)[name] for truth in truths])
            assert result[f"all_{called}"][name] == pytest.approx(expected)


def test_cases_without_the_class_follow_the_empty_rule() -> None:
    # case 2 has no cell: calling all of it cell scores 0, calling none of it cell leaves nothing to score
    result = baseline([np.array([1, 0]), np.array([0, 0])], EM)
    assert result["all_cell"]["cell"] == pytest.approx((2 / 3 + 0.0) / 2)
    assert result["all_membrane"]["cell"] == 0.0
    assert math.isnan(baseline([np.array([0, 0])], EM)["all_membrane"]["cell"])


def test_calling_all_a_class_calls_all_its_regions() -> None:
    # 5 voxels: 1 gray, 2 white, so 3 of the cord: 2·3 / (5 + 3) whichever of the two all is called, 0 for background
    classes = {0: "background", 1: "gray", 2: "white"}
    truths = [np.array([0, 1, 2, 2, 0])]
    result = baseline(truths, classes, {"cord": (1, 2)})
    assert [result[f"all_{name}"]["cord"] for name in classes.values()] == [0.0, pytest.approx(6 / 8), pytest.approx(6 / 8)]
    plain = baseline(truths, classes)
    assert {row: {name: value for name, value in scores.items() if name != "cord"} for row, scores in result.items()} == plain
    with pytest.raises(InputError, match="'cord' joins"):
        baseline([], classes, {"cord": (1, 9)})


def test_a_strange_label_is_refused() -> None:
    with pytest.raises(InputError, match="class 7"):
        baseline([np.array([7])], EM)


def test_all_cell_on_the_real_em_truth(shared_data: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    labels = tifffile.imread(shared_data / "isbi_em" / "train-labels.tif")
    share = (labels == 255).mean(axis=(1, 2))
    result = baseline([(one == 255).astype(np.uint8) for one in labels], EM)
    # Dice of all-cell is 2f / (1 + f) for a share f of cell, slice by slice
    assert result["all_cell"]["cell"] == pytest.approx(float((2 * share / (1 + share)).mean()))
    assert result["all_cell"]["cell"] == pytest.approx(0.876, abs=5e-4)
