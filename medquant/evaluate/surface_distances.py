"""Distances in millimetres between the surfaces of a predicted and a true mask: Hausdorff, its 95th percentile, means, NSD.

Two definitions of a surface are in use, and a figure means nothing without its own. Both are here:

- ``voxels``: the voxels of a mask that have a background voxel among their face neighbours. Every such voxel counts the same,
  however long its sides are. MedPy and MONAI's Hausdorff and average distances take it, hence most published figures do.
- ``elements``: the corners between voxels through which the boundary runs, each weighted by the area that marching cubes puts
  there (Nikolov et al. 2018, arXiv:1809.04430, appendix). Where slices are thicker than pixels are wide this is the fairer mean,
  and it is the definition the normalised surface Dice was published with. The corners of a slanted surface form a layer about a
  voxel thick, so that its distances come out up to half a voxel short.

The rules that hold for both:

- Outside the volume there is background. A volume with exactly one axis of length 1 is a slice, and its surface is its outline
  in the plane; any other volume has its surface on all sides, its first and last slice included.
- Both masks empty: there is nothing to score, and every figure is NaN. One of them empty: the distances do not exist and are NaN,
  because an infinite one would spoil every mean and any number put in its place would be invented; NSD is 0. Such a case is a
  failure that no mean of distances shows: whoever reports one must count the cases with :attr:`SurfaceDistances.one_sided`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medquant.errors import GeometryError, InputError
from medquant.evaluate.surface_elements import surface_elements

Surface = Literal["voxels", "elements"]
BoolArray = NDArray[np.bool_]
Lengths = NDArray[np.float64]

# Headers hold spacings as float32, so a distance of "1 mm" may come out as 1.00000002.
_TOLERANCE_SLACK = 1.0 + 1e-6


@dataclass(frozen=True)
class SurfaceDistances:
    """From every point of either surface, the distance to the nearest point of the other one.

    Args:
        to_truth_mm: from the prediction's surface, one a point; infinite where the truth is empty.
        to_prediction_mm: from the truth's surface, one a point; infinite where the prediction is empty.
        prediction_areas: weight of each point in mm² (mm for a slice), or None where all count the same.
        truth_areas: the same for the truth's points.
    """

    to_truth_mm: Lengths
    to_prediction_mm: Lengths
    prediction_areas: Lengths | None = None
    truth_areas: Lengths | None = None

    @property
    def both_empty(self) -> bool:
        """True where neither mask has a surface: nothing to score."""
        return self.to_truth_mm.size == 0 and self.to_prediction_mm.size == 0

    @property
    def one_sided(self) -> bool:
        """True where just one of the masks is empty: distances are NaN, and the case has to be counted as a failure."""
        return (self.to_truth_mm.size == 0) != (self.to_prediction_mm.size == 0)

    @property
    def hausdorff(self) -> float:
        """Largest of all distances, mm."""
        return self.hausdorff_percentile(100.0)

    @property
    def hd95(self) -> float:
        """95 % Hausdorff distance, mm: :meth:`hausdorff_percentile` of 95."""
        return self.hausdorff_percentile(95.0)

    @property
    def assd(self) -> float:
        """Average symmetric surface distance, mm: the mean over the points of both surfaces together."""
        if not self._measurable:
            return math.nan
        return (self._integral(True) + self._integral(False)) / (self._extent(True) + self._extent(False))

    @property
    def masd(self) -> float:
        """Mean of the two directed mean distances, mm; unlike ``assd`` both surfaces count the same, however large they are."""
        if not self._measurable:
            return math.nan
        return (self._integral(True) / self._extent(True) + self._integral(False) / self._extent(False)) / 2.0

    @property
    def median(self) -> float:
        """Larger of the two directed median distances, mm."""
        return self.hausdorff_percentile(50.0)

    def hausdorff_percentile(self, percent: float) -> float:
        """Larger of the two directed percentiles, mm.

        Points that count the same are interpolated between as NumPy and MONAI do; of weighted points it is the smallest distance
        within which ``percent`` of the area lies. (MedPy takes one percentile over both directions together, which is never larger.)

        Raises:
            InputError: ``percent`` is not within 0..100.
        """
        if not 0.0 <= percent <= 100.0:
            raise InputError(f"a percentile lies within 0..100, found {percent}")
        if not self._measurable:
            return math.nan
        sides = ((self.to_truth_mm, self.prediction_areas), (self.to_prediction_mm, self.truth_areas))
        return max(_percentile(distances, areas, percent) for distances, areas in sides)

    def nsd(self, tolerance_mm: float) -> float:
        """Normalised surface Dice: the share of both surfaces that lies within ``tolerance_mm`` of the other one, 0..1.

        NaN where both masks are empty, 0 where one of them is. A distance that exceeds the tolerance by no more than one part in a
        million is within it.

        Raises:
            InputError: the tolerance is negative or no number.
        """
        if not tolerance_mm >= 0.0 or math.isinf(tolerance_mm):
            raise InputError(f"the tolerance of a surface Dice is a length in mm, 0 or more, found {tolerance_mm}")
        if self.both_empty:
            return math.nan
        reach = tolerance_mm * _TOLERANCE_SLACK
        near = sum(_total(self._areas(side)[self._distances(side) <= reach]) for side in (True, False))
        return near / (self._extent(True) + self._extent(False))

    @property
    def _measurable(self) -> bool:
        return self.to_truth_mm.size > 0 and self.to_prediction_mm.size > 0

    def _distances(self, predicted: bool) -> Lengths:
        return self.to_truth_mm if predicted else self.to_prediction_mm

    def _areas(self, predicted: bool) -> Lengths:
        areas = self.prediction_areas if predicted else self.truth_areas
        return np.ones(self._distances(predicted).size) if areas is None else areas

    def _extent(self, predicted: bool) -> float:
        return _total(self._areas(predicted))

    def _integral(self, predicted: bool) -> float:
        return _total(self._areas(predicted) * self._distances(predicted))


def surface_distances(
    prediction: BoolArray, truth: BoolArray, spacing_mm: Sequence[float], *, surface: Surface = "voxels"
) -> SurfaceDistances:
    """Measure the surfaces of two masks against each other.

    Only the box that holds both masks is looked at. Time and memory grow with it: about 15 bytes a voxel, so that a volume of
    512 × 512 × 240 voxels stays below 1.5 GB even where the masks reach into all its corners.

    Args:
        prediction: True inside, shape ``(I, J, K)``.
        truth: the same shape, on the same grid.
        spacing_mm: distance between neighbouring voxels along I, J and K in mm.
        surface: which definition of a surface, see the module.

    Raises:
        InputError: the masks are not boolean, not 3D, or differ in shape.
        GeometryError: the spacing is not three positive lengths.
    """
    check_masks(prediction, truth, spacing_mm)
    (one, two), spacing = _cropped(prediction, truth, tuple(float(length) for length in spacing_mm))
    if surface == "voxels":
        return point_distances(_border(one), _border(two), spacing)
    first, second = surface_elements(one, spacing), surface_elements(two, spacing)
    found = point_distances(first.points, second.points, spacing)
    return SurfaceDistances(found.to_truth_mm, found.to_prediction_mm, first.areas, second.areas)


def point_distances(prediction: BoolArray, truth: BoolArray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances between two sets of grid points, for example skeletons; every point counts the same.

    Args:
        prediction: True at the points, any number of axes.
        truth: the same shape.
        spacing_mm: mm between neighbouring points, one an axis.
    """
    return SurfaceDistances(_directed_mm(prediction, truth, spacing_mm), _directed_mm(truth, prediction, spacing_mm))


def check_masks(prediction: BoolArray, truth: BoolArray, spacing_mm: Sequence[float]) -> None:
    """Refuse masks that cannot be measured against each other.

    Raises:
        InputError: they are not boolean, not 3D, or differ in shape.
        GeometryError: the spacing is not three positive lengths.
    """
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise InputError(f"distances need two masks (i, j, slice) of one shape, found prediction {prediction.shape}, truth {truth.shape}")
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise InputError(f"distances need masks that are True inside, found {prediction.dtype} and {truth.dtype}: pass mask == class")
    if len(spacing_mm) != 3 or not all(math.isfinite(length) and length > 0.0 for length in spacing_mm):
        raise GeometryError(f"distances need a spacing of three positive lengths in mm, found {tuple(spacing_mm)}: check the affine")


def _cropped(prediction: BoolArray, truth: BoolArray, spacing: tuple[float, ...]) -> tuple[tuple[BoolArray, BoolArray], tuple[float, ...]]:
    """The box around both masks; of a slice, its two axes alone."""
    if prediction.shape.count(1) == 1:
        flat = prediction.shape.index(1)
        prediction, truth = prediction.squeeze(flat), truth.squeeze(flat)
        spacing = spacing[:flat] + spacing[flat + 1 :]
    box = []
    for axis in range(truth.ndim):
        others = tuple(other for other in range(truth.ndim) if other != axis)
        held = np.flatnonzero(prediction.any(axis=others) | truth.any(axis=others))
        box.append(slice(int(held[0]), int(held[-1]) + 1) if held.size else slice(0, 0))
    return (prediction[tuple(box)], truth[tuple(box)]), spacing


def _border(mask: BoolArray) -> BoolArray:
    """Voxels with a face neighbour outside the mask; beyond the array is outside."""
    from scipy import ndimage

    return np.asarray(mask & ~ndimage.binary_erosion(mask), dtype=np.bool_)


def _directed_mm(points: BoolArray, targets: BoolArray, spacing_mm: Sequence[float]) -> Lengths:
    """From each point, in index order, the distance to the nearest target; infinite where there is none."""
    from scipy import ndimage

    where = np.nonzero(points)
    if where[0].size == 0 or not targets.any():
        return np.full(where[0].size, np.inf)
    # The transform's own distances would take 32 bytes a voxel more; only the surface needs them.
    nearest = ndimage.distance_transform_edt(~targets, sampling=list(spacing_mm), return_distances=False, return_indices=True)
    squares = np.zeros(where[0].size)
    for axis, length in enumerate(spacing_mm):
        squares += ((where[axis] - nearest[axis][where]) * length) ** 2
    return np.sqrt(squares)


def _percentile(distances: Lengths, areas: Lengths | None, percent: float) -> float:
    if areas is None:
        return float(np.quantile(distances, percent / 100.0))
    if percent == 100.0:  # the largest distance counts even where it has no area
        return float(distances.max())
    return float(np.quantile(distances, percent / 100.0, weights=areas, method="inverted_cdf"))


def _total(values: Lengths) -> float:
    return float(values.sum())
