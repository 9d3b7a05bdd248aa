"""What a prediction that never looks at the image would score: the floor below which a Dice means nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from medquant.evaluate.dice import Overlap, confusion


def baseline(truths: Iterable[NDArray[np.integer]], classes: Mapping[int, str]) -> dict[str, dict[str, float]]:
    """Mean Dice over cases of the predictions that are one class everywhere.

    A case of V voxels, n of them of class c, gives class c a Dice of ``2 n / (V + n)`` when everything is called c, and
    every other class it holds 0. Cases with nothing to score for a class are left out, as everywhere.

    Args:
        truths: class numbers, one array of any shape a case; consumed once.
        classes: class number → name for every value the arrays hold.

    Returns:
        ``all_<class>`` → class name → mean Dice, NaN where no case could be scored.

    Raises:
        InputError: a truth holds a value that ``classes`` does not name.
    """
    names = tuple(classes.values())
    scores: dict[tuple[str, str], list[float]] = {(called, name): [] for called in names for name in names}
    for truth in truths:
        counts = {name: overlap.tp for name, overlap in confusion(truth, truth, classes).items()}
        for called, name in scores:
            value = _constant_overlap(counts[name], truth.size, called == name).dice
            if not math.isnan(value):
                scores[called, name].append(value)
    return {f"all_{called}": {name: _mean(scores[called, name]) for name in names} for called in names}


def _constant_overlap(held: int, voxels: int, called: bool) -> Overlap:
    """Counts of a class with ``held`` voxels when everything, or nothing, is called by its name."""
    return Overlap(tp=held, fp=voxels - held, fn=0) if called else Overlap(tp=0, fp=0, fn=held)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
