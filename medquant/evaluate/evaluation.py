"""Score a predictor on cases: Dice by class, the dataset's own metrics, baselines, intervals; the document of ``eval.json``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medquant.data.normalise import Normalisation
from medquant.data.patches import whole_slices
from medquant.data.volume import Case, Dataset, DatasetInfo, LabelArray
from medquant.errors import InputError
from medquant.evaluate.baseline import baseline
from medquant.evaluate.dice import CaseScore, confusion, score_case
from medquant.evaluate.em_scores import stack_em_score
from medquant.evaluate.intervals import Summary, summarise
from medquant.evaluate.predictors import MaskPredictor

SCHEMA = 1


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


def predict_case(case: Case, predictor: MaskPredictor, normalisation: Normalisation) -> LabelArray:
    """The predicted mask of a case, (I, J, K)."""
    images, _ = whole_slices(case, normalisation)
    return np.ascontiguousarray(predictor(images.numpy()).transpose(1, 2, 0))


def evaluate_cases(
    cases: Sequence[Case],
    info: DatasetInfo,
    predictor: MaskPredictor,
    normalisation: Normalisation,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Predict and score every case.

    Raises:
        InputError: a case has no mask.
    """
    scores, masks, elapsed = [], {}, {}
    for case in cases:
        started = time.perf_counter()
        mask = predict_case(case, predictor, normalisation)
        elapsed[case.id] = time.perf_counter() - started
        masks[case.id] = mask
        scores.append(_score(case, info, mask))
        if progress is not None:
            progress(case.id)
    return Evaluation(predictor.name, tuple(scores), masks, elapsed)


def mean_dice(cases: Sequence[Case], info: DatasetInfo, predictor: MaskPredictor, normalisation: Normalisation) -> dict[str, float]:
    """Mean Dice by scored class, without the dataset's own metrics: what is watched during training."""
    found: dict[str, list[float]] = {name: [] for name in info.scored}
    for case in cases:
        overlaps = confusion(predict_case(case, predictor, normalisation), _truth(case), info.classes)
        for name in info.scored:
            found[name].append(overlaps[name].dice)
    known = {name: [value for value in values if not math.isnan(value)] for name, values in found.items()}
    return {name: math.fsum(values) / len(values) if values else math.nan for name, values in known.items()}


def scores_document(evaluation: Evaluation, info: DatasetInfo) -> dict[str, object]:
    """The parts of ``eval.json`` that come from one predictor: engine, cases, dice, metrics, seconds_per_case."""
    metrics = {name: summarise([score.metrics[name] for score in evaluation.scores]) for name in info.official_score}
    return {
        "engine": evaluation.engine,
        "cases": [
            {"id": score.id, "dice": _finite(score.dice), **_finite(score.metrics), "empty": list(score.empty)}
            for score in evaluation.scores
        ],
        "dice": {name: _summary_json(evaluation.dice_summary(name)) for name in info.scored},
        "metrics": {name: _summary_json(summary) for name, summary in metrics.items()},
        "seconds_per_case": round(math.fsum(evaluation.elapsed_s.values()) / len(evaluation.elapsed_s), 4),
    }


def baseline_document(cases: Sequence[Case], info: DatasetInfo) -> dict[str, dict[str, float | None]]:
    """Dice of the predictions that are one class everywhere."""
    found = baseline((_truth(case) for case in cases), info.classes)
    return {name: _finite({key: value for key, value in scores.items() if key in info.scored}) for name, scores in found.items()}


def _truth(case: Case) -> LabelArray:
    if case.mask is None:
        raise InputError(f"{case.source}: case {case.id} has no mask; only labelled cases can be scored")
    return case.mask.array.astype(np.uint8)


def _score(case: Case, info: DatasetInfo, mask: LabelArray) -> CaseScore:
    truth = _truth(case)
    metrics: dict[str, float] = {}
    if "v_rand" in info.official_score:
        cell = next(number for number, name in info.classes.items() if name == "cell")
        found = stack_em_score(mask == cell, truth == cell)
        metrics = {"v_rand": found.v_rand, "v_info": found.v_info}
    return score_case(case.id, mask, truth, info.classes, scored=info.scored, metrics=metrics)


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
