"""Dice against memory, and the curves of a training run, as PNG.

Both are readable in grey print: points differ by marker and carry their names, lines differ by dash pattern.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medquant.errors import InputError
from medquant.report.figure_file import save_png
from medquant.report.labels import place_labels
from medquant.report.tables import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ("-", "--", ":", "-.")
_GUIDE = "#666666"
_LARGEST = 1e12


@dataclass(frozen=True)
class DicePoint:
    """One trained model in the picture of Dice against memory.

    Args:
        label: what the point is called, for example ``"w4/a6"``.
        size_bytes: of the parameters, above 0.
        dice: mean Dice in 0..1.
        low: lower end of its interval in 0..1, None where there is none.
        high: upper end, None where there is none.
        class_name: the class the Dice is of; one panel each.
    """

    label: str
    size_bytes: int
    dice: float
    low: float | None
    high: float | None
    class_name: str


def dice_against_memory(points: Sequence[DicePoint], out_path: Path, *, baselines: Mapping[str, float] | None = None) -> None:
    """Write :func:`memory_figure` as a PNG.

    Raises:
        InputError: as :func:`memory_figure`.
        UsageError: the file cannot be written.
    """
    save_png(memory_figure(points, baselines=baselines), out_path)


def memory_figure(
    points: Sequence[DicePoint],
    *,
    baselines: Mapping[str, float] | None = None,
    size_name: str = "parameters in memory",
    fronts: Mapping[str, Sequence[DicePoint]] | None = None,
    panel_inches: tuple[float, float] = (6.2, 4.6),
) -> Figure:
    """A figure of mean Dice over size, one panel a class, sizes doubling at each tick.

    Points of one size stand side by side, a few percent off their size, so that each bar can be seen.

    Args:
        points: at least one; classes keep their order of appearance.
        baselines: class name → Dice of a trivial prediction in 0..1, drawn as a dashed line.
        size_name: what the sizes are of.
        fronts: class name → its Pareto front, smallest first, drawn as steps.
        panel_inches: width and height of a panel.

    Raises:
        InputError: there is no point, or one has no size or no Dice.
    """
    from matplotlib.figure import Figure

    if not points:
        raise InputError("there is no model to draw: give at least one point of size and Dice")
    for point in points:
        if point.size_bytes <= 0 or not math.isfinite(point.dice):
            raise InputError(f"point {point.label!r} ({point.size_bytes} bytes, Dice {point.dice}) cannot be drawn: it needs both")
    names = list(dict.fromkeys(point.class_name for point in points))
    figure = Figure(figsize=(panel_inches[0] * len(names), panel_inches[1]), layout="constrained")
    panels = list(figure.subplots(1, len(names), squeeze=False)[0])
    labels = []
    for ax, name in zip(panels, names, strict=True):
        mine = [point for point in points if point.class_name == name]
        x = _side_by_side([point.size_bytes for point in mine])
        _draw_front(ax, (fronts or {}).get(name, ()))
        _draw_points(ax, mine, x, (baselines or {}).get(name), size_name)
        labels.append((ax, [(at, 100.0 * point.dice, point.label) for at, point in zip(x, mine, strict=True)], _bars(mine, x)))
    place_labels(figure, labels)
    return figure


def training_curves(records: Sequence[Mapping[str, object]], out_path: Path) -> None:
    """Write :func:`training_figure` as a PNG.

    Raises:
        InputError: as :func:`training_figure`.
        UsageError: the file cannot be written.
    """
    save_png(training_figure(records), out_path)


def training_figure(records: Sequence[Mapping[str, object]], inches: tuple[float, float] = (8.0, 7.0)) -> Figure:
    """A figure of training loss, validation Dice and learning rate over the epochs, stages shaded in turn.

    Epochs that start anew in each stage are laid end to end; lines end where their stage does. A figure that a record
    lacks, or that is NaN, is left out.

    Args:
        records: one mapping an epoch, in order, with ``stage``, ``epoch``, ``train_loss``, ``val_dice`` (class → 0..1), ``lr``.
        inches: width and height.

    Raises:
        InputError: there is no record, or a record has no epoch number.
    """
    from matplotlib.figure import Figure

    if not records:
        raise InputError("there is no epoch to draw: the list of metrics is empty")
    epochs = _running_epochs(records)
    stages = [str(record.get("stage", "")) for record in records]
    figure = Figure(figsize=inches, layout="constrained")
    loss_ax, dice_ax, rate_ax = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 3, 1.2)})
    _draw_series(loss_ax, epochs, stages, {"training loss": [_number(record.get("train_loss")) for record in records]})
    loss_ax.set_ylabel("training loss")
    _draw_dice(dice_ax, epochs, stages, records)
    _draw_series(rate_ax, epochs, stages, {"learning rate": [_number(record.get("lr")) for record in records]})
    rate_ax.set_ylabel("learning\nrate")
    rate_ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rate_ax.set_ylim(bottom=0.0)
    rate_ax.set_xlabel("epoch")
    _mark_stages([loss_ax, dice_ax, rate_ax], epochs, stages)
    return figure


def _draw_front(ax: Axes, front: Sequence[DicePoint]) -> None:
    if front:
        sizes, scores = [point.size_bytes for point in front], [100.0 * point.dice for point in front]
        ax.plot(sizes, scores, color=_COLOURS[1], linestyle="--", linewidth=1.2, drawstyle="steps-post")


def _draw_points(ax: Axes, points: Sequence[DicePoint], x: Sequence[float], floor: float | None, size_name: str) -> None:
    for number, (at, point) in enumerate(zip(x, points, strict=True)):
        below = 0.0 if point.low is None else 100.0 * (point.dice - point.low)
        above = 0.0 if point.high is None else 100.0 * (point.high - point.dice)
        ax.errorbar(
            at,
            100.0 * point.dice,
            yerr=[[max(0.0, below)], [max(0.0, above)]],
            fmt=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[0],
            markersize=7,
            capsize=3 if below or above else 0,
            elinewidth=1.2,
        )
    floor = floor if floor is not None and math.isfinite(floor) else None
    if floor is not None:
        ax.axhline(100.0 * floor, color=_GUIDE, linestyle=(0, (4, 3)), linewidth=1.0)
        text = f"without looking at the image: {100.0 * floor:.1f}"
        ax.text(0.99, 100.0 * floor, text, transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=9, color=_GUIDE)
    _size_axis(ax, [point.size_bytes for point in points], size_name)
    ends = [100.0 * value for point in points for value in (point.dice, point.low, point.high, floor) if value is not None]
    spread = max(max(ends) - min(ends), 1.0)
    ax.set_ylim(max(0.0, min(ends) - 0.15 * spread), max(ends) + 0.2 * spread)
    bottom = ax.get_ylim()[0]
    ax.set_ylabel("mean Dice × 100" + (f"  (axis starts at {bottom:.2f})" if bottom > 0.0 else ""))
    interval = ", bars: 95 % interval" if any(point.low is not None for point in points) else ""
    ax.set_title(f"{points[0].class_name}{interval}", fontsize=11, parse_math=False)
    _tidy(ax)


def _size_axis(ax: Axes, sizes: Sequence[int], size_name: str) -> None:
    """A logarithmic axis in base 2 with ticks at whole powers, named in KiB or MiB."""
    first, last = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
    first, last = (first - 1, last + 1) if last - first < 2 else (first, last)
    ax.set_xscale("log", base=2)
    ax.set_xlim(2.0 ** (first - 0.3), 2.0 ** (last + 0.3))
    ticks = [2**power for power in range(max(0, first), last + 1, 1 + (last - first) // 8)]
    ax.set_xticks(ticks, [format_bytes(tick).replace(".00", "") for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel(f"{size_name} (each tick doubles)" if last - first < 8 else f"{size_name} (logarithmic)")


def _side_by_side(sizes: Sequence[int]) -> list[float]:
    """Where to draw each size: its own place, or for equal sizes places around it, 0.08 of a doubling apart."""
    seen: dict[int, int] = {}
    places = []
    for size in sizes:
        number, count = seen.get(size, 0), sizes.count(size)
        seen[size] = number + 1
        places.append(size * 2.0 ** (0.08 * (number - (count - 1) / 2.0)))
    return places


def _bars(points: Sequence[DicePoint], x: Sequence[float]) -> list[tuple[float, float, float]]:
    """Error bars as ``(x, low, high)`` in data units, for labels to keep away from."""
    lows = [point.dice if point.low is None else point.low for point in points]
    highs = [point.dice if point.high is None else point.high for point in points]
    return [(at, 100.0 * low, 100.0 * high) for at, low, high in zip(x, lows, highs, strict=True)]


def _running_epochs(records: Sequence[Mapping[str, object]]) -> list[int]:
    """Epoch numbers that never fall back, laid end to end where a stage starts counting anew."""
    running: list[int] = []
    shift = 0
    for record in records:
        epoch = record.get("epoch")
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise InputError(f"a record of the metrics has epoch {epoch!r}; expected a whole number")
        if not 0 <= epoch < _LARGEST:
            raise InputError(f"a record of the metrics has an epoch outside 0 to {_LARGEST:g}; restore the file")
        if running and epoch + shift <= running[-1]:
            shift = running[-1] + 1 - epoch
        running.append(epoch + shift)
    return running


def _number(value: object) -> float:
    # A whole number in a file may be larger than any float.
    return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else math.nan


def _draw_series(ax: Axes, epochs: Sequence[int], stages: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Lines over the epochs that have a value, broken between stages, with a dot each where values are few."""
    for number, (name, values) in enumerate(series.items()):
        held = [one for one in zip(epochs, values, stages, strict=True) if math.isfinite(one[1])]
        x: list[float] = []
        y: list[float] = []
        for i, (epoch, value, stage) in enumerate(held):
            if i and stage != held[i - 1][2]:
                x.append(epoch - 0.5)
                y.append(math.nan)
            x.append(epoch)
            y.append(value)
        if held:
            colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
            marker = "o" if len(held) <= 40 else None
            ax.plot(x, y, color=colour, linestyle=dashes, linewidth=1.6, marker=marker, markersize=3, label=name)
    _tidy(ax)


def _draw_dice(ax: Axes, epochs: Sequence[int], stages: Sequence[str], records: Sequence[Mapping[str, object]]) -> None:
    per_epoch = [dict(found) if isinstance(found := record.get("val_dice"), Mapping) else {} for record in records]
    names = list(dict.fromkeys(str(name) for scores in per_epoch for name in scores))
    series = {name: [100.0 * _number(scores.get(name)) for scores in per_epoch] for name in names}
    _draw_series(ax, epochs, stages, series)
    if ax.lines:
        legend = ax.legend(loc="lower right", fontsize=9, framealpha=0.9)
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        ax.text(0.5, 0.5, "no validation was run", transform=ax.transAxes, ha="center", va="center", color=_GUIDE)
        ax.set_ylim(0.0, 100.0)
    bottom = ax.get_ylim()[0]
    ax.set_ylim(bottom=max(0.0, bottom))
    start = f"\n(axis starts at {max(0.0, bottom):.2f})" if bottom > 0.0 else ""
    ax.set_ylabel(f"validation Dice × 100{start}")


def _mark_stages(panels: Sequence[Axes], epochs: Sequence[int], stages: Sequence[str]) -> None:
    """Shade every second stage and name each above the uppermost panel."""
    from matplotlib.ticker import MaxNLocator

    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    for number, start in enumerate(starts):
        stop = starts[number + 1] if number + 1 < len(starts) else len(epochs)
        left, right = epochs[start] - 0.5, epochs[stop - 1] + 0.5
        for ax in panels:
            if number % 2:
                ax.axvspan(left, right, color="#000000", alpha=0.07, linewidth=0)
            if number:
                ax.axvline(left, color=_GUIDE, linewidth=0.8, linestyle=(0, (2, 2)))
        above = panels[0].get_xaxis_transform()
        panels[0].text((left + right) / 2.0, 1.02, stages[start], transform=above, ha="center", va="bottom", fontsize=10, parse_math=False)
    panels[-1].set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)
