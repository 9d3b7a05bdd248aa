"""The boundary of a mask as elements with an area, one at each corner between voxels where inside and outside meet.

A corner has eight voxels around it (four in a slice). Which of them lie inside gives a number from 0 to 255, and marching cubes
on these eight gives the piece of boundary near the corner; its area depends on the number and the spacing alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SurfaceElements:
    """Boundary elements of a mask.

    Args:
        points: True at the corners the boundary runs through, one longer than the mask along each axis; corner ``n`` lies
            between voxels ``n − 1`` and ``n``.
        areas: of each such corner in index order, mm² (mm for a slice).
    """

    points: NDArray[np.bool_]
    areas: NDArray[np.float64]


def surface_elements(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> SurfaceElements:
    """Find the boundary elements of a mask; beyond the array is outside.

    Args:
        mask: True inside, two or three axes.
        spacing_mm: mm between neighbouring voxels, one an axis.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    numbers = np.zeros([length + 1 for length in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        window = tuple(slice(start, start + length) for start, length in zip(corner, numbers.shape, strict=True))
        numbers |= padded[window] << np.uint8(bit)
    points = (numbers != 0) & (numbers != 2 ** (2**mask.ndim) - 1)
    areas = element_areas(tuple(float(length) for length in spacing_mm))
    return SurfaceElements(points=points, areas=areas[numbers[points]])


@lru_cache(maxsize=64)
def element_areas(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Area of the boundary at a corner for every set of voxels inside, shape ``(16,)`` for two axes and ``(256,)`` for three.

    Bit ``b`` of the index stands for the ``b``-th voxel around the corner, the last axis running fastest.
    """
    count = 2 ** len(spacing_mm)
    measure = _length if len(spacing_mm) == 2 else _area
    table = np.zeros(2**count)
    for number in range(1, 2**count - 1):
        inside = np.asarray([number >> bit & 1 for bit in range(count)], dtype=np.float32).reshape([2] * len(spacing_mm))
        table[number] = measure(inside, spacing_mm)
    table.flags.writeable = False
    return table


def _length(inside: NDArray[np.float32], spacing_mm: tuple[float, ...]) -> float:
    """Length of outline around a corner of a slice: half a diagonal cuts off one pixel of four, a side parts two from two."""
    diagonal = math.hypot(*spacing_mm) / 2.0
    if inside.sum() != 2.0:
        return diagonal
    if inside[0, 0] == inside[1, 1]:
        return 2.0 * diagonal
    return spacing_mm[1] if inside[0, 0] == inside[0, 1] else spacing_mm[0]


def _area(inside: NDArray[np.float32], spacing_mm: tuple[float, ...]) -> float:
    """Area of the triangles marching cubes puts between eight voxel centres.

    Where voxels meet along an edge alone, there are two ways to draw the boundary. The one that keeps the fewer voxels apart is
    taken for a set and for its complement, so that a mask and its background have one boundary.
    """
    from skimage.measure import marching_cubes, mesh_surface_area

    fewer = inside if inside.sum() <= 4.0 else 1.0 - inside
    vertices, faces, _, _ = marching_cubes(fewer, level=0.5, spacing=spacing_mm, method="lorensen")
    return float(mesh_surface_area(vertices, faces))
