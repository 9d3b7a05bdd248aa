"""Dice against memory as a table: the quantized network, its float twin, and what needs no network at all."""

from __future__ import annotations

from collections.abc import Mapping

from medquant.report.tables import Table, format_bytes, format_dice


def scoreboard(document: Mapping[str, object]) -> Table:
    """The table a run ends with.

    Args:
        document: content of ``eval.json``.
    """
    memory = _mapping(document["memory"])
    dice, metrics = _mapping(document["dice"]), _mapping(document.get("metrics") or {})
    # The challenge's own; surface distances by class stand in eval.json, for a table they are too many.
    official = document.get("official_metrics")
    metrics = metrics if not isinstance(official, list) else {key: metrics[key] for key in official if key in metrics}
    bits = _mapping(document["bits"])
    is_float = bits["weights"] == bits["activations"] == 32
    name = "float" if is_float else f"W{bits['weights']}A{bits['activations']}{_float_share(memory)}"
    columns = (
        "network",
        *(f"Dice {label}" for label in dice),
        *metrics,
        "parameters",
        "paper's count",
        "file",
        "activations",
        "process",
    )
    rows = []
    twin = document.get("float_twin")
    if isinstance(twin, Mapping):
        weights = (_size(memory["float_bytes"]), _size(memory["float_bytes"]), "", _size(memory["float_activation_peak_bytes"]), "")
        rows.append(("float twin", *_scores(twin, dice, metrics), *weights))
    keys = ("parameter_bytes", "paper_bytes", "model_file_bytes", "activation_peak_bytes", "process_peak_bytes")
    rows.append((name, *_scores(document, dice, metrics), *(_size(memory[key]) for key in keys)))
    for label, scores in _mapping(document["baseline"]).items():
        found = _mapping(scores)
        if any(found.values()):
            rows.append(
                (label.replace("_", " ", 1), *(format_dice(_number(found.get(key))) for key in dice), *("",) * len(metrics), *("",) * 5)
            )
    return Table(columns, tuple(rows))


def _float_share(memory: Mapping[str, object]) -> str:
    """Says in how many layers of a quantized network weights or what they write are float, "" where none is."""
    layers = memory.get("layers")
    rows = [_mapping(row) for row in layers] if isinstance(layers, list) else []
    floats = sum(32 in (row.get("weight_bits"), row.get("activation_bits")) for row in rows)
    return f", float in {floats} of {len(rows)} layers" if floats else ""


def _scores(document: Mapping[str, object], dice: Mapping[str, object], metrics: Mapping[str, object]) -> list[str]:
    own, figures = _mapping(document["dice"]), _mapping(document.get("metrics") or {})
    return [*(_with_interval(_mapping(own[key])) for key in dice), *(_figure(_mapping(figures[key])) for key in metrics)]


def _with_interval(summary: Mapping[str, object]) -> str:
    interval = summary.get("interval_95")
    mean = format_dice(_number(summary.get("mean")))
    if not isinstance(interval, list):
        return mean
    return f"{mean} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def _figure(summary: Mapping[str, object]) -> str:
    mean = _number(summary.get("mean"))
    return "–" if mean is None else f"{mean:.4f}"


def _size(value: object) -> str:
    return format_bytes(int(value)) if isinstance(value, int) else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
