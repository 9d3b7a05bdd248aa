"""Score a predictor on cases: Dice by class, the dataset's own metrics, baselines, intervals; the document of ``eval.json``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.volume import Case, Dataset, DatasetInfo, LabelArray
from medquant.errors import InputError
from medquant.evaluate.baseline import baseline
from medquant.evaluate.case_metrics import case_metrics
from medquant.evaluate.dice import CaseScore, confusion, score_case
from medquant.evaluate.intervals import Summary, summarise
from medquant.predict.blocks import predict_blocks
from medquant.predict.predictors import MaskPredictor
from medquant.predict.windows import SLICES_AT_ONCE, predict_case

SCHEMA = 1

_GOLDEN = (5**0.5 - 1) / 2
_BY_CLASS_ENDINGS = ("_iou", "_precision", "_recall")


@dataclass(frozen=True)
class Evaluation:
    """Scores and masks of one predictor.

    Args:
        engine: name of what predicted.
        scores: one entry a case.
        masks: case id → predicted class numbers (I, J, K).
        elapsed_s: case id → seconds for prediction, reading and scoring apart.
    """

    engine: str
    scores: tuple[CaseScore, ...]
    masks: Mapping[str, LabelArray]
    elapsed_s: Mapping[str, float]

    def dice_summary(self, name: str) -> Summary:
        """Mean, spread and interval of a class's Dice over the cases."""
        return summarise([score.dice[name] for score in self.scores])


def select_cases(dataset: Dataset, ids: Sequence[str]) -> list[Case]:
    """The cases of these ids, in dataset order.

    Raises:
        InputError: an id is not in the dataset, or none is asked for.
    """
    wanted = set(ids)
    found = [case for case in dataset.cases if case.id in wanted]
    if not found or len(found) != len(wanted):
        missing = sorted(wanted - {case.id for case in found})
        raise InputError(
            f"{dataset.info.name}: {len(wanted)} cases asked for, missing: {', '.join(missing[:5]) or 'all'}; is it the data of the run?"
        )
    return found


def evaluate_cases(
    cases: Sequence[PreparedCase],
    info: DatasetInfo,
    predictor: MaskPredictor,
    progress: Callable[[str], None] | None = None,
    keep_masks: Collection[str] | None = None,
) -> Evaluation:
    """Predict every case and score it on the grid of its file.

    Args:
        cases: with masks.
        info: classes and metrics.
        predictor: what is scored.
        progress: told of every case that is done.
        keep_masks: ids of the cases whose masks are wanted, None for all.

    Raises:
        InputError: a case has no mask.
    """
    scores, masks, elapsed = [], {}, {}
    for case in cases:
        started = time.perf_counter()
        mask = predict_case(case, predictor)
        elapsed[case.id] = time.perf_counter() - started
        if keep_masks is None or case.id in keep_masks:
            masks[case.id] = mask
        scores.append(_score(case, info, mask))
        if progress is not None:
            progress(case.id)
    return Evaluation(predictor.name, tuple(scores), masks, elapsed)


def mean_dice(cases: Sequence[PreparedCase], info: DatasetInfo, predictor: MaskPredictor, max_slices: int) -> dict[str, float]:
    """Mean Dice by scored class on the network's grid: what is watched during training.

    Args:
        cases: with masks on the network's grid.
        info: classes.
        predictor: what is watched.
        max_slices: slices looked at, of all cases together; where there are more, evenly spaced ones are taken. Networks that
            take volumes are shown all.
    """
    found: dict[str, list[float]] = {name: [] for name in info.scored}
    share = max(1, math.ceil(sum(case.slices for case in cases) / max_slices))
    for number, case in enumerate(cases):
        # Every case begins elsewhere, so that no height of the body is left out in all of them.
        first = min(int((0.5 + number * _GOLDEN) % 1 * share), case.slices - 1)
        chosen = range(first, case.slices, share) if predictor.dimensions == 2 else range(case.slices)
        truth = np.stack([case.label(k) for k in chosen])
        if predictor.dimensions == 3:
            prediction = predict_blocks(case, predictor).transpose(2, 0, 1)
        else:
            groups = [chosen[first : first + SLICES_AT_ONCE] for first in range(0, len(chosen), SLICES_AT_ONCE)]
            prediction = np.concatenate([predictor(np.stack([case.image(k) for k in group])) for group in groups])
        overlaps = confusion(prediction, truth, info.classes, info.regions)
        for name in info.scored:
            found[name].append(overlaps[name].dice)
    known = {name: [value for value in values if not math.isnan(value)] for name, values in found.items()}
    return {name: math.fsum(values) / len(values) if values else math.nan for name, values in known.items()}


def scores_document(evaluation: Evaluation, info: DatasetInfo) -> dict[str, object]:
    """The parts of ``eval.json`` that come from one predictor: engine, cases, dice, metrics, seconds_per_case."""
    names = [name for name in evaluation.scores[0].metrics if not name.endswith(_BY_CLASS_ENDINGS)]
    metrics = {name: summarise([score.metrics[name] for score in evaluation.scores]) for name in names}
    return {
        "engine": evaluation.engine,
        "cases": [
            {"id": score.id, "dice": _finite(score.dice), **_finite(score.metrics), "empty": list(score.empty)}
            for score in evaluation.scores
        ],
        "dice": {name: _summary_json(evaluation.dice_summary(name)) for name in info.scored},
        "metrics": {name: _summary_json(summary) for name, summary in metrics.items()},
        "official_metrics": list(info.official_score),
        "seconds_per_case": round(math.fsum(evaluation.elapsed_s.values()) / len(evaluation.elapsed_s), 4),
    }


def baseline_document(cases: Sequence[Case], info: DatasetInfo) -> dict[str, dict[str, float | None]]:
    """Dice of the predictions that are one class everywhere."""
    found = baseline((_truth(case) for case in cases), info.classes, info.regions)
    return {name: _finite({key: value for key, value in scores.items() if key in info.scored}) for name, scores in found.items()}


def _truth(case: Case) -> LabelArray:
    if case.mask is None:
        raise InputError(f"{case.source}: case {case.id} has no mask; only labelled cases can be scored")
    return np.asarray(case.mask.array, dtype=np.uint8)


def _score(case: PreparedCase, info: DatasetInfo, mask: LabelArray) -> CaseScore:
    truth = _truth(case.case)
    if case.scored_inside:
        truth = truth * case.visible()
    metrics = case_metrics(mask, truth, info, case.case.image)
    return score_case(case.id, mask, truth, info.classes, scored=info.scored, metrics=metrics, regions=info.regions)


def _summary_json(summary: Summary) -> dict[str, object]:
    interval = None if summary.interval is None else [round(summary.interval.low, 6), round(summary.interval.high, 6)]
    return {
        "mean": _rounded(summary.mean),
        "std": _rounded(summary.std),
        "interval_95": interval,
        "cases": summary.cases,
        "empty": summary.empty,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 6)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a figure that does not exist is null."""
    return {name: _rounded(value) for name, value in values.items()}
