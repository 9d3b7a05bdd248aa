"""Names beside the points of a picture, where they cover neither points nor lines nor one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, hypot, pi, sin
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

Place = tuple[float, float]
_FAR = 1000.0  # what a name without a place costs
# Places in rings, the nearest first; names are wider than high. In points.
_TURNS = [(cos(turn * pi / 12), sin(turn * pi / 12)) for turn in range(24)]
_OFFSETS = sorted((((30 + far) * x, (13 + far) * y) for far in range(0, 90, 4) for x, y in _TURNS), key=lambda step: hypot(*step))


@dataclass
class _Page:
    """What is taken already, in pixels."""

    frame: Bbox
    boxes: list[Any] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)

    def free(self, box: Bbox, leader: Sequence[Place]) -> bool:
        if not (self.frame.contains(box.x0, box.y0) and self.frame.contains(box.x1, box.y1)):
            return False
        if any(box.y0 < height < box.y1 for height in self.heights) or any(box.overlaps(other) for other in self.boxes):
            return False
        roomy = box.padded(4)
        return not any(roomy.contains(*place) for place in self.places) and not any(
            other.contains(*place) for other in self.boxes for place in leader
        )


def label_points(figure: Figure, axes: Axes, named: Mapping[str, Place], markers: Iterable[Place], heights: Iterable[float]) -> None:
    """Write each name beside its point, with a line to it; of several orders the one with the shortest lines.

    Args:
        named: name to point, in the units of the axes.
        markers: every point that must stay visible.
        heights: horizontal lines that must stay visible.
    """
    figure.draw_without_rendering()

    def pixels(place: Place) -> Place:
        x, y = axes.transData.transform(place)
        return float(x), float(y)

    sizes = {name: _size(axes, name) for name in named}
    points = {name: pixels(place) for name, place in named.items()}
    legend = axes.get_legend()
    blocked = [text.get_window_extent().padded(1) for text in axes.texts] + ([legend.get_window_extent()] if legend else [])
    orders: list[Callable[[str], float]] = [
        lambda name: points[name][0],
        lambda name: -points[name][0],
        lambda name: points[name][1],
        lambda name: -points[name][1],
    ]
    trials = []
    for order in orders:
        page = _Page(
            axes.get_window_extent(), list(blocked), [pixels(each) for each in markers], [pixels((1, each))[1] for each in heights]
        )
        trials.append(_place(page, sorted(named, key=order), points, sizes, figure.dpi / 72))
    best = min(trials, key=lambda trial: sum(hypot(*offset) if offset else _FAR for offset in trial.values()))
    for name, offset in best.items():
        axes.annotate(
            name,
            named[name],
            xytext=offset or (0, 14),
            textcoords="offset points",
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
            fontsize=8.5,
            zorder=4,
        )


def _size(axes: Axes, name: str) -> Place:
    text = axes.text(0, 0, name, fontsize=8.5, transform=None)
    box = text.get_window_extent()
    text.remove()
    return box.width, box.height


def _place(
    page: _Page, names: Iterable[str], points: Mapping[str, Place], sizes: Mapping[str, Place], scale: float
) -> dict[str, Place | None]:
    """An offset in points for each name, None where there is no room."""
    found: dict[str, Place | None] = {}
    for name in names:
        (x, y), (width, height) = points[name], sizes[name]
        found[name] = None
        for offset in _OFFSETS:
            middle = x + offset[0] * scale, y + offset[1] * scale
            box = Bbox.from_bounds(middle[0] - width / 2, middle[1] - height / 2, width, height).padded(3)
            leader = [(x + part / 8 * (middle[0] - x), y + part / 8 * (middle[1] - y)) for part in range(1, 8)]
            if page.free(box, leader):
                page.boxes.append(box)
                page.places += [place for place in leader if not box.contains(*place)]
                found[name] = offset
                break
    return found
