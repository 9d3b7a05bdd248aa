"""Names written next to the points of a plot, where they cover neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Named: TypeAlias = tuple[float, float, str]
Bar: TypeAlias = tuple[float, float, float]

# offsets in points and how the text sits there; the first that is free is taken
_PLACES: tuple[tuple[float, float, str, str], ...] = (
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (7, 9, "left", "bottom"),
    (-7, 9, "right", "bottom"),
    (7, -9, "left", "top"),
    (-7, -9, "right", "top"),
    (9, 22, "left", "bottom"),
    (-9, 22, "right", "bottom"),
    (9, -22, "left", "top"),
    (-9, -22, "right", "top"),
    (9, 38, "left", "bottom"),
    (-9, 38, "right", "bottom"),
    (9, -38, "left", "top"),
    (-9, -38, "right", "top"),
)
_POINT_RADIUS_PX = 8.0


def place_labels(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Named], Sequence[Bar]]]) -> None:
    """Write each point's name beside it.

    Args:
        figure: holds the panels; it is laid out here, so draw everything else first.
        panels: per axes the points ``(x, y, name)`` and the vertical bars ``(x, low, high)`` to keep away from, in data units.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()  # sizes of text and axes are known only after a layout
    figure.set_layout_engine("none")
    for ax, points, bars in panels:
        taken = _obstacles(ax, points, bars)
        for x, y, name in points:
            taken.append(_place(ax, (x, y), name, taken))


def _place(ax: Axes, point: tuple[float, float], name: str, taken: Sequence[Bbox]) -> Bbox:
    """Write one name at the free place nearest to its point, or where it covers least; the box it takes."""
    found = []
    for number, (right, up, ha, va) in enumerate(_PLACES):
        note = ax.annotate(
            name,
            point,
            xytext=(right, up),
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=9,
            parse_math=False,
            # a name far from its point needs a line to it
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": "#666666"} if abs(up) > 20 else None,
        )
        box = _text_box(note)
        found.append((_covered(box, ax.bbox, taken), number, note, box))
        if found[-1][0] == 0.0:
            break
    best = min(found, key=lambda one: one[:2])
    for one in found:
        if one is not best:
            one[2].remove()
    return best[3]


def _text_box(note: Annotation) -> Bbox:
    from matplotlib.text import Text

    note.update_positions(note.get_figure().canvas.get_renderer())  # type: ignore[union-attr]
    return Text.get_window_extent(note)


def _obstacles(ax: Axes, points: Sequence[Named], bars: Sequence[Bar]) -> list[Bbox]:
    from matplotlib.transforms import Bbox

    boxes = []
    for x, y, _ in points:
        px, py = ax.transData.transform((x, y))
        boxes.append(Bbox.from_extents(px - _POINT_RADIUS_PX, py - _POINT_RADIUS_PX, px + _POINT_RADIUS_PX, py + _POINT_RADIUS_PX))
    for x, low, high in bars:
        (px, bottom), (_, top) = ax.transData.transform([(x, low), (x, high)])
        boxes.append(Bbox.from_extents(px - 4.0, bottom, px + 4.0, top))
    for text in ax.texts:
        boxes.append(text.get_window_extent())
    return boxes


def _covered(box: Bbox, inside: Bbox, taken: Sequence[Bbox]) -> float:
    """Area in square pixels of other things under a box, and of the box outside the axes."""
    from matplotlib.transforms import Bbox

    area = 0.0
    for other in taken:
        common = Bbox.intersection(box, other)
        area += common.width * common.height if common is not None else 0.0
    kept = Bbox.intersection(box, inside)
    return area + box.width * box.height - (kept.width * kept.height if kept is not None else 0.0)
