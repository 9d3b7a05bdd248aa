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
"""

from __future__ import annotations

import math
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
    if not scored:
        return StackScore(v_rand=math.nan, v_info=math.nan, slices=slices, empty=len(slices))
    v_rand = math.fsum(one.v_rand for one in scored) / len(scored)
    v_info = math.fsum(one.v_info for one in scored) / len(scored)
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
    segments = _components(prediction)
    return partition_score(_thinned(prediction, segments) if thin else segments, _components(truth))


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
