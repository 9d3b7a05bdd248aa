"""The gray matter challenge's scores: counts by hand, lines whose distance is known, scikit-learn-free sums, the real masks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from medquant.errors import GeometryError, InputError
from medquant.evaluate.dice import Overlap
from medquant.evaluate.gm_challenge import GM_CHALLENGE_SCORES, conformity, gm_challenge_scores, skeleton_distances, specificity
from medquant.evaluate.surface_distances import surface_distances

SPACINGS = ((1.0, 1.0, 1.0), (0.5, 0.5, 5.0), (0.5, 0.5, 7.5), (0.3125, 0.65, 2.5), (0.1, 0.7, 0.3))
DISTANCES = ("msd", "hd", "shd", "smd")


def lines(shape: tuple[int, int, int], rows: dict[int, int]) -> NDArray[np.bool_]:
    """In slice k a line one pixel wide at row j, over all but the outermost i: slice → row."""
    mask = np.zeros(shape, dtype=bool)
    for k, j in rows.items():
        mask[1:-1, j, k] = True
    return mask


def test_counts_by_hand() -> None:
    # 60 voxels: truth 6, found 5, both 4
    truth, prediction = np.zeros((5, 4, 3), dtype=bool), np.zeros((5, 4, 3), dtype=bool)
    truth[1:4, 1:3, 1] = True
    prediction[1:3, 1:3, 1] = prediction[0, 0, 0] = True
    scores = gm_challenge_scores(prediction, truth, (0.5, 0.5, 5.0))
    assert tuple(scores) == GM_CHALLENGE_SCORES
    assert scores["dice"] == pytest.approx(8 / 11)
    assert scores["jaccard"] == pytest.approx(4 / 7)
    assert scores["sensitivity"] == pytest.approx(4 / 6)
    assert scores["precision"] == pytest.approx(4 / 5)
    assert scores["specificity"] == pytest.approx(53 / 54)
    assert scores["conformity"] == pytest.approx(3 - 2 * 11 / 8)
    # all voxels are border; the stray one is (1, 1) pixels and one slice away from the nearest
    assert scores["hd"] == pytest.approx(math.sqrt(0.5**2 + 0.5**2 + 5.0**2))
    assert scores["msd"] == pytest.approx((scores["hd"] + 2 * 0.5) / 11)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_skeletons_of_parallel_lines(spacing: tuple[float, float, float]) -> None:
    # four rows apart in every slice: that is every distance, as long as the next slice is further
    shape = (13, 12, 3)
    found = skeleton_distances(lines(shape, {0: 2, 1: 3, 2: 5}), lines(shape, {0: 6, 1: 7, 2: 9}), spacing)
    rows = 4 * spacing[1]
    near = min(rows, math.hypot(3 * spacing[1], spacing[2]), math.hypot(1 * spacing[1], 2 * spacing[2]))
    if near == rows:
        assert (found.hausdorff, found.median) == (pytest.approx(rows), pytest.approx(rows))
    assert found.hausdorff <= rows * (1 + 1e-12)


def test_hausdorff_is_the_worst_slice_and_the_median_the_usual_one() -> None:
    # rows apart: 1, 1, 6 in three slices of equal length; slices far apart
    shape = (13, 12, 3)
    found = skeleton_distances(lines(shape, {0: 2, 1: 2, 2: 2}), lines(shape, {0: 3, 1: 3, 2: 8}), (0.5, 0.5, 10.0))
    assert (found.hausdorff, found.median) == (3.0, 0.5)


def test_the_larger_directed_median_counts() -> None:
    # the truth has one line; the prediction has it too, and two more, 2 and 3 mm off: directed medians 0 and 2
    shape = (9, 12, 1)
    truth = lines(shape, {0: 1})
    prediction = truth | lines(shape, {0: 5}) | lines(shape, {0: 7})
    found = skeleton_distances(prediction, truth, (0.5, 0.5, 5.0))
    assert (found.hausdorff, found.median) == (3.0, 2.0)
    assert skeleton_distances(truth, prediction, (0.5, 0.5, 5.0)).median == 2.0


def test_thickness_does_not_matter_to_a_skeleton() -> None:
    # a bar of five rows thins to its middle row, four columns short at most; the surfaces are two rows apart
    truth, prediction = np.zeros((40, 15, 1), dtype=bool), np.zeros((40, 15, 1), dtype=bool)
    truth[2:38, 7, 0] = True
    prediction[2:38, 5:10, 0] = True
    spacing = (0.5, 0.5, 5.0)
    scores = gm_challenge_scores(prediction, truth, spacing)
    assert scores["hd"] == 1.0
    assert scores["smd"] == 0.0
    assert scores["shd"] <= 2.0


def test_slices_are_thinned_in_their_plane() -> None:
    # a solid block over five slices: a skeleton in three dimensions would be a line along k, in the plane each slice has its own
    from skimage.morphology import skeletonize

    block = np.zeros((9, 21, 5), dtype=bool)
    block[3:6, 2:19, :] = True
    found = skeleton_distances(block, block, (1.0, 1.0, 1.0))
    assert found.to_truth_mm.size == 5 * int(skeletonize(block[:, :, 0]).sum())
    assert found.hausdorff == 0.0


def test_a_slice_that_one_mask_misses_is_measured_to_the_next() -> None:
    shape = (9, 9, 3)
    truth, prediction = lines(shape, {0: 4, 1: 4, 2: 4}), lines(shape, {0: 4, 1: 4})
    found = skeleton_distances(prediction, truth, (0.5, 0.5, 7.5))
    assert (found.hausdorff, found.median) == (7.5, 0.0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_skeleton_distances_equal_the_definition(spacing: tuple[float, float, float]) -> None:
    from scipy import ndimage
    from skimage.morphology import skeletonize

    for seed in range(3):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, 20, 18, 4)), (0, 1.5, 1.5, 0.5))
        masks = noise > 0.05
        points = [np.argwhere(np.stack([skeletonize(mask[:, :, k]) for k in range(4)], axis=2)) * np.array(spacing) for mask in masks]
        table = cdist(*points)
        one, two = table.min(axis=1), table.min(axis=0)
        found = skeleton_distances(masks[0], masks[1], spacing)
        assert found.hausdorff == pytest.approx(max(one.max(), two.max()))
        assert found.median == pytest.approx(max(np.median(one), np.median(two)))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(1, 300))
def test_conformity_and_specificity_follow_their_formulas(tp: int, fp: int, fn: int, tn: int) -> None:
    counts = Overlap(tp, fp, fn)
    if tp:
        assert conformity(counts) == pytest.approx(3 - 2 / counts.dice)
        assert conformity(counts) <= 1.0
    else:
        assert math.isnan(conformity(counts))
    if not counts.empty:
        assert specificity(counts, tp + fp + fn + tn) == pytest.approx(tn / (tn + fp))


def test_conformity_is_negative_below_two_thirds() -> None:
    assert conformity(Overlap(1, 1, 0)) == pytest.approx(0.0)
    assert conformity(Overlap(1, 2, 1)) == -2.0
    assert conformity(Overlap(5, 0, 0)) == 1.0


def test_empty_masks_follow_the_stated_rule() -> None:
    empty, one = np.zeros((6, 6, 3), dtype=bool), lines((6, 6, 3), {1: 2})
    assert all(math.isnan(value) for value in gm_challenge_scores(empty, empty, SPACINGS[1]).values())
    missed, invented = gm_challenge_scores(empty, one, SPACINGS[1]), gm_challenge_scores(one, empty, SPACINGS[1])
    for scores in (missed, invented):
        assert (scores["dice"], scores["jaccard"]) == (0.0, 0.0)
        assert all(math.isnan(scores[name]) for name in (*DISTANCES, "conformity"))
    assert (missed["sensitivity"], missed["specificity"]) == (0.0, 1.0)
    assert math.isnan(missed["precision"])
    assert (invented["precision"], invented["specificity"]) == (0.0, pytest.approx(104 / 108))
    assert math.isnan(invented["sensitivity"])
    apart = gm_challenge_scores(lines((6, 6, 3), {1: 4}), one, SPACINGS[1])
    assert math.isnan(apart["conformity"])
    assert apart["hd"] == apart["shd"] == 1.0
    full = np.ones((2, 2, 2), dtype=bool)
    assert math.isnan(gm_challenge_scores(full, full, SPACINGS[0])["specificity"])


def test_unfit_masks_are_refused() -> None:
    mask = np.zeros((4, 4, 2), dtype=bool)
    with pytest.raises(InputError, match="one shape"):
        gm_challenge_scores(mask, mask[:, :3], SPACINGS[0])
    with pytest.raises(InputError, match="uint8"):
        skeleton_distances(mask.astype(np.uint8), mask, SPACINGS[0])  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="three positive"):
        gm_challenge_scores(mask, mask, (1.0, -1.0, 1.0))


@pytest.mark.parametrize("case", ["site1-sc01", "site2-sc01", "site3-sc01", "site3-sc02", "site4-sc01"])
def test_real_gray_matter_shifted_by_a_pixel(shared_data: Path, case: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    stored = nibabel.load(shared_data / "spinal_gm" / "train" / f"{case}-mask-r1.nii.gz")
    truth = np.asarray(stored.dataobj) == 1
    spacing = tuple(float(length) for length in stored.header.get_zooms())
    perfect = gm_challenge_scores(truth, truth, spacing)
    assert [perfect[name] for name in DISTANCES] == [0.0] * 4
    assert [perfect[name] for name in GM_CHALLENGE_SCORES if name not in DISTANCES] == [1.0] * 6
    shifted = np.roll(truth, 1, axis=0)
    scores = gm_challenge_scores(shifted, truth, spacing)
    # every point has its double one pixel away, so no distance is longer; skeletons are moved along
    both = np.count_nonzero(shifted & truth)
    assert scores["dice"] == pytest.approx(both / np.count_nonzero(truth))
    assert scores["conformity"] == pytest.approx(3 - 2 / scores["dice"])
    assert scores["jaccard"] == pytest.approx(scores["dice"] / (2 - scores["dice"]))
    assert scores["hd"] == pytest.approx(spacing[0])
    assert scores["shd"] == pytest.approx(spacing[0])
    assert 0.0 < scores["msd"] < spacing[0]
    assert scores["smd"] in (0.0, pytest.approx(spacing[0]))
    assert scores["msd"] == surface_distances(shifted, truth, spacing).assd
