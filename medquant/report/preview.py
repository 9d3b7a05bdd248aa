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

MOST_SLICES = 6
_COLUMNS = 3
_PANEL_INCHES = 3.4
_WINDOW_PERCENT = (0.5, 99.5)
_SAMPLED_PIXELS = 200_000


def write_preview(path: Path, prepared: PreparedCase, mask: LabelArray, classes: Mapping[int, str]) -> None:
    """Write up to six slices through the mask as PNG, replaced if it exists; slices through the scan where the mask is empty.

    Slices are those the network sees, shown as radiologists do (the patient's right on the left, the front or the head above); a scan
    that does not say where it lies, as it is stored. Grey values are cut to the window the network looks at, where it has one.

    Args:
        path: PNG file.
        prepared: the scan.
        mask: class numbers on the grid of its file, (I, J, K).
        classes: class number → name.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    grid = prepared.grid
    image, drawn = grid.orient(prepared.case.image.array), grid.orient(mask)
    chosen = chosen_slices(np.asarray([np.count_nonzero(drawn[:, :, k]) for k in range(drawn.shape[2])]))
    low, high = _window(prepared, image, chosen)
    turned = _turned(prepared.case.image, grid)
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    spacing = [prepared.case.image.spacing_mm[axis] for axis in grid.axes]
    height = min(1.8, max(0.5, drawn.shape[1] * spacing[1] / (drawn.shape[0] * spacing[0])))
    figure = Figure(figsize=(_PANEL_INCHES * columns, _PANEL_INCHES * rows * height + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels:
        ax.set_axis_off()
    for ax, k in zip(panels, chosen, strict=False):
        pixels, labels = (_as_shown(array[:, :, k], turned) for array in (image, drawn))
        aspect = spacing[1] / spacing[0]
        ax.imshow(np.asarray(pixels, dtype=np.float32), cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=aspect)
        _outline(ax, np.asarray(labels, dtype=np.uint8))
        ax.set_title(f"slice {k + 1} of {drawn.shape[2]}", fontsize=10)
    _key(figure, classes, sorted({int(number) for k in chosen for number in np.unique(drawn[:, :, k])}))
    save_png(figure, path, dpi=110)


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


def _window(prepared: PreparedCase, image: NDArray[np.generic], chosen: list[int]) -> tuple[float, float]:
    rule = prepared.normalisation
    if rule.low is not None and rule.high is not None:
        return rule.low, rule.high
    pixels = np.concatenate([np.asarray(image[:, :, k], dtype=np.float32).ravel() for k in chosen])
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
