"""The tables of a report; each is shown in the page and written as Markdown and CSV."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medquant.report.case_choice import case_dice, worst_first
from medquant.report.comparison import Group
from medquant.report.record import ReportInput, RunRecord
from medquant.report.summary import dice_text
from medquant.report.tables import Alignment, Table, format_bytes, format_dice

_SIZES = (
    ("parameters", "parameter_bytes"),
    ("paper's count", "paper_bytes"),
    ("float", "float_bytes"),
    ("file", "model_file_bytes"),
    ("activations, peak", "activation_peak_bytes"),
    ("in float, peak", "float_activation_peak_bytes"),
    ("process, peak", "process_peak_bytes"),
)
_LAYER_COLUMNS = (
    "layer",
    "W bits",
    "W exponent",
    "W rounding error",
    "W against twin",
    "W saturated",
    "W zero",
    "A bits",
    "A exponent",
    "A zero point",
    "A saturated",
    "A zero",
    "bytes",
)


@dataclass(frozen=True)
class NamedTable:
    """A table with the name its files carry and its heading."""

    name: str
    heading: str
    table: Table


def summary_table(asked: ReportInput) -> NamedTable:
    """Dice with interval beside file and process, and against the float twin."""
    names = list(_mapping(asked.records[0].evaluation["dice"]))
    columns = ("network", "runs", *(f"Dice {name}{suffix}" for name in names for suffix in ("", ", vs twin")), "file", "process, peak")
    rows = []
    for group in asked.groups:
        cells = [group.label, str(len(group.documents))]
        for name in names:
            losses = group.losses(name)
            cells += [dice_text(group, name), f"{100 * statistics.fmean(losses):+.2f}" if losses else "–"]
        cells += [_size(group.size_bytes(key)) for key in ("model_file_bytes", "process_peak_bytes")]
        rows.append(tuple(cells))
    return NamedTable("summary", "Dice and memory", Table(columns, tuple(rows)))


def memory_table(asked: ReportInput) -> NamedTable:
    """The ledger, a row a group; the largest of its runs."""
    rows = [(group.label, *(_size(group.size_bytes(key)) for _, key in _SIZES)) for group in asked.groups]
    return NamedTable("memory", "Memory", Table(("network", *(title for title, _ in _SIZES)), tuple(rows)))


def layer_table(asked: ReportInput, group: Group) -> Table | None:
    """The layers of a group's shown run, None where there are no statistics of them."""
    details = asked.details.get(group.label)
    if details is None or details.layers is None:
        return None
    memory = _mapping(details.record.evaluation["memory"]).get("layers")
    sizes = {row.get("name"): _row_bytes(row) for row in memory if isinstance(row, Mapping)} if isinstance(memory, list) else {}
    rows = []
    for layer in details.layers["layers"]:
        exponents = layer.get("weight_exponents")
        rows.append(
            (
                str(layer.get("name", "")),
                _whole(layer.get("weight_bits")),
                _range(exponents),
                _small(layer.get("rounding_error")),
                _small(layer.get("twin_error")),
                _percent(layer.get("weight_saturated")),
                _percent(layer.get("weight_zero")),
                _whole(layer.get("activation_bits")),
                _whole(layer.get("activation_exponent")),
                _whole(layer.get("activation_zero_point")),
                _percent(layer.get("activation_saturated")),
                _percent(layer.get("activation_zero")),
                _size(sizes.get(layer.get("name"))),
            )
        )
    return Table(_LAYER_COLUMNS, tuple(rows))


def all_layers_table(asked: ReportInput) -> NamedTable:
    """The layer tables of all groups, one under the other."""
    found = [(group.label, layer_table(asked, group)) for group in asked.groups]
    rows = tuple((label, *row) for label, table in found if table is not None for row in table.rows)
    return NamedTable("layers", "Layers", Table(("network", *_LAYER_COLUMNS), rows, ("left", "left", *("right",) * 12)))


def case_table(asked: ReportInput) -> NamedTable:
    """Dice of every case in every group, the worst cases first."""
    names = list(_mapping(asked.records[0].evaluation["dice"]))
    scores = {group.label: case_dice(group) for group in asked.groups}
    columns = ("case", *(f"{group.label}: {name}" for group in asked.groups for name in names))
    rows = []
    for case in worst_first(asked):
        rows.append((case, *(format_dice(scores[group.label].get(case, {}).get(name)) for group in asked.groups for name in names)))
    return NamedTable("cases", "Cases", Table(columns, tuple(rows)))


def provenance_table(asked: ReportInput) -> NamedTable:
    """Where every run comes from."""
    columns = (
        "run",
        "network",
        "seed",
        "started",
        "finished",
        "device",
        "threads",
        "medquant",
        "torch",
        "git",
        "data",
        "model file SHA-256",
    )
    labels = {id(document): group.label for group in asked.groups for document in group.documents}
    rows = [_provenance_row(record, labels.get(id(record.evaluation), "")) for record in asked.records]
    sides: tuple[Alignment, ...] = tuple("left" for _ in columns)
    return NamedTable("provenance", "Where the runs come from", Table(columns, tuple(rows), sides))


def command_table(asked: ReportInput) -> NamedTable:
    """The command line of every run."""
    rows = tuple((record.name, _text(record.run.get("command"))) for record in asked.records)
    return NamedTable("commands", "Commands", Table(("run", "command"), rows, ("left", "left")))


def settings_tables(asked: ReportInput) -> tuple[Table, Table]:
    """The configuration that all runs share, and what differs between them, a column a run."""
    known = [record for record in asked.records if record.settings]
    flat = [
        {
            f"{section}.{key}": value if isinstance(value, str) else json.dumps(value)
            for section, values in record.settings.items()
            if isinstance(values, Mapping)
            for key, value in values.items()
        }
        for record in known
    ]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    differing = [key for key in keys if len({settings.get(key) for settings in flat}) > 1]
    common = tuple((key, flat[0][key]) for key in keys if key not in differing)
    rows = tuple((key, *(settings.get(key, "–") for settings in flat)) for key in differing)
    sides: tuple[Alignment, ...] = tuple("left" for _ in range(1 + len(known)))
    return Table(("key", "value"), common, ("left", "left")), Table(("key", *(record.name for record in known)), rows, sides)


def _provenance_row(record: RunRecord, label: str) -> tuple[str, ...]:
    run, versions = record.run, _mapping(record.run.get("versions"))
    git = _mapping(run.get("git"))
    commit = f"{_text(git.get('commit'))[:12]}{' (modified)' if git.get('modified') else ''}" if git else ""
    model = _mapping(_mapping(run.get("outputs")).get("model.mq"))
    return (
        record.name,
        label,
        _text(run.get("seed")),
        _text(run.get("started")),
        _text(run.get("finished")),
        _text(run.get("device")),
        _text(run.get("threads")),
        _text(versions.get("medquant")),
        _text(versions.get("torch")),
        commit or "–",
        _text(_mapping(run.get("data")).get("content_sha256"))[:16],
        _text(model.get("sha256")) or "–",
    )


def _row_bytes(row: Mapping[str, Any]) -> int | None:
    parts = [row.get(key) for key in ("weight_bytes", "bias_bytes", "exponent_bytes", "format_bytes")]
    known = [part for part in parts if isinstance(part, int)]
    return sum(known) if known else None


def _size(value: object) -> str:
    return format_bytes(value) if isinstance(value, int) else "–"


def _percent(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    shown = 100.0 * value
    return "0 %" if shown == 0 else "< 0.01 %" if shown < 0.01 else f"{shown:.2f} %"


def _small(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, int | float) else "–"


def _whole(value: object) -> str:
    return str(value) if isinstance(value, int) else "–"


def _range(value: object) -> str:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return "–"
    return str(value[0]) if value[0] == value[1] else f"{value[0]} to {value[1]}"


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
