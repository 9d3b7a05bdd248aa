"""What came of a sweep as a table: a row a trial, and a row for all seeds of a trial."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medquant.config.sweep_source import SEED
from medquant.data.atomic import write_text
from medquant.report.tables import Table, format_bytes
from medquant.search.ledger import History, read_ledgers
from medquant.search.shared import mapping
from medquant.search.sweep import ListedSweep
from medquant.search.trials import Outcome

_SIZES = (("parameters", "parameter_bytes"), ("file", "model_file_bytes"), ("activations", "activation_peak_bytes"))
_NOTHING = "–"
WAITING = "waiting"


@dataclass(frozen=True)
class Row:
    """A trial in the table.

    Args:
        trial_id: digest of the trial.
        name: its name.
        label: its name without the seed.
        varied: what the sweep varies of it.
        outcome: what came of it, None where it has not ended.
    """

    trial_id: str
    name: str
    label: str
    varied: Mapping[str, Any]
    outcome: Outcome | None

    @property
    def status(self) -> str:
        """One word."""
        return WAITING if self.outcome is None else self.outcome.status

    @property
    def document(self) -> Mapping[str, Any]:
        """Its scores and sizes; empty where there are none."""
        return self.outcome.document if self.outcome is not None and self.outcome.status == "finished" else {}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "id": self.trial_id,
            "name": self.name,
            "varied": dict(self.varied),
            "status": self.status,
            "error": "" if self.outcome is None else self.outcome.error,
            "elapsed_s": None if self.outcome is None else self.outcome.elapsed_s,
            **self.document,
        }


def sweep_rows(out: Path, listed: ListedSweep) -> list[Row]:
    """Every trial of a sweep with what its ledgers, of all shards, say of it."""
    history = read_ledgers(out)
    if listed.written.file.sample is None:
        return [Row(t.id, t.name, point.label, t.varied, history.ended.get(t.id)) for point, t in listed.trials]
    return _sampled_rows(history, listed)


def _sampled_rows(history: History, listed: ListedSweep) -> list[Row]:
    points = {point.name: point for point in listed.points}
    rows: dict[str, Row] = {}
    for asked in history.asked:
        name = history.names.get(asked.trial_id, f"{asked.group} #{asked.number}")
        varied = {**points[asked.group].varied, **asked.parameters} if asked.group in points else dict(asked.parameters)
        rows.setdefault(asked.trial_id, Row(asked.trial_id, name, name, varied, history.ended.get(asked.trial_id)))
    return list(rows.values())


def trial_table(rows: Sequence[Row]) -> Table:
    """A row a trial."""
    keys = list(dict.fromkeys(key for row in rows for key in row.varied))
    classes = _classes(rows)
    columns = ["trial", *keys, *_dice_columns(rows, classes), *(title for title, _ in _SIZES), "status", "seconds", "error"]
    cells = []
    for row in rows:
        scores = [cell for name in classes for cell in _dice_cells(rows, [row], name)]
        sizes = [_size([row], key) for _, key in _SIZES]
        seconds = _NOTHING if row.outcome is None else f"{row.outcome.elapsed_s:.1f}"
        error = "" if row.outcome is None else " ".join(row.outcome.error.split())
        cells.append((row.name, *(_value(row.varied.get(key)) for key in keys), *scores, *sizes, row.status, seconds, error))
    return Table(tuple(columns), tuple(cells))


def seed_table(rows: Sequence[Row]) -> Table | None:
    """A row for the trials that differ in their seed alone: mean ± standard deviation; None where no two do."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps({**row.varied, SEED: None}, sort_keys=True), []).append(row)
    if all(len(group) == 1 for group in groups.values()):
        return None
    classes = _classes(rows)
    columns = ["trials", "n", *_dice_columns(rows, classes), *(title for title, _ in _SIZES), "not finished"]
    cells = []
    for group in groups.values():
        done = [row for row in group if row.document]
        scores = [cell for name in classes for cell in _dice_cells(rows, done, name)]
        cells.append((group[0].label, str(len(done)), *scores, *(_size(done, key) for _, key in _SIZES), str(len(group) - len(done))))
    return Table(tuple(columns), tuple(cells))


def write_tables(out: Path, rows: Sequence[Row]) -> Table:
    """Write ``table.csv``, a row a trial, and ``table.md``, with the seeds joined first; the table to be shown comes back."""
    trials, seeds = trial_table(rows), seed_table(rows)
    write_text(out / "table.csv", trials.to_csv())
    parts = [] if seeds is None else ["Over seeds, mean ± standard deviation:\n", seeds.to_markdown(), "Every trial:\n"]
    write_text(out / "table.md", "\n".join([*parts, trials.to_markdown()]))
    return trials if seeds is None else seeds


def count_by_status(rows: Sequence[Row]) -> dict[str, int]:
    """Status → number of trials."""
    found: dict[str, int] = {}
    for row in rows:
        found[row.status] = found.get(row.status, 0) + 1
    return found


def _classes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in mapping(row.document.get("dice"))))


def _has_twins(rows: Sequence[Row]) -> bool:
    return any(row.document.get("dice_minus_twin") for row in rows)


def _dice_columns(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    return [title for name in classes for title in (f"Dice {name}", *(["vs float"] if _has_twins(rows) else []))]


def _dice_cells(rows: Sequence[Row], shown: Sequence[Row], name: str) -> list[str]:
    cells = [_spread([mapping(row.document.get("dice")).get(name) for row in shown], "")]
    if _has_twins(rows):
        cells.append(_spread([mapping(row.document.get("dice_minus_twin")).get(name) for row in shown], "+"))
    return cells


def _spread(values: Sequence[float | None], sign: str) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return _NOTHING
    mean = f"{statistics.fmean(known):{sign}.2f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2f}"


def _size(rows: Sequence[Row], key: str) -> str:
    known = [value for row in rows if isinstance(value := mapping(row.document.get("memory")).get(key), int)]
    return format_bytes(max(known)) if known else _NOTHING


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
