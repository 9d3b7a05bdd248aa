"""Overlap of a predicted mask with the truth: counts per class, and Dice, IoU, precision and recall from them.

Counts are taken over a whole case, all slices together, which is the unit every challenge reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medquant.errors import InputError

Regions = Mapping[str, tuple[int, ...]]
"""Region name → the class numbers that are joined in it, for example ``{"cord": (1, 2)}``."""

NO_REGIONS: Regions = MappingProxyType({})

_CHUNK_VOXELS = 1 << 22  # bounds the index arrays of a large volume to some tens of megabytes


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one class, and the ratios that follow from them.

    The rule for empty masks: where truth and prediction are both empty, every ratio is NaN, meaning "nothing to score";
    averages leave such cases out and count them. Where only the truth is empty, Dice and IoU are 0. A ratio whose own
    denominator is 0 (precision without a prediction, recall without a truth) is NaN.

    Args:
        tp: voxels of the class in truth and prediction.
        fp: voxels of the class in the prediction alone.
        fn: voxels of the class in the truth alone.
    """

    tp: int
    fp: int
    fn: int

    @property
    def empty(self) -> bool:
        """True where neither truth nor prediction holds the class."""
        return self.tp + self.fp + self.fn == 0

    @property
    def dice(self) -> float:
        """``2 tp / (2 tp + fp + fn)``."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """``tp / (tp + fp + fn)``, the Jaccard index."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """``tp / (tp + fp)``: how much of the prediction is right."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """``tp / (tp + fn)``: how much of the truth was found (sensitivity)."""
        return _ratio(self.tp, self.tp + self.fn)


@dataclass(frozen=True)
class CaseScore:
    """The scores of one case.

    Args:
        id: the case's id in its dataset.
        dice: class or region name → Dice in 0..1, NaN where it is in neither mask.
        metrics: further figures by name, for example ``v_rand`` or ``cell_iou``; may be empty.
        empty: names of the classes and regions that are in neither mask, hence in no average.
    """

    id: str
    dice: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    empty: tuple[str, ...] = ()


def confusion(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], classes: Mapping[int, str], regions: Regions = NO_REGIONS
) -> dict[str, Overlap]:
    """Count, in one pass, where two masks agree and differ.

    Args:
        prediction: class numbers, any shape.
        truth: class numbers, the same shape.
        classes: class number → name; must name every value either mask holds.
        regions: classes that are also counted as one. A voxel of a region is right whichever of its classes it was given.

    Returns:
        Class name → counts, in the order of ``classes``, then region name → counts, in the order of ``regions``.

    Raises:
        InputError: the masks differ in shape, are not whole numbers, or hold a value that ``classes`` does not name; or a region
            holds no class, an unknown one, one twice, or has the name of a class.
    """
    check_regions(regions, classes)
    if prediction.shape != truth.shape:
        raise InputError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape: score both on the grid of the truth")
    count = len(classes)
    table = np.zeros(count * count, dtype=np.int64)
    flat_prediction, flat_truth = prediction.reshape(-1), truth.reshape(-1)
    for start in range(0, flat_truth.size, _CHUNK_VOXELS):
        part = slice(start, start + _CHUNK_VOXELS)
        rows = _class_index(flat_truth[part], classes, "truth")
        columns = _class_index(flat_prediction[part], classes, "prediction")
        table += np.bincount(rows * count + columns, minlength=count * count)
    square = table.reshape(count, count)
    place = {number: position for position, number in enumerate(classes)}
    members = {name: [position] for position, name in enumerate(classes.values())}
    members |= {name: [place[number] for number in numbers] for name, numbers in regions.items()}
    return {name: _joined(square, positions) for name, positions in members.items()}


def check_regions(regions: Regions, classes: Mapping[int, str]) -> None:
    """Refuse regions that do not fit the classes.

    Raises:
        InputError: a region holds no class, an unknown one, one twice, or has the name of a class.
    """
    for name, numbers in regions.items():
        if name in classes.values():
            raise InputError(f"region {name!r} has the name of a class; give it another")
        if not numbers or len(set(numbers)) != len(numbers) or not set(numbers) <= set(classes):
            known = ", ".join(f"{number} = {label}" for number, label in classes.items())
            raise InputError(f"region {name!r} joins {tuple(numbers)}; expected class numbers, each once ({known})")


def dice(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], classes: Mapping[int, str], regions: Regions = NO_REGIONS
) -> dict[str, float]:
    """Dice of every class and region; the rule for empty masks stands in :class:`Overlap`.

    Args:
        prediction: class numbers, any shape.
        truth: class numbers, the same shape.
        classes: class number → name.
        regions: as :func:`confusion`.

    Raises:
        InputError: as :func:`confusion`.
    """
    return {name: counts.dice for name, counts in confusion(prediction, truth, classes, regions).items()}


def score_case(
    case_id: str,
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    classes: Mapping[int, str],
    *,
    scored: Iterable[str] | None = None,
    metrics: Mapping[str, float] | None = None,
    regions: Regions = NO_REGIONS,
) -> CaseScore:
    """Score one case: Dice per class, with IoU, precision and recall as ``<class>_iou`` and so on among the metrics.

    Args:
        case_id: id of the case.
        prediction: class numbers ``(I, J, K)``.
        truth: class numbers, the same shape.
        classes: class number → name.
        scored: the names of classes and regions to report, all of them by default.
        metrics: the dataset's own metrics, added to the result as they are.
        regions: as :func:`confusion`; a region is scored like a class, under its own name.

    Raises:
        InputError: as :func:`confusion`, or a scored name is neither a class nor a region.
    """
    overlaps = confusion(prediction, truth, classes, regions)
    names = tuple(overlaps) if scored is None else tuple(scored)
    unknown = [name for name in names if name not in overlaps]
    if unknown:
        raise InputError(f"{case_id}: cannot score {', '.join(unknown)}: the classes and regions are {', '.join(overlaps)}")
    figures = dict(metrics or {})
    for name in names:
        counts = overlaps[name]
        figures |= {f"{name}_iou": counts.iou, f"{name}_precision": counts.precision, f"{name}_recall": counts.recall}
    return CaseScore(
        id=case_id,
        dice={name: overlaps[name].dice for name in names},
        metrics=figures,
        empty=tuple(name for name in names if overlaps[name].empty),
    )


def _joined(square: NDArray[np.int64], positions: list[int]) -> Overlap:
    """Counts of the classes at these positions taken as one, from the table (truth, prediction)."""
    hits = int(square[np.ix_(positions, positions)].sum())
    return Overlap(tp=hits, fp=int(square[:, positions].sum()) - hits, fn=int(square[positions].sum()) - hits)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _class_index(values: NDArray[np.integer], classes: Mapping[int, str], what: str) -> NDArray[np.int64]:
    """Position in ``classes`` of each value of a flat mask."""
    if values.dtype.kind not in "iub":
        raise InputError(f"the {what} mask holds {values.dtype} values; expected whole class numbers")
    numbers = np.asarray(list(classes), dtype=np.int64)
    order = np.argsort(numbers)
    wide = values.astype(np.int64)
    place = np.minimum(np.searchsorted(numbers[order], wide), len(numbers) - 1)
    position: NDArray[np.int64] = order[place]
    strange = numbers[position] != wide
    if strange.any():
        found = ", ".join(str(value) for value in np.unique(wide[strange])[:5])
        known = ", ".join(f"{number} = {name}" for number, name in classes.items())
        raise InputError(f"the {what} mask holds class {found}, which is not among the classes ({known})")
    return position
