"""Runs that tested different cases of one data set, as folds or held-out sites: one table over all their cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medquant.errors import InputError
from medquant.evaluate.fold_summary import fold_table
from medquant.report.comparison import FLOAT, Group, refuse_mixed_networks, run_label
from medquant.report.tables import Table, format_bytes

_TWIN = "float twin of "


def are_folds(documents: Sequence[Mapping[str, object]]) -> bool:
    """Whether some runs were tested on other cases of the same data than the first."""
    same_data = len({str(_mapping(document["data"])["content_sha256"]) for document in documents}) == 1
    return same_data and len({str(_mapping(document["split"])["cases"]) for document in documents}) > 1


def folds_table(documents: Sequence[Mapping[str, object]]) -> tuple[Table, dict[str, object]]:
    """A row a bit width and method, and one for the float twins where every run has one: mean, deviation and range of Dice over all cases.

    Returns:
        The table, and the figures behind it by row label.

    Raises:
        InputError: runs of different networks, a case that two runs of one bit width tested, or different classes.
    """
    refuse_mixed_networks(documents)
    groups: dict[str, list[Mapping[str, object]]] = {}
    for document in documents:
        groups.setdefault(run_label(document), []).append(document)
    named = {label: (group, [document for document in group]) for label, group in groups.items()}
    for label, group in groups.items():
        twins = [_mapping(document.get("float_twin") or {}) for document in group]
        if all(twins):
            named[f"{_TWIN}{label}"] = (group, twins)
    classes = list(_mapping(documents[0]["dice"]))
    rows = []
    figures: dict[str, object] = {}
    for label, (group, scored) in named.items():
        names = [_fold_name(document) for document in group]
        found = fold_table(scored, names if len(set(names)) == len(names) else ())
        figures[label] = found
        summary = _mapping(found["dice"])
        sizes = [
            int(str(_mapping(document["memory"])["float_bytes" if label == FLOAT or label.startswith(_TWIN) else "parameter_bytes"]))
            for document in group
        ]
        cells = [_range(_mapping(summary[name])) for name in classes]
        cases = str(sum(int(str(fold["cases"])) for fold in _list(found["folds"])))
        rows.append((label, str(len(group)), cases, *cells, format_bytes(max(sizes))))
    columns = ("network", "folds", "cases", *(f"Dice {name} mean ± std (min–max)" for name in classes), "parameters")
    return Table(columns, tuple(rows)), figures


def fold_groups(documents: Sequence[Mapping[str, object]]) -> list[Group]:
    """The runs of folds by bit width and method, in the order of :func:`folds_table`."""
    groups: dict[str, list[Mapping[str, object]]] = {}
    for document in documents:
        groups.setdefault(run_label(document), []).append(document)
    return [Group(label, tuple(group)) for label, group in groups.items()]


def _fold_name(document: Mapping[str, object]) -> str:
    rule = str(_mapping(document["split"]).get("rule", ""))
    return rule.partition(" held out")[0] or "fold"


def _range(summary: Mapping[str, object]) -> str:
    mean, spread, low, high = (summary.get(key) for key in ("mean", "std", "min", "max"))
    if not isinstance(mean, float | int) or not isinstance(low, float | int) or not isinstance(high, float | int):
        return "–"
    deviation = f" ± {100 * spread:.2f}" if isinstance(spread, float | int) else ""
    return f"{100 * mean:.2f}{deviation} ({100 * low:.1f}–{100 * high:.1f})"


def _list(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, list):
        raise InputError("a table of folds has no list of folds")
    return value


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
