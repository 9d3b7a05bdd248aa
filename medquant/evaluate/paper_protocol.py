"""Scores as the 2019 U-Net fixed-point paper's released code has them: slice by slice. Not to be compared with Dice of cases."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.volume import Case, DatasetInfo, LabelArray
from medquant.errors import InputError
from medquant.evaluate.dice import CaseScore, confusion
from medquant.evaluate.evaluation import Evaluation
from medquant.predict.predictors import MaskPredictor

SLICES_TOGETHER = 4
"""Slices that are run together, the paper's batch of validation: with statistics of the batch in batch norm they decide together."""

_Place = tuple[PreparedCase, int]


def evaluate_slices(
    cases: Sequence[PreparedCase],
    info: DatasetInfo,
    predictor: MaskPredictor,
    progress: Callable[[str], None] | None = None,
    keep_masks: Collection[str] | None = None,
) -> Evaluation:
    """Predict every slice and score it by itself, on the network's grid, where the paper scored its crops.

    The Dice of a class is 0 in a slice that neither mask nor prediction holds it in, instead of being left out.

    Args:
        cases: with masks; slices of equal size follow each other in groups of four.
        info: classes.
        predictor: what is scored, of slices.
        progress: told of every case whose last slice is done.
        keep_masks: ids of the cases whose masks are wanted, None for all.

    Returns:
        One score a slice, without further metrics; masks and seconds by case.

    Raises:
        InputError: a case has no mask.
    """
    unlabelled = next((case for case in cases if not case.masks), None)
    if unlabelled is not None:
        raise InputError(f"{unlabelled.case.source}: case {unlabelled.id} has no mask; only labelled cases can be scored")
    scores: list[CaseScore] = []
    masks: dict[str, LabelArray] = {}
    elapsed = {case.id: 0.0 for case in cases}
    for group in _groups(cases):
        started = time.perf_counter()
        predictions = predictor(np.stack([case.image(k) for case, k in group]))
        seconds = (time.perf_counter() - started) / len(group)
        for (case, k), prediction in zip(group, predictions, strict=True):
            elapsed[case.id] += seconds
            if keep_masks is None or case.id in keep_masks:
                case.place(masks.setdefault(case.id, case.canvas()), k, prediction[:, :, None])
            scores.append(_score(case, k, prediction, info))
            if progress is not None and k == case.slices - 1:
                progress(case.id)
    return Evaluation(predictor.name, tuple(scores), masks, elapsed)


def slice_id(case: Case, k: int) -> str:
    """What the score of a slice is called."""
    return f"{case.id} slice {k}"


def _groups(cases: Sequence[PreparedCase]) -> Iterator[list[_Place]]:
    """All slices in their order, up to four of one size together."""
    group: list[_Place] = []
    for place in ((case, k) for case in cases for k in range(case.slices)):
        if group and (len(group) == SLICES_TOGETHER or group[0][0].window.shape[:2] != place[0].window.shape[:2]):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _score(case: PreparedCase, k: int, prediction: LabelArray, info: DatasetInfo) -> CaseScore:
    overlaps = confusion(prediction, case.label(k), info.classes, info.regions)
    dice = {name: overlaps[name].dice for name in info.scored}
    return CaseScore(
        id=case.id if case.slices == 1 else slice_id(case.case, k),
        dice={name: 0.0 if math.isnan(value) else value for name, value in dice.items()},
        empty=tuple(name for name in info.scored if overlaps[name].empty),
    )
