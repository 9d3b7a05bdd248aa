"""V_Rand and V_Info of the ISBI 2012 EM challenge: how well predicted cells keep the true cells apart and whole.

Source: Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142, doi 10.3389/fnana.2015.00142, and the challenge's public
evaluation. A slice is scored in 2D and a stack by the mean over its slices:

1. The truth's cells are the 4-connected components of its cell mask. Only pixels inside them count ("foreground
   restricted"), so where exactly a membrane is drawn costs nothing.
2. The prediction's cells are the 4-connected components of its cell mask, grown into the membrane by a watershed until the
   borders between them are one pixel wide ("thinning"). The truth is not thinned.
3. A counted pixel that is still border in the prediction is a segment of its own, of size one.

The watershed is scikit-image's; it places ties between equally near cells otherwise than the challenge's own flooding, which
moves a score by up to about 1e-4. A prediction without any cell is all single pixels here; the challenge's flooding makes
it one segment.

The challenge's figures are the best over thresholds of a probability map, V_Rand and V_Info each with a threshold of its own
(its scripts go from 0 to 1 in steps of 0.1): :func:`best_over_thresholds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.errors import InputError


@dataclass(frozen=True)
class EmScore:
    """Agreement of two partitions; every figure lies in 0..1, 1 is perfect, NaN means the truth has no cell.

    Args:
        v_rand: ``Σ p² / (½ Σ s² + ½ Σ t²)``, the harmonic mean of the next two.
        rand_split: ``Σ p² / Σ t²``, low where the prediction splits true cells.
        rand_merge: ``Σ p² / Σ s²``, low where it merges them.
        v_info: ``I(S;T) / (½ H(S) + ½ H(T))``; 1 where both partitions are one and the same segment.
        info_split: ``I(S;T) / H(S)``, 1 where the prediction is one segment.
        info_merge: ``I(S;T) / H(T)``, 1 where the truth is one segment.
    """

    v_rand: float
    rand_split: float
    rand_merge: float
    v_info: float
    info_split: float
    info_merge: float


@dataclass(frozen=True)
class StackScore:
    """Mean scores of a stack and the slices they come from.

    Args:
        v_rand: mean over the scored slices, NaN where there is none.
        v_info: mean over the scored slices, NaN where there is none.
        slices: one score a slice, in order.
        empty: number of slices whose truth has no cell; they are in no mean.
    """

    v_rand: float
    v_info: float
    slices: tuple[EmScore, ...]
    empty: int


@dataclass(frozen=True)
class ThresholdScore:
    """Mean scores of a stack whose cells are the pixels above one threshold."""

    threshold: float
    v_rand: float
    v_info: float


@dataclass(frozen=True)
class ThresholdSearch:
    """The best thresholds of a stack; of thresholds that score the same, the lowest.

    Args:
        threshold: the one with the largest mean V_Rand.
        v_rand: that V_Rand.
        info_threshold: the one with the largest mean V_Info.
        v_info: that V_Info.
        table: every threshold's scores, from the lowest to the highest.
    """

    threshold: float
    v_rand: float
    info_threshold: float
    v_info: float
    table: tuple[ThresholdScore, ...]


def best_over_thresholds(
    levels: NDArray[np.integer | np.floating], truth: NDArray[np.bool_], thresholds: Sequence[float], *, thin: bool = True
) -> ThresholdSearch:
    """Search the threshold above which a pixel is called cell, for a stack as a whole.

    The scores found are those of the best threshold on the very slices it was chosen on, hence optimistic. For a figure that says
    something about new slices, choose the threshold on the validation part, ``levels > threshold``, and score the test part with
    :func:`stack_em_score`.

    Args:
        levels: how surely a pixel lies in a cell, shape ``(I, J, K)``: a probability, or any score that grows with it, such as the
            integer an accumulator holds. (Of a map of membranes, pass the negative.)
        truth: True inside cells, the same shape.
        thresholds: values to try, in the units of ``levels``; :func:`quantile_thresholds` gives some for scores without a scale.
        thin: as :func:`stack_em_score`.

    Raises:
        InputError: the shapes differ or are not 3D, the levels are no numbers, there is no threshold, or no slice has a true cell.
    """
    _check_levels(levels)
    _check_masks(np.zeros(levels.shape, dtype=np.bool_), truth, axes=3)
    tried = sorted(set(thresholds))
    if not tried or any(math.isnan(threshold) for threshold in tried):
        raise InputError(f"the search needs thresholds that are numbers, found {list(thresholds)[:5] or 'none'}")
    cells = {k: _components(truth[:, :, k]) for k in range(truth.shape[2]) if truth[:, :, k].any()}
    if not cells:
        raise InputError("no slice of the truth holds a cell: no threshold can be chosen on it; choose it on labelled slices")
    table = []
    for threshold in tried:
        scores = [_score(levels[:, :, k] > threshold, cell, thin) for k, cell in cells.items()]
        v_rand, v_info = _means(scores)
        table.append(ThresholdScore(threshold, v_rand, v_info))
    by_rand = max(table, key=lambda one: one.v_rand)  # the first of equals
    by_info = max(table, key=lambda one: one.v_info)
    return ThresholdSearch(by_rand.threshold, by_rand.v_rand, by_info.threshold, by_info.v_info, tuple(table))


def quantile_thresholds(levels: NDArray[np.integer | np.floating], shares: Sequence[float]) -> tuple[float, ...]:
    """Thresholds that leave given shares of all pixels below or at them: distinct values that occur, from low to high.

    Args:
        levels: scores of any shape and scale.
        shares: between 0 and 1, for example 0.1, 0.2 … 0.9.

    Raises:
        InputError: the levels are no numbers, there are none, or a share is not between 0 and 1.
    """
    _check_levels(levels)
    if levels.size == 0 or not all(0.0 <= share <= 1.0 for share in shares):
        raise InputError(f"quantiles need levels and shares between 0 and 1, found {levels.size} levels, shares {list(shares)[:5]}")
    values = np.quantile(levels, list(shares), method="inverted_cdf")
    return tuple(value.item() for value in np.unique(values))


def stack_em_score(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, thin: bool = True) -> StackScore:
    """Score a stack, slice by slice.

    Args:
        prediction: True inside cells, shape ``(I, J, K)``, K the slices.
        truth: the same shape.
        thin: grow predicted cells until their borders are one pixel wide, as the challenge does.

    Raises:
        InputError: the arrays are not boolean, not 3D, or differ in shape.
    """
    _check_masks(prediction, truth, axes=3)
    slices = tuple(em_score(prediction[:, :, k], truth[:, :, k], thin=thin) for k in range(truth.shape[2]))
    scored = [one for one in slices if not math.isnan(one.v_rand)]
    v_rand, v_info = _means(scored)
    return StackScore(v_rand=v_rand, v_info=v_info, slices=slices, empty=len(slices) - len(scored))


def em_score(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, thin: bool = True) -> EmScore:
    """Score one slice.

    Args:
        prediction: True inside cells, shape ``(I, J)``.
        truth: the same shape.
        thin: grow predicted cells until their borders are one pixel wide, as the challenge does.

    Raises:
        InputError: the arrays are not boolean, not 2D, or differ in shape.
    """
    _check_masks(prediction, truth, axes=2)
    return _score(prediction, _components(truth), thin)


def partition_score(segments: NDArray[np.int64], truth: NDArray[np.int64]) -> EmScore:
    """Score one labelling against another over the pixels where ``truth`` is not 0.

    Args:
        segments: predicted labels, 0 or above, any shape; each counted pixel with label 0 is a segment of its own.
        truth: true labels, the same shape, 0 = not counted.
    """
    counted = truth > 0
    pixels = int(np.count_nonzero(counted))
    if pixels == 0:
        return EmScore(*[math.nan] * 6)
    s, t = segments[counted].astype(np.int64), truth[counted].astype(np.int64)
    singles = int(np.count_nonzero(s == 0))
    paired = s > 0
    # one number for each pair of labels, so that counting pairs is counting values
    _, pair_sizes = np.unique(s[paired] * (int(t.max()) + 1) + t[paired], return_counts=True)
    sizes_s = np.bincount(s[paired])
    sizes_t = np.bincount(t)
    squares_st, squares_s, squares_t = _squares(pair_sizes) + singles, _squares(sizes_s) + singles, _squares(sizes_t)
    entropy_s, entropy_t = _entropy(sizes_s, singles, pixels), _entropy(sizes_t, 0, pixels)
    information = max(0.0, entropy_s + entropy_t - _entropy(pair_sizes, singles, pixels))
    return EmScore(
        v_rand=2.0 * squares_st / (squares_s + squares_t),
        rand_split=squares_st / squares_t,
        rand_merge=squares_st / squares_s,
        v_info=_share(2.0 * information, entropy_s + entropy_t),
        info_split=_share(information, entropy_s),
        info_merge=_share(information, entropy_t),
    )


def _score(prediction: NDArray[np.bool_], true_cells: NDArray[np.int64], thin: bool) -> EmScore:
    segments = _components(prediction)
    return partition_score(_thinned(prediction, segments) if thin else segments, true_cells)


def _means(scores: Sequence[EmScore]) -> tuple[float, float]:
    """Mean V_Rand and V_Info of slices that all have a true cell; NaN where there is none."""
    if not scores:
        return math.nan, math.nan
    return math.fsum(one.v_rand for one in scores) / len(scores), math.fsum(one.v_info for one in scores) / len(scores)


def _squares(sizes: NDArray[np.int64]) -> int:
    """Sum of squared segment sizes: the ordered pairs of pixels that lie in one segment."""
    wide = sizes.astype(np.int64)
    return int(wide @ wide)


def _entropy(sizes: NDArray[np.int64], singles: int, pixels: int) -> float:
    """Entropy in nats of a partition into segments of ``sizes`` and ``singles`` segments of one pixel."""
    held = sizes[sizes > 0].astype(np.float64)
    return float((held / pixels * np.log(pixels / held)).sum()) + singles / pixels * math.log(pixels)


def _share(information: float, entropy: float) -> float:
    return information / entropy if entropy > 0.0 else 1.0


def _components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """4-connected components, numbered from 1."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    return np.asarray(labels, dtype=np.int64)


def _thinned(mask: NDArray[np.bool_], segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Components grown into the background until they meet; one-pixel borders between them stay 0."""
    from skimage.segmentation import watershed

    return np.asarray(watershed(~mask, markers=segments, connectivity=1, watershed_line=True), dtype=np.int64)


def _check_masks(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], axes: int) -> None:
    if prediction.shape != truth.shape or truth.ndim != axes:
        raise InputError(f"V_Rand needs two masks of {axes} axes and one shape, found prediction {prediction.shape}, truth {truth.shape}")
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise InputError(f"V_Rand needs masks that are True inside cells, found {prediction.dtype} and {truth.dtype}: pass mask == class")


def _check_levels(levels: NDArray[np.integer | np.floating]) -> None:
    if levels.dtype.kind not in "iuf" or (levels.dtype.kind == "f" and bool(np.isnan(levels).any())):
        raise InputError(f"levels are numbers, one a pixel, found {levels.dtype} values or NaN among them: pass scores, not a mask")
