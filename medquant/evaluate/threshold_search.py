"""V_Rand and V_Info at a threshold of their own, chosen on the validation part and applied to the part that is scored.

The challenge's scripts choose the threshold on the scored slices themselves, with the truth at hand; that is optimistic, and
no user of a network can do it. The figures at the network's own threshold stand beside these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.volume import DatasetInfo, FloatArray, LabelArray
from medquant.errors import InputError
from medquant.evaluate.case_metrics import members
from medquant.evaluate.em_scores import best_over_thresholds, stack_em_score
from medquant.predict.predictors import MaskPredictor

PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The steps of the challenge's scripts, without the two ends, at which everything is one class."""


def search_thresholds(
    watched: Sequence[PreparedCase], scored: Sequence[PreparedCase], info: DatasetInfo, predictor: MaskPredictor
) -> dict[str, object] | None:
    """Scores of the challenge at searched thresholds.

    Args:
        watched: cases the thresholds are chosen on; not among the scored ones.
        scored: cases that are scored.
        info: the dataset; of others than the EM challenge nothing is searched.
        predictor: with one output, whose level decides.

    Returns:
        ``probabilities`` looked at, and for ``v_rand`` and ``v_info`` the chosen ``probability`` and the ``mean`` over the scored
        cases; None where there is nothing to search, or nothing to search on.
    """
    if "v_rand" not in info.official_score or not watched or len(info.classes) != 2:
        return None
    logits = {math.log(share / (1 - share)): share for share in PROBABILITIES}
    sign = 1 if members(info, "cell")[0] == max(info.classes) else -1
    levels, truth = _stack(watched, predictor)
    found = best_over_thresholds(sign * levels, truth == members(info, "cell")[0], sorted(sign * value for value in logits))
    tested, tested_truth = _stack(scored, predictor)
    result: dict[str, object] = {"chosen_on": "validation", "probabilities": list(PROBABILITIES)}
    for name, threshold in (("v_rand", found.threshold), ("v_info", found.info_threshold)):
        score = stack_em_score(sign * tested > threshold, tested_truth == members(info, "cell")[0])
        nearest = min(logits, key=lambda value: abs(value - sign * threshold))
        result[name] = {"probability": logits[nearest], "mean": round(getattr(score, name), 6)}
    return result


def _stack(cases: Sequence[PreparedCase], predictor: MaskPredictor) -> tuple[FloatArray, LabelArray]:
    """Levels and truth of all slices of some cases, (I, J, K)."""
    levels, truth = [], []
    for case in cases:
        if case.case.mask is None:
            raise InputError(f"{case.case.source}: case {case.id} has no mask; only labelled cases can be scored")
        levels += [predictor.levels(images).transpose(1, 2, 0) for images in case.images(4)]
        truth += [np.stack([case.label(k) for k in range(case.slices)], axis=2)]
    return np.concatenate(levels, axis=2), np.concatenate(truth, axis=2)
