"""What a prediction that never looks at the image would score: the floor below which a Dice means nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from medquant.evaluate.dice import NO_REGIONS, Overlap, Regions, check_regions, confusion


def baseline(
    truths: Iterable[NDArray[np.integer]], classes: Mapping[int, str], regions: Regions = NO_REGIONS
) -> dict[str, dict[str, float]]:
    """Mean Dice over cases of the predictions that are one class everywhere.

    A case of V voxels, n of them of class c, gives class c a Dice of ``2 n / (V + n)`` when everything is called c, and
    every other class it holds 0. Cases with nothing to score for a class are left out, as everywhere.

    Args:
        truths: class numbers, one array of any shape a case; consumed once.
        classes: class number → name for every value the arrays hold.
        regions: classes also scored as one (:func:`medquant.evaluate.dice.confusion`); calling everything a class calls everything
            the regions it belongs to.

    Returns:
        ``all_<class>`` → class or region name → mean Dice, NaN where no case could be scored.

    Raises:
        InputError: a truth holds a value that ``classes`` does not name, or a region does not fit the classes.
    """
    check_regions(regions, classes)
    called_by = {name: {name} for name in classes.values()}
    called_by |= {name: {classes[number] for number in numbers} for name, numbers in regions.items()}
    scores: dict[tuple[str, str], list[float]] = {(called, name): [] for called in classes.values() for name in called_by}
    for truth in truths:
        counts = {name: overlap.tp for name, overlap in confusion(truth, truth, classes, regions).items()}
        for called, name in scores:
            value = _constant_overlap(counts[name], truth.size, called in called_by[name]).dice
            if not math.isnan(value):
                scores[called, name].append(value)
    return {f"all_{called}": {name: _mean(scores[called, name]) for name in called_by} for called in classes.values()}


def _constant_overlap(held: int, voxels: int, called: bool) -> Overlap:
    """Counts of a class with ``held`` voxels when everything, or nothing, is called by its name."""
    return Overlap(tp=held, fp=voxels - held, fn=0) if called else Overlap(tp=0, fp=0, fn=held)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
