"""Whether the searched plan is better than a uniform one of no more bytes, said in one sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medquant.evaluate.intervals import Summary, paired_difference, summarise

Evaluations = Sequence[Mapping[str, Any]]
"""The content of ``eval.json`` of one plan, a seed each, in the order of the seeds."""


@dataclass(frozen=True)
class Comparison:
    """Searched plan minus uniform plan, in points of Dice (mean over the scored classes) on the test part.

    Args:
        over: what the spread and the interval are over: ``seeds`` where there are several, else ``cases``.
        summary: of the paired differences.
        by_cases: the same over cases, each the mean over seeds.
    """

    over: str
    summary: Summary
    by_cases: Summary

    @property
    def beats(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.summary.interval is not None and self.summary.interval.low > 0.0

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {"over": self.over, "points": _summary_json(self.summary), "points_by_cases": _summary_json(self.by_cases)}


def seed_dice(evaluation: Mapping[str, Any]) -> float:
    """Mean Dice over the scored classes of one run, 0 to 1."""
    means = [each["mean"] for each in evaluation["dice"].values() if each["mean"] is not None]
    return math.fsum(means) / len(means) if means else math.nan


def case_dice(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Mean Dice over the scored classes by case; NaN where a case has nothing to score."""
    found = {}
    for case in evaluation["cases"]:
        known = [value for value in case["dice"].values() if value is not None]
        found[str(case["id"])] = math.fsum(known) / len(known) if known else math.nan
    return found


def compare(searched: Evaluations, uniform: Evaluations) -> Comparison:
    """Compare two plans trained with the same seeds and scored on the same cases.

    With several seeds the interval is over seeds, Student's t of the paired differences: what another training would bring. With
    one seed it can only be over cases, and says nothing of another training.
    """
    by_case = [paired_difference(case_dice(b), case_dice(a)).differences for a, b in zip(searched, uniform, strict=True)]
    cases = summarise([100.0 * statistics.fmean(each[name] for each in by_case) for name in by_case[0]])
    if len(searched) == 1:
        return Comparison("cases", cases, cases)
    seeds = summarise([100.0 * (seed_dice(a) - seed_dice(b)) for a, b in zip(searched, uniform, strict=True)])
    return Comparison("seeds", seeds, cases)


def sentence(comparison: Comparison, searched: str, uniform: str, count: int, file: str = "uniform.yaml") -> str:
    """The verdict in words.

    Args:
        comparison: on the test part.
        searched: label and size of the searched plan.
        uniform: label and size of the uniform one.
        count: number of seeds.
        file: that holds the uniform plan, "" where none does.
    """
    summary = comparison.summary
    over = f"{count} seeds" if comparison.over == "seeds" else f"{summary.cases} cases of one seed; other seeds may say otherwise"
    if summary.mean is None:
        return f"{searched} and {uniform} cannot be compared: nothing was scored"
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    interval = summary.interval
    ends = "no interval" if interval is None else f"95 % interval {interval.low:+.2f} to {interval.high:+.2f}"
    figures = f"{summary.mean:+.2f}{spread} points of Dice ({ends}, {over})"
    if comparison.beats:
        return f"{searched} beats {uniform}: {figures}."
    advice = f"; use the uniform plan ({file})" if file else ""
    return f"{searched} does not beat {uniform}: {figures}{advice}."


def _summary_json(summary: Summary) -> dict[str, object]:
    interval = None if summary.interval is None else [round(summary.interval.low, 4), round(summary.interval.high, 4)]
    mean, std = (None if value is None else round(value, 4) for value in (summary.mean, summary.std))
    return {"mean": mean, "std": std, "interval_95": interval, "count": summary.cases}
