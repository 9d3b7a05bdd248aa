"""The search for the best threshold: drawn stacks, the score of every single threshold, and the real EM truth."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import adapted_rand_error
from skimage.segmentation import watershed

from medquant.errors import InputError
from medquant.evaluate.em_scores import best_over_thresholds, em_score, quantile_thresholds, stack_em_score

TENTHS = tuple(step / 10 for step in range(11))


def drawn_stack() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Two cells of 3 by 2 with a membrane between: levels 0.9 in the cells, a gap of 0.6 in the membrane, 0.2 elsewhere in it."""
    truth = np.ones((3, 5, 1), dtype=bool)
    truth[:, 2] = False
    levels = np.where(truth, 0.9, 0.2)
    levels[1, 2] = 0.6
    return levels, truth


def cloudy(cells: NDArray[np.bool_], seed: int = 0) -> NDArray[np.float64]:
    """A map of how surely a pixel lies in a cell, as a fair network would give it: blurred truth with smooth noise, 0..1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=cells.shape), (2, 2, 0)) * 2.2
    return np.clip(ndimage.gaussian_filter(cells.astype(float), (1.5, 1.5, 0)) * 0.9 + noise, 0.0, 1.0)


@pytest.fixture(scope="module")
def real_cells(shared_data: Path) -> NDArray[np.bool_]:
    tifffile = pytest.importorskip("tifffile")
    return np.asarray(tifffile.imread(shared_data / "isbi_em" / "train-labels.tif") > 0).transpose(2, 1, 0)


def test_the_threshold_that_closes_the_gap_wins() -> None:
    levels, truth = drawn_stack()
    found = best_over_thresholds(levels, truth, TENTHS)
    # up to 0.1 all is one cell (V_Rand 72 / 108), from 0.2 the gap still joins both, from 0.6 the membrane is whole, at 0.9 all is gone
    assert (found.threshold, found.v_rand, found.info_threshold, found.v_info) == (0.6, 1.0, 0.6, pytest.approx(1.0))
    scores = {one.threshold: one for one in found.table}
    assert list(scores) == list(TENTHS)
    # T = {6, 6}; S = {12} over the counted pixels: Σp² = 72, Σs² = 144, Σt² = 72
    for threshold in (0.0, 0.1, 0.2, 0.5):
        assert scores[threshold].v_rand == pytest.approx(2 * 72 / (144 + 72))
        assert scores[threshold].v_info == 0.0
    for threshold in (0.6, 0.7, 0.8):
        assert scores[threshold].v_rand == 1.0
    # every pixel its own segment: Σp² = Σs² = 12
    assert scores[0.9].v_rand == scores[1.0].v_rand == pytest.approx(24 / (12 + 72))


def test_each_row_of_the_table_is_the_score_of_that_mask() -> None:
    rng = np.random.default_rng(3)
    truth = np.stack([ndimage.gaussian_filter(rng.normal(size=(40, 50)), 3) > -0.03 for _ in range(3)], axis=2)
    truth[:, :, 1] = False
    levels = cloudy(truth)
    for thin in (True, False):
        found = best_over_thresholds(levels, truth, (0.7, 0.2, 0.45, 0.2), thin=thin)
        assert [one.threshold for one in found.table] == [0.2, 0.45, 0.7]
        for one in found.table:
            expected = stack_em_score(levels > one.threshold, truth, thin=thin)
            assert (one.v_rand, one.v_info) == (expected.v_rand, expected.v_info)
            assert expected.empty == 1
        assert found.v_rand == max(one.v_rand for one in found.table)
        assert found.v_info == max(one.v_info for one in found.table)


def test_both_scores_have_a_threshold_of_their_own() -> None:
    # T = {6, 3, 3}. Level 2 merges the two small cells, level 1 cuts the large one in six pieces as well as parting the small ones.
    # Threshold 0: S = {6, 6}: V_Rand 2·54 / (72 + 54) = 6/7; I = ln 2, H(T) = 1.5 ln 2: V_Info 2 / 2.5 = 0.8.
    # Threshold 1: S = {1 six times, 3, 3}: Σp² = Σs² = 24: V_Rand 48 / 78; I = H(T) = 1.5 ln 2, H(S) = ½ ln 12 + ½ ln 4.
    truth = np.zeros((1, 16, 1), dtype=bool)
    truth[0, 0:6] = truth[0, 8:11] = truth[0, 12:15] = True
    levels = np.zeros((1, 16, 1), dtype=np.int32)
    levels[0, 0:6] = levels[0, 11] = 1
    levels[0, 8:11] = levels[0, 12:15] = 2
    found = best_over_thresholds(levels, truth, (0, 1), thin=False)
    assert (found.threshold, found.v_rand) == (0, pytest.approx(6 / 7))
    split = 2 * 1.5 * math.log(2) / (1.5 * math.log(2) + 0.5 * math.log(12) + 0.5 * math.log(4))
    assert found.table[1].v_info == pytest.approx(split)
    assert found.table[1].v_rand == pytest.approx(48 / 78)
    assert (found.info_threshold, found.v_info) == ((1, pytest.approx(split)) if split > 0.8 else (0, pytest.approx(0.8)))


def test_the_mean_of_the_stack_decides_not_the_slice() -> None:
    # each slice has its own perfect threshold; together one has to serve both
    levels, truth = drawn_stack()
    low = levels - 0.5
    both, cells = np.concatenate([levels, low], axis=2), np.concatenate([truth, truth], axis=2)
    assert best_over_thresholds(low, truth, (0.1, 0.6)).threshold == 0.1
    found = best_over_thresholds(both, cells, (0.1, 0.6))
    # threshold 0.1: slice one merged (2/3), slice two perfect; threshold 0.6: slice one perfect, slice two all single pixels (24/84)
    assert [one.v_rand for one in found.table] == [pytest.approx((2 / 3 + 1) / 2), pytest.approx((1 + 24 / 84) / 2)]
    assert found.threshold == 0.1


def test_equal_scores_take_the_lowest_threshold() -> None:
    levels, truth = drawn_stack()
    assert best_over_thresholds(levels, truth, (0.8, 0.7, 0.6)).threshold == 0.6


def test_integer_accumulators_score_as_the_map_they_came_from() -> None:
    rng = np.random.default_rng(5)
    truth = np.stack([ndimage.gaussian_filter(rng.normal(size=(48, 40)), 3) > -0.03 for _ in range(2)], axis=2)
    levels = cloudy(truth)
    accumulators = np.floor(levels * 4000).astype(np.int32) - 1700
    # a > t in the map is a' > floor(4000 t) - 1700 in the accumulators where 4000 t is whole
    thresholds = (0.25, 0.5, 0.75)
    there = best_over_thresholds(np.floor(levels * 4000) / 4000, truth, thresholds)
    back = best_over_thresholds(accumulators, truth, [int(4000 * threshold) - 1700 for threshold in thresholds])
    assert [(one.v_rand, one.v_info) for one in there.table] == [(one.v_rand, one.v_info) for one in back.table]


def test_quantile_thresholds_do_not_see_the_scale() -> None:
    rng = np.random.default_rng(6)
    levels = rng.normal(size=(7, 9, 3))
    shares = [step / 10 for step in range(1, 10)]
    wide = np.round(levels * 1e6).astype(np.int64)
    for given in (levels, wide):
        thresholds = quantile_thresholds(given, shares)
        assert len(thresholds) == 9
        assert set(thresholds) <= set(given.reshape(-1).tolist())
        for threshold, share in zip(thresholds, shares, strict=True):
            assert np.count_nonzero(given <= threshold) == math.ceil(round(share * given.size, 9))
    assert all(isinstance(threshold, int) for threshold in quantile_thresholds(wide, shares))
    assert quantile_thresholds(np.zeros((4, 4), dtype=np.int32), shares) == (0,)


def test_what_cannot_be_searched_is_refused() -> None:
    levels, truth = drawn_stack()
    with pytest.raises(InputError, match="thresholds"):
        best_over_thresholds(levels, truth, ())
    with pytest.raises(InputError, match="thresholds"):
        best_over_thresholds(levels, truth, (0.5, math.nan))
    with pytest.raises(InputError, match="no slice of the truth"):
        best_over_thresholds(levels, np.zeros_like(truth), (0.5,))
    with pytest.raises(InputError, match="bool"):
        best_over_thresholds(levels > 0.5, truth, (0.5,))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one shape"):
        best_over_thresholds(levels[:2], truth, (0.5,))
    levels[0, 0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        best_over_thresholds(levels, truth, (0.5,))
    with pytest.raises(InputError, match="between 0 and 1"):
        quantile_thresholds(np.zeros(3), (1.5,))


def test_the_best_threshold_of_a_real_map_beats_one_half(real_cells: NDArray[np.bool_]) -> None:
    cells = real_cells[:, :, :2]
    found = best_over_thresholds(cloudy(cells), cells, (0.1, 0.5, 0.6, 0.7, 0.8))
    scores = {one.threshold: one.v_rand for one in found.table}
    assert found.threshold in (0.6, 0.7, 0.8)
    assert scores[0.1] < scores[0.5] < found.v_rand < 1.0


def test_a_threshold_chosen_on_some_slices_is_applied_to_others(real_cells: NDArray[np.bool_]) -> None:
    # what the docstring asks of a caller; the chosen one cannot beat the best of the slices it is applied to
    levels = cloudy(real_cells[:200, :200, :4])
    chosen = best_over_thresholds(levels[:, :, :2], real_cells[:200, :200, :2], TENTHS).threshold
    applied = stack_em_score(levels[:, :, 2:] > chosen, real_cells[:200, :200, 2:4]).v_rand
    assert applied <= best_over_thresholds(levels[:, :, 2:], real_cells[:200, :200, 2:4], TENTHS).v_rand


def test_scikit_images_adapted_rand_error_is_another_figure(real_cells: NDArray[np.bool_]) -> None:
    # it counts pairs of different pixels, and takes all that is border in the prediction as one segment of its own
    cells = real_cells[:, :, 0]
    truth = ndimage.label(cells)[0]
    apart = []
    for threshold in (0.7, 0.8):
        mask = cloudy(real_cells[:, :, :2])[:, :, 0] > threshold
        thinned = watershed(~mask, markers=ndimage.label(mask)[0], connectivity=1, watershed_line=True)
        apart.append(em_score(mask, cells).v_rand - (1.0 - adapted_rand_error(truth, thinned)[0]))
    assert 1e-3 < apart[0] < apart[1] < 0.025


@pytest.mark.slow
def test_the_whole_stack_takes_less_than_a_minute(real_cells: NDArray[np.bool_]) -> None:
    levels = cloudy(real_cells)
    started = time.process_time()
    found = best_over_thresholds(levels, real_cells, TENTHS)
    assert time.process_time() - started < 60.0
    assert 0.7 < found.v_rand < 1.0
