"""Prediction against truth on the grey image: red is missed, blue is false, orange is right.

Arrays are ``(I, J)`` as in a volume; pictures show i to the right and j downwards, so a picture is the transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medquant.errors import InputError
from medquant.report.figure_file import save_png
from medquant.report.tables import format_dice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSED_RGB = (220, 20, 40)
FALSE_RGB = (40, 110, 255)
RIGHT_RGB = (255, 175, 0)
RIGHT_OPACITY = 0.5
ERROR_OPACITY = 0.75  # errors are often one pixel wide and must be seen
_WINDOW_PERCENT = (0.5, 99.5)
_DPI = 110
_PANEL_INCHES = (3.3, 5.0)  # a panel grows with the slice, so that one pixel of it is one of the picture


@dataclass(frozen=True)
class MethodPanel:
    """One prediction to show.

    Args:
        name: what the panel is called, for example ``"w4/a6"``.
        prediction: class numbers ``(I, J)``.
        dice: Dice in 0..1 to print, None or NaN where there is none.
    """

    name: str
    prediction: NDArray[np.integer]
    dice: float | None


@dataclass(frozen=True)
class OverlayRow:
    """One slice with the predictions for it.

    Args:
        title: stands over the grey image, for example the case id.
        image: grey values ``(I, J)``, finite.
        truth: class numbers ``(I, J)``.
        class_number: the class that is drawn. Where a class covers most of the image (cells in EM), choose the other one.
        class_name: its name.
        methods: at least one; every row of a figure shows the same number.
        spacing_mm: pixel size along i and j; only their ratio matters.
        zoom: the part ``(i, j)`` to show, for example from :func:`focus`; None shows all.
    """

    title: str
    image: NDArray[np.floating]
    truth: NDArray[np.integer]
    class_number: int
    class_name: str
    methods: tuple[MethodPanel, ...]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    zoom: tuple[slice, slice] | None = None


def overlay_rgb(
    image: NDArray[np.floating], truth: NDArray[np.integer], prediction: NDArray[np.integer], class_number: int
) -> NDArray[np.uint8]:
    """Paint one class of truth and prediction over the grey image.

    Args:
        image: grey values ``(I, J)``; the darkest and brightest half percent are clipped.
        truth: class numbers ``(I, J)``.
        prediction: class numbers ``(I, J)``.
        class_number: the class to paint.

    Returns:
        RGB ``(J, I, 3)``, transposed for display: i to the right, j downwards.

    Raises:
        InputError: the shapes differ, are not 2D, or the image holds NaN or infinity.
    """
    _check_shapes(image, truth, prediction)
    rgb = np.repeat(_grey(image)[..., np.newaxis], 3, axis=2)
    in_truth, in_prediction = truth == class_number, prediction == class_number
    for where, colour, opacity in (
        (in_truth & ~in_prediction, MISSED_RGB, ERROR_OPACITY),
        (in_prediction & ~in_truth, FALSE_RGB, ERROR_OPACITY),
        (in_truth & in_prediction, RIGHT_RGB, RIGHT_OPACITY),
    ):
        rgb[where] = (1.0 - opacity) * rgb[where] + opacity * np.asarray(colour, dtype=np.float64)
    return np.rint(rgb).astype(np.uint8).transpose(1, 0, 2)


def focus(masks: Sequence[NDArray[np.integer]], class_number: int, *, margin: float = 0.5) -> tuple[slice, slice] | None:
    """The part of a slice around everything any mask calls by a class; None where no mask holds it.

    Args:
        masks: class numbers ``(I, J)``, all of one shape.
        class_number: the class to look at.
        margin: added on each side, in lengths of the found box.
    """
    found = np.any([mask == class_number for mask in masks], axis=0)
    if not found.any():
        return None
    parts = []
    for axis in (0, 1):
        held = np.flatnonzero(found.any(axis=1 - axis))
        first, last = int(held[0]), int(held[-1]) + 1
        extra = max(1, round(margin * (last - first)))
        parts.append(slice(max(0, first - extra), min(found.shape[axis], last + extra)))
    return parts[0], parts[1]


def overlay_figure(rows: Sequence[OverlayRow], out_path: Path) -> None:
    """Write a PNG with one row a slice: the image, the truth, one overlay a method with its Dice, and the three colours' meaning.

    i runs to the right and j downwards, as in :func:`overlay_rgb`.

    Args:
        rows: at least one, all with the same number of methods.
        out_path: PNG file, replaced if it exists.

    Raises:
        InputError: there is no row or no method, rows differ in their number of methods, or as :func:`overlay_rgb`.
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    counts = {len(row.methods) for row in rows}
    if len(counts) != 1 or 0 in counts:
        found = sorted(counts) or "no row"
        raise InputError(f"an overlay figure needs rows with one and the same number of methods, 1 or more; found {found}")
    columns = 2 + counts.pop()
    least, most = _PANEL_INCHES
    width = min(most, max(least, *(row.truth[row.zoom or ...].shape[0] / _DPI for row in rows)))
    heights = [width * min(1.6, max(0.5, _height_to_width(row))) for row in rows]
    legend_inches = 0.45
    figure = Figure(figsize=(width * columns, sum(heights) + 0.35 * len(rows) + legend_inches), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, row in zip(grid, rows, strict=True):
        _draw_row(list(axes), row)
    _colour_key(figure)
    save_png(figure, out_path, dpi=_DPI)


def _draw_row(axes: list[Axes], row: OverlayRow) -> None:
    for method in row.methods:
        _check_shapes(row.image, row.truth, method.prediction)
    part = row.zoom or (slice(None), slice(None))
    grey = _grey(row.image)[part].T / 255.0
    _show(axes[0], grey, row.title, row)
    _show(axes[1], (row.truth == row.class_number)[part].T.astype(np.float64), f"truth: {row.class_name}", row)
    for ax, method in zip(axes[2:], row.methods, strict=True):
        # the grey window is taken from the whole slice, so the same tissue looks the same in every panel
        painted = overlay_rgb(row.image, row.truth, method.prediction, row.class_number)[part[1], part[0]]
        _show(ax, painted, f"{method.name}   Dice {format_dice(method.dice)}", row)


def _show(ax: Axes, picture: NDArray[np.generic], title: str, row: OverlayRow) -> None:
    ax.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect=row.spacing_mm[1] / row.spacing_mm[0])
    ax.set_title(title, fontsize=11, parse_math=False)
    ax.set_axis_off()


def _colour_key(figure: Figure) -> None:
    from matplotlib.patches import Patch

    meanings = ((RIGHT_RGB, "right: truth and prediction"), (MISSED_RGB, "missed: truth only"), (FALSE_RGB, "false: prediction only"))
    patches = [
        Patch(facecolor=(r / 255.0, g / 255.0, b / 255.0), edgecolor="black", linewidth=0.5, label=text) for (r, g, b), text in meanings
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=11)


def _grey(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Grey values spread over 0..255, ``(I, J)``; an even image becomes mid-grey."""
    values = image.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"the image to draw holds {int((~np.isfinite(values)).sum())} NaN or infinite values; repair it before drawing")
    low, high = np.percentile(values, _WINDOW_PERCENT)
    if high <= low:  # nearly even, or a few bright pixels on nothing: fall back to the full range
        low, high = values.min(), values.max()
    if high <= low:
        return np.full(values.shape, 127.5)
    return np.asarray(np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0)


def _height_to_width(row: OverlayRow) -> float:
    shown = row.truth[row.zoom or ...]
    return float(shown.shape[1] * row.spacing_mm[1] / (shown.shape[0] * row.spacing_mm[0]))


def _check_shapes(image: NDArray[np.floating], truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> None:
    if image.ndim != 2 or not image.shape == truth.shape == prediction.shape:
        raise InputError(f"an overlay needs three 2D arrays of one shape, found {image.shape}, {truth.shape}, {prediction.shape}")
