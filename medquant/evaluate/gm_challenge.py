"""The ten scores of the spinal cord gray matter challenge (Prados et al. 2017, NeuroImage 152:312-329), one volume at a time.

They are taken over the whole volume on the grid of the truth; a prediction made on another grid is brought back before. The paper
names the scores; how the challenge's own program drew surfaces and pooled slices is not published with it. What is taken here:

- ``msd`` and ``hd``: mean of all distances between the surfaces of both masks, and the largest one; surfaces are border voxels, in
  three dimensions (:mod:`medquant.evaluate.surface_distances`, ``voxels``).
- ``shd`` and ``smd``: each slice (last axis) is thinned in its plane to a skeleton (Zhang and Suen 1984); the skeletons of all
  slices together are one set of points a mask. ``shd`` is the largest distance between the two sets, ``smd`` the larger of the two
  directed medians. A slice that only one mask reaches is thus measured to the nearest slice that both reach, and not left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medquant.evaluate.dice import Overlap
from medquant.evaluate.surface_distances import SurfaceDistances, check_masks, point_distances, surface_distances

BoolArray = NDArray[np.bool_]

GM_CHALLENGE_SCORES: tuple[str, ...] = (
    "dice",
    "msd",
    "hd",
    "shd",
    "smd",
    "sensitivity",
    "specificity",
    "precision",
    "jaccard",
    "conformity",
)
"""Names of the scores, in the order of the paper's table: overlap, distances in mm, rates, and what follows from Dice."""


def gm_challenge_scores(prediction: BoolArray, truth: BoolArray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Score one volume.

    Both masks empty: all scores are NaN, nothing to score. One of them empty: ``dice``, ``jaccard`` are 0 and the four distances NaN.
    ``conformity`` goes to minus infinity as Dice goes to 0; at 0 it is NaN, because no mean could hold it. Means over cases
    therefore leave out the worst ones in these five scores: report next to them how many cases have a Dice of 0.

    Args:
        prediction: True where the tissue was found, shape ``(I, J, K)``, K the slices.
        truth: the same shape, on the same grid.
        spacing_mm: mm between neighbouring voxels along I, J and K.

    Returns:
        The names of :data:`GM_CHALLENGE_SCORES` → values; ``msd``, ``hd``, ``shd`` and ``smd`` in mm, the others without unit.

    Raises:
        InputError: the masks are not boolean, not 3D, or differ in shape.
        GeometryError: the spacing is not three positive lengths.
    """
    check_masks(prediction, truth, spacing_mm)
    hits = int(np.count_nonzero(prediction & truth))
    overlap = Overlap(tp=hits, fp=int(np.count_nonzero(prediction)) - hits, fn=int(np.count_nonzero(truth)) - hits)
    surfaces = surface_distances(prediction, truth, spacing_mm)
    skeletons = skeleton_distances(prediction, truth, spacing_mm)
    return {
        "dice": overlap.dice,
        "msd": surfaces.assd,
        "hd": surfaces.hausdorff,
        "shd": skeletons.hausdorff,
        "smd": skeletons.median,
        "sensitivity": overlap.recall,
        "specificity": specificity(overlap, truth.size),
        "precision": overlap.precision,
        "jaccard": overlap.iou,
        "conformity": conformity(overlap),
    }


def specificity(overlap: Overlap, voxels: int) -> float:
    """``TN / (TN + FP)``: how much of the background was left alone; NaN where there is none, or nothing to score.

    It grows with the field of view: a mask of few voxels in a large image is near 1 whatever the prediction.

    Args:
        overlap: counts of the class.
        voxels: number of voxels of the volume.
    """
    background = voxels - overlap.tp - overlap.fn
    if overlap.empty or background == 0:
        return math.nan
    return (background - overlap.fp) / background


def conformity(overlap: Overlap) -> float:
    """``3 − 2 / Dice = 1 − (FP + FN) / TP`` (Chang et al. 2009, NeuroImage 47:122-135); at most 1, negative below a Dice of 2/3.

    NaN where Dice is 0, its limit there being minus infinity, or NaN.
    """
    if overlap.tp == 0:
        return math.nan
    return 1.0 - (overlap.fp + overlap.fn) / overlap.tp


def skeleton_distances(prediction: BoolArray, truth: BoolArray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances in mm between the skeletons of two masks, thinned slice by slice.

    Args:
        prediction: True inside, shape ``(I, J, K)``, K the slices.
        truth: the same shape.
        spacing_mm: mm between neighbouring voxels along I, J and K.

    Raises:
        InputError: the masks are not boolean, not 3D, or differ in shape.
        GeometryError: the spacing is not three positive lengths.
    """
    check_masks(prediction, truth, spacing_mm)
    return point_distances(_skeletons(prediction), _skeletons(truth), spacing_mm)


def _skeletons(mask: BoolArray) -> BoolArray:
    from skimage.morphology import skeletonize

    thin = np.zeros_like(mask)
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        thin[:, :, k] = skeletonize(mask[:, :, k])
    return thin
