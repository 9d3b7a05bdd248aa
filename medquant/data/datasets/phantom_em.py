"""A made-up stack of electron microscopy: cells between dark membranes, with organelles that are dark but no membrane.

On every slice lies one black disc at ``MARKER_PLACE``, inside a cell: a mirrored or turned stack shows it elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from medquant.errors import ConfigError

MARKER_PLACE = (0.25, 0.125)
"""Middle of the disc as shares of the slice's width (column) and height (row)."""

MARKER_VALUE = 2
"""Value of the disc; nothing else is darker than twice this."""

_CELL_PIXELS = 46.0
_LEAST_SIZE = 32
_BYTES = NDArray[np.uint8]


def make_em_stack(seed: int, part: int, size: int, slices: int) -> tuple[_BYTES, _BYTES]:
    """Generate a stack and its labels; the same arguments give the same bytes.

    Args:
        seed: non-negative.
        part: 0 for the training volume, 1 for the test volume: another piece of the same tissue.
        size: columns and rows, at least 32.
        slices: number of slices.

    Returns:
        Image and labels, uint8, shape ``(size, size, slices)`` as ``(column, row, slice)``; labels 255 = cell, 0 = membrane.

    Raises:
        ConfigError: a size below 32, or no slice.
    """
    if size < _LEAST_SIZE or slices < 1:
        raise ConfigError(f"phantom: found {slices} slices of size {size}, expected at least 1 slice of size {_LEAST_SIZE}; choose more")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 2, part])))
    image = np.empty((slices, size, size), dtype=np.uint8)
    labels = np.empty(image.shape, dtype=np.uint8)
    # The tissue is wider than the slice, so that cells at the rim have neighbours too.
    margin = int(_CELL_PIXELS)
    wide = size + 2 * margin
    cells = random.uniform(0, wide, size=(max(6, int((wide / _CELL_PIXELS) ** 2)), 2))
    for k in range(slices):
        # 50 nm between slices of 4 nm pixels: a cell moves far from one slice to the next.
        cells = (cells + random.normal(0.0, 5.0, size=cells.shape)) % wide
        to_membrane, cell_number = _tissue(cells, wide, margin, random)
        image[k], labels[k] = _slice(to_membrane, cell_number, len(cells), random)
    return image.transpose(2, 1, 0), labels.transpose(2, 1, 0)


def _tissue(
    cells: NDArray[np.float64], wide: int, margin: int, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distance to the next membrane's middle, and the number of the cell, of each pixel of a slice ``(row, column)``."""
    seeds = np.ones((wide, wide), dtype=bool)
    numbers = np.zeros((wide, wide), dtype=np.int64)
    at = np.clip(cells.astype(np.int64), 0, wide - 1)
    seeds[at[:, 0], at[:, 1]] = False
    numbers[at[:, 0], at[:, 1]] = np.arange(len(cells))
    nearest = distance_transform_edt(seeds, return_distances=False, return_indices=True)
    regions = numbers[nearest[0], nearest[1]]
    bent = np.array([gaussian_filter(random.standard_normal((wide, wide)), 9.0, mode="wrap") for _ in range(2)])
    places = np.indices((wide, wide)) + 5.0 * bent / max(float(bent.std()), 1e-9)
    regions = map_coordinates(regions, places, order=0, mode="nearest")
    border = np.zeros(regions.shape, dtype=bool)
    border[:-1] |= regions[:-1] != regions[1:]
    border[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    inner = slice(margin, wide - margin)
    distance = np.asarray(distance_transform_edt(~border), dtype=np.float32)
    return distance[inner, inner], regions[inner, inner]


def _slice(
    to_membrane: NDArray[np.float32], cell_number: NDArray[np.int64], cells: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    size = len(to_membrane)
    thickness = 2.1 + 0.5 * gaussian_filter(random.standard_normal((size, size)), 12.0, mode="wrap") * 12.0
    to_membrane = to_membrane - np.clip(thickness, 1.2, 3.2).astype(np.float32)
    brightness = random.uniform(145.0, 195.0, size=cells)[cell_number]
    scene = brightness + 10.0 * gaussian_filter(random.standard_normal((size, size)), 1.5) * 5.0
    scene = _organelles(scene, to_membrane, random)
    dark = np.clip(0.5 - to_membrane / 1.5, 0.0, 1.0)
    # Contrast varies by slice, as in the real stack.
    scene = (scene + dark * (62.0 - scene)) * random.uniform(0.85, 1.1)
    scene = gaussian_filter(scene, 0.8) + random.normal(0.0, 9.0, size=scene.shape)
    image = np.clip(np.rint(scene), 3 * MARKER_VALUE, 255).astype(np.uint8)
    labels = np.where(to_membrane > 0, 255, 0).astype(np.uint8)
    rows, columns = np.indices(image.shape)
    to_marker = np.hypot(columns - MARKER_PLACE[0] * size, rows - MARKER_PLACE[1] * size)
    radius = max(2.5, size / 64)
    labels[to_marker <= radius + 2] = 255
    image[to_marker <= radius] = MARKER_VALUE
    return image, labels


def _organelles(scene: NDArray[np.float64], to_membrane: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float64]:
    """Dark ovals inside cells, about as dark as membranes, which the labels do not show."""
    size = len(scene)
    rows, columns = np.ogrid[:size, :size]
    for _ in range(max(1, int((size / 90) ** 2))):
        row, column = random.integers(0, size, size=2)
        if to_membrane[row, column] < 8.0:
            continue
        radius = random.uniform(4.0, 7.0)
        angle = random.uniform(0.0, np.pi)
        down, right = rows - row, columns - column
        along = (np.cos(angle) * right + np.sin(angle) * down) / (1.5 * radius)
        across = (np.cos(angle) * down - np.sin(angle) * right) / radius
        distance = (np.sqrt(along**2 + across**2) - 1.0) * radius
        scene = scene + np.clip(0.5 - distance / 2.0, 0.0, 1.0) * (85.0 - scene)
    return scene
