"""V_Rand and V_Info: closed forms counted by hand, scikit-image's sums, a pixel-by-pixel definition, and the real truth."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage.metrics import adapted_rand_error

from medquant.errors import InputError
from medquant.evaluate.em_scores import em_score, partition_score, stack_em_score

LN2 = math.log(2.0)


def cells(*rows: str) -> NDArray[np.bool_]:
    """A mask drawn with # for cell and . for membrane."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


TWO = cells("##.##", "##.##")
ONE = cells("#####", "#####")


def test_a_perfect_prediction_scores_one() -> None:
    for thin in (True, False):
        score = em_score(TWO, TWO, thin=thin)
        assert (score.v_rand, score.v_info, score.rand_split, score.rand_merge) == (1.0, pytest.approx(1.0), 1.0, 1.0)


def test_two_equal_cells_merged() -> None:
    # S = {8}, T = {4, 4}: Σp² = 32, Σs² = 64, Σt² = 32, so V_Rand = 64 / 96; I = 0 as S has no entropy
    score = em_score(ONE, TWO)
    assert (score.rand_split, score.rand_merge, score.v_rand) == (1.0, 0.5, pytest.approx(2 / 3))
    assert (score.info_split, score.info_merge, score.v_info) == (1.0, 0.0, 0.0)


def test_one_cell_split_in_halves_with_a_border() -> None:
    # S = {4, 4} and two border pixels as singles, T = {10}: Σp² = Σs² = 16 + 16 + 2 = 34, Σt² = 100
    score = em_score(TWO, ONE)
    assert (score.rand_split, score.rand_merge, score.v_rand) == (0.34, 1.0, pytest.approx(68 / 134))
    assert (score.v_info, score.info_merge) == (0.0, 1.0)


def test_three_cells_two_of_them_merged() -> None:
    # T = {4, 4, 8}, S = {8, 8}: Σp² = Σt² = 96, Σs² = 128; H(T) = 1.5 ln 2, H(S) = I = ln 2
    truth = np.array([1] * 4 + [2] * 4 + [3] * 8)
    segments = np.array([1] * 8 + [2] * 8)
    score = partition_score(segments, truth)
    assert (score.rand_split, score.rand_merge, score.v_rand) == (1.0, 0.75, pytest.approx(192 / 224))
    assert (score.info_split, score.info_merge, score.v_info) == (pytest.approx(1.0), pytest.approx(2 / 3), pytest.approx(0.8))


def test_split_and_merge_change_places_with_the_arguments() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 5, (2, 200))
    there, back = partition_score(a, b), partition_score(b, a)
    assert there.v_rand == pytest.approx(back.v_rand)
    assert there.v_info == pytest.approx(back.v_info)
    assert (there.rand_split, there.info_split) == pytest.approx((back.rand_merge, back.info_merge))


def test_all_membrane_makes_every_pixel_its_own_segment() -> None:
    # Σp² = Σs² = n = 8, Σt² = 32; S knows everything: I = H(T) = ln 2, H(S) = ln 8
    score = em_score(np.zeros_like(TWO), TWO)
    assert (score.rand_split, score.rand_merge, score.v_rand) == (0.25, 1.0, pytest.approx(16 / 40))
    assert (score.info_split, score.info_merge, score.v_info) == (
        pytest.approx(1 / 3),
        pytest.approx(1.0),
        pytest.approx(2 * LN2 / (4 * LN2)),
    )


def test_a_single_pixel_counts_as_a_segment_of_its_own_and_is_bounded_by_the_other_rules() -> None:
    # calling border pixels singles lies between leaving them out (too kind) and one common segment for all of them
    truth = ndimage.label(cells("###.###", "###.###", "###.###"))[0].astype(np.int64)
    segments = truth.copy()
    segments[0, 2] = segments[1, 2] = segments[0, 4] = segments[1, 4] = 0
    singles = partition_score(segments, truth).v_rand
    left_out = partition_score(segments, np.where(segments == 0, 0, truth)).v_rand
    common = partition_score(np.where(segments == 0, 9, segments), truth).v_rand
    # Σs² = Σp² = 2 · 7² + 4 = 102 of Σt² = 162; the common segment of 4 holds two pixels of each cell: Σp² = 106, Σs² = 114
    assert singles == pytest.approx(204 / 264)
    assert common == pytest.approx(212 / 276)
    assert common < singles < left_out == 1.0


def test_only_the_truths_cells_count() -> None:
    painted = TWO.copy()
    assert em_score(painted, TWO) == em_score(TWO, TWO)
    truth = cells("##....", "##....")
    # what stands beside the truth's cell is not looked at
    assert em_score(cells("##.###", "##.#.#"), truth, thin=False).v_rand == 1.0


def test_cells_touching_at_a_corner_are_two() -> None:
    diagonal = cells("##..", "##..", "..##", "..##")
    merged = cells("##..", "###.", ".###", "..##")
    assert em_score(diagonal, diagonal, thin=False).v_rand == 1.0
    # 4-connected truth has cells of 4 and 4; the bridge merges them: Σp² = 32 of Σs² = 64
    assert em_score(merged, diagonal, thin=False).rand_merge == 0.5


def test_thick_borders_cost_nothing_once_thinned() -> None:
    truth = np.ones((40, 41), dtype=bool)
    truth[:, 20] = False
    thick = truth.copy()
    thick[:, 15:26] = False
    assert em_score(thick, truth, thin=True).v_rand == 1.0
    # 15 columns kept and 5 lost on each side: Σp² = 2 · 600² + 2 · 200 of Σt² = 2 · 800²
    assert em_score(thick, truth, thin=False).rand_split == pytest.approx((2 * 600**2 + 400) / (2 * 800**2))


def test_thinning_keeps_cells_apart_by_one_pixel() -> None:
    from medquant.evaluate.em_scores import _components, _thinned

    mask = np.zeros((30, 30), dtype=bool)
    mask[2:8, 2:8] = mask[20:27, 4:9] = mask[5:25, 18:24] = True
    grown = _thinned(mask, _components(mask))
    assert set(np.unique(grown)) == {0, 1, 2, 3}
    assert (grown[mask] == _components(mask)[mask]).all()
    # no two labels touch along a side, and the borders are thin: no 3 by 3 block of border is left
    for a, b in ((grown[1:], grown[:-1]), (grown[:, 1:], grown[:, :-1])):
        assert not ((a > 0) & (b > 0) & (a != b)).any()
    assert not ndimage.binary_erosion(grown == 0, structure=np.ones((3, 3)), border_value=0).any()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_equals_the_definition_pixel_pair_by_pixel_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, segments = rng.integers(0, 4, (2, 5, 6))
    counted = [(int(s) if s else -n - 1, int(t)) for n, (s, t) in enumerate(zip(segments.flat, truth.flat, strict=True)) if t]
    if not counted:
        return
    same_s = [a[0] == b[0] for a, b in product(counted, counted)]
    same_t = [a[1] == b[1] for a, b in product(counted, counted)]
    both = sum(x and y for x, y in zip(same_s, same_t, strict=True))
    score = partition_score(segments, truth)
    assert score.rand_split == pytest.approx(both / sum(same_t))
    assert score.rand_merge == pytest.approx(both / sum(same_s))
    assert score.v_rand == pytest.approx(2 * both / (sum(same_s) + sum(same_t)))
    # entropies in scipy, from counted labels
    joint, of_s, of_t = (
        stats.entropy(list(Counter(labels).values())) for labels in (counted, [c[0] for c in counted], [c[1] for c in counted])
    )
    information = of_s + of_t - joint
    expected = 2 * information / (of_s + of_t) if of_s + of_t > 1e-12 else 1.0
    assert score.v_info == pytest.approx(expected, abs=1e-9)


def test_agrees_with_scikit_image_where_the_two_coincide() -> None:
    # scikit-image takes n off each sum (pairs of different pixels): Σ − n over Σ − n, with n counted pixels
    rng = np.random.default_rng(4)
    truth, segments = rng.integers(0, 5, (40, 40)), rng.integers(1, 6, (40, 40))
    _, precision, recall = adapted_rand_error(truth, segments)
    score = partition_score(segments, truth)
    n = np.count_nonzero(truth)
    t2 = sum(int((truth == c).sum()) ** 2 for c in range(1, 5))
    s2 = sum(int(((segments == c) & (truth > 0)).sum()) ** 2 for c in range(1, 6))
    ratios = {(score.rand_split * t2 - n) / (t2 - n), (score.rand_merge * s2 - n) / (s2 - n)}
    assert sorted(ratios) == pytest.approx(sorted((precision, recall)))


def test_names_of_labels_do_not_matter() -> None:
    rng = np.random.default_rng(7)
    truth, segments = rng.integers(0, 6, (2, 30, 30))
    relabel_t, relabel_s = np.array([0, 50, 3, 9, 1, 7]), np.array([0, 2, 90, 1, 33, 4])
    first, second = partition_score(segments, truth), partition_score(relabel_s[segments], relabel_t[truth])
    for name in ("v_rand", "rand_split", "rand_merge", "v_info", "info_split", "info_merge"):
        assert getattr(first, name) == pytest.approx(getattr(second, name))


def test_a_stack_is_the_mean_of_its_slices_and_counts_empty_ones() -> None:
    truth = np.stack([TWO, TWO, np.zeros_like(TWO)], axis=2)
    prediction = np.stack([TWO, ONE, ONE], axis=2)
    stack = stack_em_score(prediction, truth)
    assert stack.v_rand == pytest.approx((1 + 2 / 3) / 2)
    assert stack.v_info == pytest.approx(0.5)
    assert (len(stack.slices), stack.empty) == (3, 1)
    nothing = stack_em_score(prediction[:, :, 2:], truth[:, :, 2:])
    assert math.isnan(nothing.v_rand)
    assert nothing.empty == 1


def test_unfit_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        em_score(TWO, TWO.T)
    with pytest.raises(InputError, match="3 axes"):
        stack_em_score(TWO, TWO)
    with pytest.raises(InputError, match="uint8"):
        em_score(TWO.astype(np.uint8), TWO)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def real_cells(shared_data: Path) -> NDArray[np.bool_]:
    tifffile = pytest.importorskip("tifffile")
    stack = tifffile.imread(shared_data / "isbi_em" / "train-labels.tif")
    return np.asarray(stack[:4] > 0).transpose(2, 1, 0)


def test_real_truth_against_itself_is_perfect(real_cells: NDArray[np.bool_]) -> None:
    for thin in (True, False):
        score = stack_em_score(real_cells, real_cells, thin=thin)
        assert (score.v_rand, score.v_info) == (pytest.approx(1.0, abs=1e-12), pytest.approx(1.0, abs=1e-12))


def test_real_truth_with_cells_drawn_too_small_is_nearly_perfect_once_thinned(real_cells: NDArray[np.bool_]) -> None:
    # the challenge's own flooding, run over slice 0 eroded by one pixel, gives V_Rand 0.99851 and V_Info 0.99823
    slice0 = real_cells[:, :, 0]
    small = ndimage.binary_erosion(slice0)
    thinned, raw = em_score(small, slice0), em_score(small, slice0, thin=False)
    assert thinned.v_rand == pytest.approx(0.99851, abs=1e-4)
    assert thinned.v_info == pytest.approx(0.99823, abs=1e-4)
    assert raw.v_rand < 0.95


def test_a_hole_in_a_real_membrane_costs_merges_only(real_cells: NDArray[np.bool_]) -> None:
    slice0 = real_cells[:, :, 0]
    leaky = slice0.copy()
    leaky[100, :] = True  # joins every cell that this line crosses
    score = em_score(leaky, slice0)
    assert score.rand_merge < 0.9
    assert score.rand_split > 0.999
