"""Which run of a group is shown, which cases, and the Dice of every case."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from medquant.report.comparison import Group
from medquant.report.record import ReportInput, RunRecord

WORST, TYPICAL = 3, 2


@dataclass(frozen=True)
class ChosenCase:
    """A case to show.

    Args:
        id: of the case.
        why: in words.
        scores: (group label, class name) → Dice of the group's shown run, where there is one.
    """

    id: str
    why: str
    scores: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def dice_of(self, label: str, class_name: str) -> float | None:
        """Dice of a group's shown run in the whole case."""
        return self.scores.get((label, class_name))


def shown_record(asked: ReportInput, group: Group) -> RunRecord:
    """The run in the middle of its group by mean Dice over the classes; of an even number the lower of the two."""
    records = asked.records_of(group)
    ordered = sorted(records, key=lambda record: (_mean_dice(record), record.name))
    return ordered[(len(ordered) - 1) // 2]


def case_dice(group: Group) -> dict[str, dict[str, float]]:
    """Case → class → Dice, the mean over the group's runs that tested it; what has no Dice is left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for document in group.documents:
        cases = document.get("cases")
        for case in cases if isinstance(cases, list) else []:
            scores = case.get("dice") if isinstance(case, Mapping) else None
            for name, score in scores.items() if isinstance(scores, Mapping) else ():
                if isinstance(score, int | float):
                    found.setdefault(str(case.get("id")), {}).setdefault(str(name), []).append(float(score))
    return {case: {name: statistics.fmean(values) for name, values in scores.items()} for case, scores in found.items()}


def worst_first(asked: ReportInput) -> list[str]:
    """The cases by Dice, mean over the classes and groups that have one, lowest first; those without any last."""
    found: dict[str, list[float]] = {}
    for group in asked.groups:
        for case, scores in case_dice(group).items():
            found.setdefault(case, []).extend(scores.values())
    named = [str(case.get("id")) for record in asked.records for case in record.cases]
    means = {case: statistics.fmean(found[case]) if found.get(case) else math.inf for case in dict.fromkeys(named)}
    return sorted(means, key=lambda case: (means[case], case))


def choose_cases(asked: ReportInput) -> list[ChosenCase]:
    """The worst cases, and some from the middle; of folds, cases that one run tested."""
    ordered = worst_first(asked)
    if asked.folds and asked.groups:
        tested = {str(case.get("id")) for case in shown_record(asked, asked.groups[0]).cases}
        ordered = [case for case in ordered if case in tested]
    worst = ordered[:WORST]
    middle = len(ordered) // 2
    typical = [case for case in ordered[max(0, middle - TYPICAL // 2) :] if case not in worst][:TYPICAL]
    scores: dict[str, dict[tuple[str, str], float]] = {}
    for group in asked.groups:
        shown = case_dice(Group(group.label, (shown_record(asked, group).evaluation,)))
        for case, by_class in shown.items():
            scores.setdefault(case, {}).update({(group.label, name): score for name, score in by_class.items()})
    chosen = list(zip(worst, ("worst", "second worst", "third worst"), strict=False))
    chosen += [(case, "from the middle") for case in typical]
    return [ChosenCase(case, why, scores.get(case, {})) for case, why in chosen]


def _mean_dice(record: RunRecord) -> float:
    means = [summary.get("mean") for summary in record.evaluation["dice"].values()]
    known = [mean for mean in means if isinstance(mean, int | float)]
    return statistics.fmean(known) if known else -1.0
