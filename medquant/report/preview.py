"""A picture of a predicted mask: some slices of the scan with the outline of each class. Nothing of the patient is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medquant.data.prepared import PreparedCase
from medquant.data.prepared_grid import PreparedGrid
from medquant.data.volume import LabelArray, Volume
from medquant.report.figure_file import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SLICES = 6
_COLUMNS = 3
_PANEL_INCHES = 3.4
_WINDOW_PERCENT = (0.5, 99.5)
_ZOOM_BELOW = 4
"""A mask whose box is smaller than one part of so many of the slice, along both sides, is shown larger as well."""
_LEAST_ZOOMED = 12
_SAMPLED_PIXELS = 200_000


def write_preview(path: Path, prepared: PreparedCase, mask: LabelArray, classes: Mapping[int, str]) -> None:
    """Write up to six slices through the mask as PNG, replaced if it exists; slices through the scan where the mask is empty.

    Slices are those the network sees, shown as radiologists do (the patient's right on the left, the front or the head above); a scan
    that does not say where it lies, as it is stored. A small mask is shown larger below its
    slice. Grey values are cut to the window the network looks at, where it has one.

    Args:
        path: PNG file.
        prepared: the scan.
        mask: class numbers on the grid of its file, (I, J, K).
        classes: class number → name.

    Raises:
        UsageError: the file cannot be written.
    """
    grid = prepared.grid
    image, drawn = grid.orient(prepared.case.image.array), grid.orient(mask)
    chosen = chosen_slices(np.asarray([np.count_nonzero(drawn[:, :, k]) for k in range(drawn.shape[2])]))
    turned = _turned(prepared.case.image, grid)
    spacing = [prepared.case.image.spacing_mm[axis] for axis in grid.axes]
    shown = {k: tuple(_as_shown(array[:, :, k], turned) for array in (image, drawn)) for k in chosen}
    zoom = zoom_box(np.any([labels != 0 for _, labels in shown.values()], axis=0), spacing[0] / spacing[1])
    limits = _window(prepared, [pixels for pixels, _ in shown.values()])
    figure, panels = _panels(len(chosen), zoom is not None, min(1.8, max(0.5, drawn.shape[1] * spacing[1] / (drawn.shape[0] * spacing[0]))))
    for (ax, closer), (k, (pixels, labels)) in zip(panels, shown.items(), strict=False):
        _draw(ax, pixels, labels, limits, spacing[1] / spacing[0])
        ax.set_title(f"slice {k + 1} of {drawn.shape[2]}", fontsize=10)
        if zoom is not None and closer is not None:
            _frame(ax, zoom)
            # Around a small mask grey values lie in a range of their own.
            near = _window(prepared, [each[zoom] for each, _ in shown.values()])
            _draw(closer, pixels[zoom], labels[zoom], near, spacing[1] / spacing[0])
            closer.set_title(f"slice {k + 1}, the framed part", fontsize=10)
    _key(figure, classes, sorted({int(number) for k in chosen for number in np.unique(drawn[:, :, k])}))
    save_png(figure, path, dpi=110)


def _panels(count: int, has_zoom: bool, height: float) -> tuple[Figure, list[tuple[Axes, Axes | None]]]:
    """A figure with a panel for each slice and, where there is a zoom, one below each."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    heights = [height, 1.0] * rows if has_zoom else [height] * rows
    figure = Figure(figsize=(_PANEL_INCHES * columns, _PANEL_INCHES * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for ax in panels.ravel():
        ax.set_axis_off()
    if not has_zoom:
        return figure, [(ax, None) for ax in panels.ravel()]
    return figure, list(zip(panels[::2].ravel(), panels[1::2].ravel(), strict=True))


def _draw(ax: Axes, pixels: NDArray[np.generic], labels: NDArray[np.generic], limits: tuple[float, float], aspect: float) -> None:
    low, high = limits
    ax.imshow(np.asarray(pixels, dtype=np.float32), cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=aspect)
    _outline(ax, np.asarray(labels, dtype=np.uint8))


def zoom_box(held: NDArray[np.bool_], width_to_height: float) -> tuple[slice, slice] | None:
    """The part of a picture to show larger; None where the mask is empty, or large enough in the whole picture.

    Args:
        held: where a mask lies in a picture, (rows, columns).
        width_to_height: of a pixel.

    Returns:
        Rows and columns, square on the page as far as the picture reaches: twice the longer side of the mask's box around its middle.
    """
    boxes = [np.flatnonzero(held.any(axis=1 - axis)) for axis in (0, 1)]
    if not len(boxes[0]):
        return None
    sides = [int(places[-1] - places[0]) + 1 for places in boxes]
    if any(side * _ZOOM_BELOW >= length for side, length in zip(sides, held.shape, strict=True)):
        return None
    rows = max(2 * max(sides[0], sides[1] * width_to_height), _LEAST_ZOOMED)
    wanted = (round(rows), round(rows / width_to_height))
    starts = [int(places[0] + places[-1] + 1 - length) // 2 for places, length in zip(boxes, wanted, strict=True)]
    i, j = (slice(max(0, start), min(start + length, most)) for start, length, most in zip(starts, wanted, held.shape, strict=True))
    return i, j


def _frame(ax: Axes, box: tuple[slice, slice]) -> None:
    from matplotlib.patches import Rectangle

    rows, columns = box
    size = columns.stop - columns.start, rows.stop - rows.start
    ax.add_patch(Rectangle((columns.start - 0.5, rows.start - 0.5), *size, fill=False, edgecolor="w", linewidth=0.8))


def chosen_slices(voxels: NDArray[np.integer]) -> list[int]:
    """Up to six slices, evenly spaced by the mask's voxels in them (the middle of each sixth), or by number where it is empty."""
    weights = voxels if voxels.any() else np.ones_like(voxels)
    reached = np.cumsum(weights) / weights.sum()
    shares = (np.arange(MOST_SLICES) + 0.5) / MOST_SLICES
    return sorted({int(np.searchsorted(reached, share)) for share in shares})


def _turned(image: Volume, grid: PreparedGrid) -> tuple[bool, bool]:
    """Whether the two axes of a slice have to be turned so that they grow to the patient's left, back or feet."""
    if not image.has_geometry:
        return False, False
    import nibabel as nib

    directions = nib.io_orientation(image.affine)[:, 1]
    first, second = (bool((directions[axis] > 0) != flipped) for axis, flipped in zip(grid.axes[:2], grid.flipped[:2], strict=True))
    return first, second


def _as_shown(pixels: NDArray[np.generic], turned: tuple[bool, bool]) -> NDArray[np.generic]:
    """Rows and columns of the picture: the slice's first axis to the right, its second one downwards."""
    return pixels[tuple(slice(None, None, -1 if turn else 1) for turn in turned)].T


def _window(prepared: PreparedCase, parts: list[NDArray[np.generic]]) -> tuple[float, float]:
    rule = prepared.normalisation
    if rule.low is not None and rule.high is not None:
        return rule.low, rule.high
    pixels = np.concatenate([np.asarray(part, dtype=np.float32).ravel() for part in parts])
    low, high = np.percentile(pixels[:: max(1, pixels.size // _SAMPLED_PIXELS)], _WINDOW_PERCENT)
    return float(low), float(max(high, low + 1e-6))


def _outline(ax: Axes, labels: NDArray[np.uint8]) -> None:
    from matplotlib.colors import to_rgba

    painted = np.zeros((*labels.shape, 4))
    padded = np.pad(labels, 1, mode="edge")
    inner = np.ones(labels.shape, dtype=bool)
    for rows, columns in (
        (slice(2, None), slice(1, -1)),
        (slice(0, -2), slice(1, -1)),
        (slice(1, -1), slice(2, None)),
        (slice(1, -1), slice(0, -2)),
    ):
        inner &= padded[rows, columns] == labels
    for number in np.unique(labels[labels > 0]):
        # The outline itself at full strength, what it holds just tinted.
        painted[labels == number] = to_rgba(_colour(int(number)), 0.18)
        painted[(labels == number) & ~inner] = to_rgba(_colour(int(number)), 1.0)
    ax.imshow(painted, interpolation="nearest", aspect=ax.get_aspect())


def _key(figure: object, classes: Mapping[int, str], found: list[int]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [number for number in found if number > 0]
    patches = [Patch(facecolor=_colour(number), label=classes.get(number, f"class {number}")) for number in shown[:8]]
    if isinstance(figure, Figure):
        if patches:
            figure.legend(handles=patches, loc="outside lower center", ncols=min(4, len(patches)), frameon=False, fontsize=10)
        else:
            figure.supxlabel("the mask is empty", fontsize=10)


def _colour(number: int) -> str:
    return f"C{number % 10}"
