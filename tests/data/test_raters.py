"""Several raters, one mask. Expected: votes counted by hand, probabilities known by design, SimpleITK's STAPLE filters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.data.raters import majority, staple
from medquant.data.volume import LabelArray
from medquant.errors import InputError


def _line(*values: int) -> LabelArray:
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1)


def _simulated(
    performance: NDArray[np.float64], shares: list[float], shape: tuple[int, int, int], seed: int
) -> tuple[LabelArray, list[LabelArray]]:
    """Truth and raters drawn from known probabilities ``performance[r, said, true]``; the corners disagree, so the box is the array."""
    random = np.random.default_rng(seed)
    truth = random.choice(len(shares), size=shape, p=shares).astype(np.uint8)
    raters = []
    for table in performance:
        drawn = random.random(shape)
        raters.append((drawn[..., None] > np.cumsum(table, axis=0).T[truth][..., :-1]).sum(axis=-1).astype(np.uint8))
    for corner in ((0, 0, 0), (-1, -1, -1)):
        for rater, array in enumerate(raters):
            array[corner] = rater % 2
    return truth, raters


def test_majority_of_every_pattern_of_four_raters() -> None:
    patterns = np.array(list(product(range(3), repeat=4)), dtype=np.uint8)
    masks = [np.ascontiguousarray(patterns[:, rater]).reshape(-1, 1, 1) for rater in range(4)]
    found = majority(masks, 3).ravel()
    for pattern, winner in zip(patterns.tolist(), found.tolist(), strict=True):
        # Counted: the number with most votes; of several such, the smallest.
        assert winner == min(range(3), key=lambda number: (-pattern.count(number), number)), pattern


@pytest.mark.parametrize(
    ("votes", "winner"),
    [((0, 0, 1, 1), 0), ((1, 1, 2, 2), 1), ((0, 2, 2, 1), 2), ((0, 0, 1, 2), 0), ((2, 1), 1), ((2,), 2), ((2, 0, 2), 2)],
)
def test_majority_by_hand(votes: tuple[int, ...], winner: int) -> None:
    assert majority([_line(vote) for vote in votes], 3).item() == winner


def test_raters_who_agree_are_believed() -> None:
    mask = _line(0, 1, 2, 1)
    estimate = staple([mask, mask.copy()], 3)
    np.testing.assert_array_equal(estimate.mask, mask)
    np.testing.assert_array_equal(estimate.performance, np.tile(np.eye(3), (2, 1, 1)))
    np.testing.assert_allclose(estimate.prior, [0.25, 0.5, 0.25])
    assert estimate.rounds == 0


def test_binary_staple_is_that_of_simpleitk() -> None:
    import SimpleITK

    tables = np.array([[[0.95, 0.1], [0.05, 0.9]], [[0.9, 0.2], [0.1, 0.8]], [[0.99, 0.3], [0.01, 0.7]], [[0.85, 0.05], [0.15, 0.95]]])
    truth, raters = _simulated(tables, [0.7, 0.3], (40, 30, 10), seed=1)
    ours = staple(raters, 2)
    filter_ = SimpleITK.STAPLEImageFilter()
    filter_.SetForegroundValue(1)
    theirs = SimpleITK.GetArrayFromImage(filter_.Execute([SimpleITK.GetImageFromArray(rater) for rater in raters]))
    np.testing.assert_allclose(ours.performance[:, 1, 1], filter_.GetSensitivity(), atol=2e-4)
    np.testing.assert_allclose(ours.performance[:, 0, 0], filter_.GetSpecificity(), atol=2e-4)
    np.testing.assert_array_equal(ours.mask, (theirs > 0.5).astype(np.uint8))
    assert (ours.mask == truth).mean() > (majority(raters, 2) == truth).mean()


def test_staple_of_three_classes_is_that_of_simpleitk() -> None:
    import SimpleITK

    sure = [[0.9, 0.05, 0.05], [0.05, 0.85, 0.1], [0.05, 0.1, 0.85]]
    timid = [[0.98, 0.3, 0.2], [0.01, 0.65, 0.05], [0.01, 0.05, 0.75]]
    bold = [[0.8, 0.02, 0.02], [0.15, 0.95, 0.18], [0.05, 0.03, 0.8]]
    tables = np.array([sure, timid, bold, sure])
    truth, raters = _simulated(tables, [0.6, 0.15, 0.25], (40, 40, 20), seed=2)
    ours = staple(raters, 3)
    filter_ = SimpleITK.MultiLabelSTAPLEImageFilter()
    filter_.SetLabelForUndecidedPixels(9)
    filter_.SetTerminationUpdateThreshold(1e-7)
    theirs = SimpleITK.GetArrayFromImage(filter_.Execute([SimpleITK.GetImageFromArray(rater) for rater in raters]))
    np.testing.assert_array_equal(ours.mask, theirs)
    # 32 000 voxels: three standard deviations of a share are at most 0.022 where the rarest class has 4800 of them.
    np.testing.assert_allclose(ours.performance, tables, atol=0.022)
    np.testing.assert_allclose(ours.performance.sum(axis=1), 1.0, atol=1e-9)
    assert (ours.mask == truth).mean() > 0.95


def test_only_the_box_of_disagreement_is_estimated() -> None:
    tables = np.array([[[0.9, 0.2], [0.1, 0.8]]] * 3)
    _, raters = _simulated(tables, [0.6, 0.4], (12, 12, 4), seed=3)
    alone = staple(raters, 2)
    padded = [np.pad(rater, ((50, 3), (7, 20), (1, 2)), constant_values=1) for rater in raters]
    within = staple(padded, 2)
    np.testing.assert_array_equal(within.performance, alone.performance)
    np.testing.assert_array_equal(within.mask[50:62, 7:19, 1:5], alone.mask)
    # Around the box all raters say 1.
    assert (within.mask == 0).sum() == (alone.mask == 0).sum()


def test_a_class_nobody_chose_and_two_raters() -> None:
    estimate = staple([_line(0, 0, 1, 1), _line(0, 1, 1, 1)], 3)
    assert np.isfinite(estimate.performance).all()
    assert estimate.prior[2] == 0
    assert set(np.unique(estimate.mask)) <= {0, 1}


@pytest.mark.parametrize("combine", [majority, staple])
def test_what_is_no_set_of_masks_is_refused(combine) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="found class 3 in a mask, expected 0 to 2"):
        combine([_line(0, 3), _line(0, 1)], 3)
    with pytest.raises(InputError, match=r"found 2 masks of shapes \[\(1, 1, 1\), \(2, 1, 1\)\]"):
        combine([_line(0, 1), _line(0)], 3)
    with pytest.raises(InputError, match="found 0 masks"):
        combine([], 3)
