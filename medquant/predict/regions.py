"""The region of a case that a network sees: all of it, what a coarse network finds, or the place of the truth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medquant.data.prepared import Preparation, PreparedCase, Window, prepare_case
from medquant.data.prepared_grid import PreparedGrid
from medquant.data.stored import ArrayCache
from medquant.data.volume import LabelArray
from medquant.deploy.stored_rules import RegionRule
from medquant.errors import CheckpointError, InputError
from medquant.predict.predictors import MaskPredictor
from medquant.predict.windows import predict_window

_ROUNDING = 1e-6
"""A border that rounding put this far beyond a voxel, in voxels, is not beyond it."""


class RegionFinder(ABC):
    """Decides what of a case the network sees."""

    @abstractmethod
    def place(self, case: PreparedCase) -> PreparedCase:
        """The case, cut to its region; where none is found, the whole case."""


class WholeRegion(RegionFinder):
    """Nothing is left out."""

    def place(self, case: PreparedCase) -> PreparedCase:
        """The case as it is."""
        return case


class CoarseRegion(RegionFinder):
    """The box around the largest piece that a coarse network finds in the case at low resolution. Knows nothing of the truth.

    Args:
        predictor: the coarse network; class 1 is what the region is about.
        preparation: how the coarse network takes a case.
        margin_mm: kept around the box, along all three axes.
        minimum: least size of the region along both in-plane axes, pixels of the fine grid (less where the slice is smaller).
        cache: where images at low resolution are kept; None for nowhere.
    """

    def __init__(
        self,
        predictor: MaskPredictor,
        preparation: Preparation,
        margin_mm: float,
        minimum: tuple[int, int],
        cache: ArrayCache | None = None,
    ) -> None:
        self.predictor, self.preparation, self.margin_mm, self.minimum = predictor, preparation, margin_mm, minimum
        self.cache = cache or ArrayCache(None)

    def place(self, case: PreparedCase) -> PreparedCase:
        """The case cut to the box; whole where the coarse network finds nothing."""
        # Without its masks, as for a scan that has none.
        coarse = prepare_case(replace(case.case, mask=None, raters=()), self.preparation, self.cache)
        box = largest_piece(predict_window(coarse, self.predictor))
        return case if box is None else case.with_window(self._window(box, coarse.grid, case.grid))

    def _window(self, box: tuple[slice, slice, slice], coarse: PreparedGrid, fine: PreparedGrid) -> Window:
        starts, stops = [], []
        for axis in (0, 1, 2):
            # Counted in voxel borders: voxel n reaches from n to n + 1, and both grids have the same middle.
            ratio = coarse.spacing_mm[axis] / fine.spacing_mm[axis]
            margin = self.margin_mm / fine.spacing_mm[axis]
            low = (box[axis].start - coarse.shape[axis] / 2) * ratio + fine.shape[axis] / 2 - margin
            high = (box[axis].stop - coarse.shape[axis] / 2) * ratio + fine.shape[axis] / 2 + margin
            first, last = math.floor(low + _ROUNDING), math.ceil(high - _ROUNDING)
            wanted = max(last - first, self.minimum[axis] if axis < 2 else 0)
            start, stop = _inside(first - (wanted - (last - first)) // 2, wanted, fine.shape[axis])
            starts.append(start)
            stops.append(stop)
        return Window((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))


class TruthCentredRegion(RegionFinder):
    """The crop of the 2019 paper: slices that hold the organ, around the middle of the *truth*; scored inside the crop alone.

    The place of the organ is given away and no background slice is shown, so its Dice is of another kind than any other
    Dice and must not be compared with it.

    Args:
        size: of the crop in pixels of the network's grid.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def place(self, case: PreparedCase) -> PreparedCase:
        """The case cut to the crop.

        Raises:
            InputError: the case has no mask, or an empty one.
        """
        if not case.masks:
            raise InputError(f"{case.case.source}: data.region paper_truth_centred needs the truth, which this case has not")
        held = np.asarray(case.masks[0].array, dtype=np.uint8) > 0
        found = np.flatnonzero(held.any(axis=(0, 1)))
        if not len(found):
            raise InputError(f"{case.case.source}: data.region paper_truth_centred: the mask is empty; leave the case out")
        first, last = int(found[0]), int(found[-1])
        plane: NDArray[np.bool_] = np.any(held, axis=2)
        starts, stops = [], []
        for axis in (0, 1):
            places = np.flatnonzero(np.any(plane, axis=1 - axis))
            middle = (int(places[0]) + int(places[-1]) + 1) / 2
            start, stop = _inside(math.floor(middle - self.size[axis] / 2), self.size[axis], case.grid.shape[axis])
            starts.append(start)
            stops.append(stop)
        return case.with_window(Window((starts[0], starts[1], first), (stops[0], stops[1], last + 1)), scored_inside=True)


def largest_piece(mask: LabelArray) -> tuple[slice, slice, slice] | None:
    """Bounding box of the largest connected piece of a mask ``(I, J, K)``, None where it is empty."""
    from scipy.ndimage import find_objects, label

    pieces, count = label(mask > 0)
    if not count:
        return None
    sizes: NDArray[np.int64] = np.bincount(pieces.ravel())[1:]
    i, j, k = find_objects(pieces)[int(np.argmax(sizes))]
    return i, j, k


def region_from_json(
    data: Mapping[str, object], coarse: tuple[MaskPredictor, Preparation] | None, cache: ArrayCache | None = None
) -> RegionFinder:
    """The region rule of a model file.

    Args:
        data: ``kind`` and, for a coarse region, ``margin_mm`` and ``minimum``.
        coarse: the coarse network the file holds, and how it takes a case.
        cache: where images at low resolution are kept; None for nowhere.

    Raises:
        CheckpointError: the rule is not readable, or there is no coarse network.
    """
    rule = RegionRule.from_json(data)
    if rule.minimum is None:
        return WholeRegion()
    if rule.kind == "paper_truth_centred":
        return TruthCentredRegion(rule.minimum)
    if coarse is None:
        raise CheckpointError(f"stored region rule {dict(data)!r}: its coarse network is missing; export the model anew")
    return CoarseRegion(*coarse, rule.margin_mm, rule.minimum, cache)


def _inside(first: int, wanted: int, available: int) -> tuple[int, int]:
    """A stretch of so many voxels, pushed inside ``0 .. available``."""
    if wanted >= available:
        return 0, available
    first = min(max(first, 0), available - wanted)
    return first, first + wanted
