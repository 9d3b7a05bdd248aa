"""The report: one HTML page that loads nothing and runs nothing, and its tables as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medquant.data.atomic import write_text
from medquant.report.case_choice import shown_record
from medquant.report.case_images import CaseImages, case_images, picture_uri
from medquant.report.comparison import Group
from medquant.report.overlay import FALSE_RGB, MISSED_RGB, RIGHT_RGB
from medquant.report.pareto import pareto_front
from medquant.report.plots import DicePoint, memory_figure, training_figure
from medquant.report.record import ReportInput, RunDetails, ShownCase
from medquant.report.report_tables import (
    NamedTable,
    all_layers_table,
    case_table,
    command_table,
    layer_table,
    memory_table,
    provenance_table,
    settings_tables,
    summary_table,
)
from medquant.report.summary import (
    baseline_sentence,
    baselines,
    dice_interval,
    group_sentences,
    headline,
    interval_note,
    limits,
    network_text,
    tested_on,
)
from medquant.report.svg import bar_paths, inline_svg, short_digest
from medquant.report.tables import Table, format_bytes, format_dice, plain_markdown

MOST_CASE_ROWS = 200
MOST_IMAGE_BYTES = 1_500_000
"""Of all case pictures together, as they stand in the page."""
_NAMED_POINTS = 8
_PANEL_INCHES = (5.2, 4.0)
_CURVE_INCHES = (5.2, 5.6)


@dataclass(frozen=True)
class Report:
    """A finished report."""

    html: str
    markdown: str
    tables: tuple[NamedTable, ...]

    def write(self, page: Path) -> list[Path]:
        """Write the page, and beside it the tables: ``STEM.md`` and ``STEM-TABLE.csv``.

        Returns:
            All files.

        Raises:
            UsageError: the folder is missing or cannot be written to.
        """
        files = {page: self.html, page.with_suffix(".md"): self.markdown}
        files |= {page.with_name(f"{page.stem}-{each.name}.csv"): each.table.to_csv() for each in self.tables}
        for path, text in files.items():
            write_text(path, text)
        return list(files)


def make_report(asked: ReportInput) -> Report:
    """Draw and write out everything; the same input gives the same bytes."""
    tables = [summary_table(asked), memory_table(asked), case_table(asked), all_layers_table(asked)]
    tables += [provenance_table(asked), command_table(asked)]
    common, differing = settings_tables(asked)
    tables += [NamedTable("settings", "Configuration: the same in all", common)] if common.rows else []
    tables += [NamedTable("differing", "Configuration: what differs", differing)] if differing.rows else []
    environment = Environment(loader=PackageLoader("medquant.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["dice"] = format_dice
    html = environment.get_template("report.html").render(_context(asked))
    return Report(html, _markdown(asked, tables), tuple(tables))


def _context(asked: ReportInput) -> dict[str, Any]:
    cases = case_table(asked).table
    shown_cases = Table(cases.columns, cases.rows[:MOST_CASE_ROWS])
    pictures, left_out = _pictures(asked)
    overviews, overviews_left_out = _overviews(asked)
    common, differing = settings_tables(asked)
    cards = {_card(record.settings) for record in asked.records}
    return {
        "title": asked.title,
        "headline": headline(asked),
        "tested_on": tested_on(asked),
        "sentences": group_sentences(asked),
        "interval_note": interval_note(asked),
        "folds": asked.folds,
        "baseline": baseline_sentence(asked),
        "notes": asked.notes,
        "summary": summary_table(asked).table,
        "figures": _memory_figures(asked),
        "size_note": _size_note(asked),
        "numbers": _point_names(asked) if len(asked.groups) > _NAMED_POINTS else {},
        "memory": memory_table(asked).table,
        "groups": [_group(asked, group) for group in asked.groups],
        "cases": shown_cases,
        "case_rows_left_out": len(cases.rows) - len(shown_cases.rows),
        "pictures": pictures,
        "pictures_left_out": left_out,
        "missing": _missing_cases(asked),
        "overviews": overviews,
        "overviews_left_out": overviews_left_out,
        "colours": {name: "#" + bytes(rgb).hex() for name, rgb in (("right", RIGHT_RGB), ("missed", MISSED_RGB), ("false", FALSE_RGB))},
        "provenance": provenance_table(asked).table,
        "commands": command_table(asked).table,
        "differing": differing,
        "common": common,
        "splits": _splits(asked),
        "cards": sorted(cards),
        "limits": limits(asked),
    }


def _memory_figures(asked: ReportInput) -> list[dict[str, Any]]:
    """Dice against size, one figure a class; of a file where every group has one."""
    numbers = _point_names(asked)
    floors = baselines(asked)
    found = []
    for index, name in enumerate(_mapping(asked.records[0].evaluation["dice"])):
        points = []
        for group in asked.groups:
            scores, size = group.scores("dice", name), size_of(group)
            if scores and size:
                ends = dice_interval(group, name) or (None, None)
                points.append(DicePoint(numbers[group.label], size, sum(scores) / len(scores), ends[0], ends[1], name))
        if not points:
            continue
        front = [points[each] for each in pareto_front([(point.size_bytes, point.dice) for point in points])]
        axis = "file" if all(group.size_bytes("model_file_bytes") for group in asked.groups) else "file or parameters"
        # The trivial baseline is far below all points as a rule: drawn, it would press them into one line.
        figure = memory_figure(points, size_name=axis, fronts={name: front}, panel_inches=_PANEL_INCHES)
        label = f"Mean Dice of {name} against size; " + "; ".join(
            f"{point.label}: {100 * point.dice:.2f} at {format_bytes(point.size_bytes)}" for point in points
        )
        floor = f"{100 * floors[name]:.2f}" if floors.get(name) else ""
        svg = inline_svg(figure, f"memory-{index}", label)
        found.append({"svg": svg, "class_name": name, "front": [point.label for point in front], "floor": floor})
    return found


def size_of(group: Group) -> int | None:
    """What a group's point stands at: bytes of its file, of its parameters where it has none."""
    return group.size_bytes("model_file_bytes") or group.size_bytes("parameter_bytes")


def _size_note(asked: ReportInput) -> str:
    without = [group.label for group in asked.groups if not group.size_bytes("model_file_bytes")]
    note = "Sizes are those of the files: the packed model file, of float networks the weights as they are saved."
    return f"{note} Without a file, bytes of the parameters at their stored width: {', '.join(without)}." if without else note


def _point_names(asked: ReportInput) -> dict[str, str]:
    """Labels, or numbers where there are too many to stand in a picture."""
    many = len(asked.groups) > _NAMED_POINTS
    return {group.label: str(number) if many else group.label for number, group in enumerate(asked.groups, start=1)}


def _group(asked: ReportInput, group: Group) -> dict[str, Any]:
    record = shown_record(asked, group)
    details = asked.details.get(group.label) or RunDetails(record, layers_missing="not asked for")
    anchor = short_digest(group.label)
    curves = None
    if record.epochs:
        figure = training_figure(record.epochs, _CURVE_INCHES)
        curves = inline_svg(figure, f"curves-{anchor}", f"Training loss, validation Dice and learning rate by epoch of {record.name}")
    return {
        "label": group.label,
        "anchor": anchor,
        "shown": record.name,
        "runs": [each.name for each in asked.records_of(group)],
        "network": network_text(record),
        "curves": curves,
        "layers": layer_table(asked, group),
        "layers_missing": details.layers_missing,
        "activation_images": (details.layers or {}).get("activation_images", 0),
        "histograms": _histograms(details),
    }


def _histograms(details: RunDetails) -> list[dict[str, Any]]:
    found = []
    for layer in (details.layers or {}).get("layers", []):
        counts = layer.get("histogram")
        if not isinstance(counts, Mapping):
            continue
        before, after = bar_paths(_counts(counts.get("before")), _counts(counts.get("after")))
        found.append(
            {
                "layer": str(layer.get("name", "")),
                "bits": layer.get("weight_bits"),
                "limit": f"{float(counts.get('limit', 0.0)):.2g}",
                "before": before,
                "after": after,
                "before_name": str(counts.get("before_name") or ""),
            }
        )
    return found


def _counts(value: object) -> list[int] | None:
    return [int(count) for count in value] if isinstance(value, list) else None


def _pictures(asked: ReportInput) -> tuple[list[tuple[ShownCase, CaseImages]], int]:
    """The cases that fit into the page, and how many do not."""
    found: list[tuple[ShownCase, CaseImages]] = []
    used = 0
    for case in asked.cases:
        drawn = case_images(case)
        if found and used + drawn.size_bytes > MOST_IMAGE_BYTES:
            continue
        used += drawn.size_bytes
        found.append((case, drawn))
    return found, len(asked.cases) - len(found)


def _missing_cases(asked: ReportInput) -> list[tuple[str, str]]:
    return [(label, details.cases_missing) for label, details in asked.details.items() if details.cases_missing]


def _overviews(asked: ReportInput) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The runs' own pictures, scaled down, as far as they fit, and the labels of those that do not."""
    found: list[tuple[str, str, str]] = []
    left_out: list[str] = []
    used = 0
    for label, details in asked.details.items():
        uri = None if details.picture is None else picture_uri(details.picture)
        if uri is None:
            continue
        if used + len(uri) > MOST_IMAGE_BYTES:
            left_out.append(label)
            continue
        used += len(uri)
        found.append((label, details.record.name, uri))
    return found, left_out


def _splits(asked: ReportInput) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Every split once: its rule, and for each part its cases."""
    found: dict[str, tuple[str, list[tuple[str, list[str]]]]] = {}
    for record in asked.records:
        split = _mapping(record.run.get("split"))
        parts = [(str(part), [str(case) for case in cases]) for part, cases in split.items() if isinstance(cases, list)]
        found.setdefault(str(parts), (str(split.get("rule", "")), parts))
    return list(found.values())


def _card(settings: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    card = _mapping(settings.get("card"))
    return str(card.get("intended_use") or "not stated"), str(card.get("licence") or "not stated")


def _markdown(asked: ReportInput, tables: list[NamedTable]) -> str:
    plain = plain_markdown
    lines = [f"# {plain(asked.title)}", "", plain(headline(asked)), "", plain(tested_on(asked)), ""]
    lines += [f"- **{plain(label)}**: {plain(sentence)}" for label, sentence in group_sentences(asked)]
    lines += ["", plain(baseline_sentence(asked)), "", plain(interval_note(asked)), "", *(f"- {plain(each)}" for each in limits(asked))]
    for each in tables:
        lines += ["", f"## {plain(each.heading)}", "", each.table.to_markdown().rstrip("\n")]
    return "\n".join(lines) + "\n"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
