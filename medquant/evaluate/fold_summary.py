"""One table from the test results of several folds: mean, spread and extremes over all cases, as Pancreas-CT papers print them.

In cross-validation every case is tested once, by the fold that did not train on it. The table is over cases, so a fold with more
cases weighs more; the mean of each fold stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from medquant.errors import InputError
from medquant.evaluate.intervals import summarise

SCHEMA = 1
_DIGITS = 6


def fold_table(documents: Sequence[Mapping[str, object]], names: Sequence[str] = ()) -> dict[str, object]:
    """Join the ``eval.json`` documents of the folds.

    A case whose Dice is null held the class neither in truth nor in prediction: it is in no figure, and counted as ``empty``.

    Args:
        documents: one a fold, each with ``cases``: a list of ``{"id": ..., "dice": {class: number or null}}``.
        names: what to call the documents in messages and in the table (file names, say); ``fold 1`` and so on by default.

    Returns:
        JSON-able: ``schema``; ``dice``: class → ``mean``, ``std`` (sample, n − 1), ``min``, ``max``, ``cases``, ``empty`` over the
        cases of all folds; ``folds``: one entry a document with ``name``, ``cases`` and ``dice``: class → mean. Figures that do not
        exist are null.

    Raises:
        InputError: there is no document or no case; a document is not of this form; folds score different classes; or a case id
            stands twice.
    """
    labels = list(names) or [f"fold {number}" for number in range(1, len(documents) + 1)]
    if not documents or len(labels) != len(documents):
        raise InputError(f"a table of folds needs documents and a name for each, found {len(documents)} documents and {len(labels)} names")
    folds = [_cases(document, label) for document, label in zip(documents, labels, strict=True)]
    _check_folds(folds, labels)
    classes = list(next(iter(folds[0].values())))
    return {
        "schema": SCHEMA,
        "dice": {name: _figures([dice[name] for fold in folds for dice in fold.values()]) for name in classes},
        "folds": [
            {"name": label, "cases": len(fold), "dice": {name: _rounded(_mean([dice[name] for dice in fold.values()])) for name in classes}}
            for label, fold in zip(labels, folds, strict=True)
        ],
    }


def _cases(document: Mapping[str, object], label: str) -> dict[str, dict[str, float]]:
    """Case id → class → Dice, NaN for null."""
    entries = document.get("cases")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{label}: found no list of cases, expected an eval.json of a test part; evaluate the run again")
    found: dict[str, dict[str, float]] = {}
    for position, entry in enumerate(entries):
        case_id, dice = (entry.get("id"), entry.get("dice")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(case_id, str) or not isinstance(dice, Mapping) or not dice:
            raise InputError(f'{label}: entry {position} of cases is not {{"id": ..., "dice": {{class: number}}}}; evaluate the run again')
        if case_id in found:
            raise InputError(f"{label}: case {case_id} stands twice; a case is tested once")
        found[case_id] = {str(name): _dice_value(value, f"{label}: case {case_id}") for name, value in dice.items()}
    return found


def _dice_value(value: object, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise InputError(f"{where}: found the Dice {value!r}, expected a number from 0 to 1 or null")
    return float(value)


def _check_folds(folds: Sequence[Mapping[str, Mapping[str, float]]], labels: Sequence[str]) -> None:
    tested_by: dict[str, str] = {}
    classes = list(next(iter(folds[0].values())))
    for fold, label in zip(folds, labels, strict=True):
        for case_id, dice in fold.items():
            if case_id in tested_by:
                raise InputError(
                    f"case {case_id} is tested by {tested_by[case_id]} and by {label}; each case belongs to one fold: give every fold once"
                )
            tested_by[case_id] = label
            if set(dice) != set(classes):
                raise InputError(f"{label}: case {case_id} scores {', '.join(dice)}, {labels[0]} scores {', '.join(classes)}")


def _figures(values: Sequence[float]) -> dict[str, float | int | None]:
    summary = summarise(values)
    scored = [value for value in values if not math.isnan(value)]
    return {
        "mean": _rounded(summary.mean),
        "std": _rounded(summary.std),
        "min": _rounded(min(scored, default=None)),
        "max": _rounded(max(scored, default=None)),
        "cases": summary.cases,
        "empty": summary.empty,
    }


def _mean(values: Sequence[float]) -> float | None:
    return summarise(values).mean


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
