"""Whether two volumes lie on one grid, and how the voxels of one are put in the order of the other.

Only permuted and reversed axes are undone, which moves voxels and changes none. Anything else would need resampling, and a
mask that has to be resampled before it fits its image is a mistake somebody should look at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from medquant.data.content import volume_sha256
from medquant.data.stored import ArrayCache
from medquant.data.volume import Volume
from medquant.errors import GeometryError

GRID_TOLERANCE_VOXELS = 0.05
"""How far apart, in voxels, a corner may lie on two grids that count as one.

Quaternions and affines stored in 32 bits, and headers that tools have written anew, put corners up to 0.03 voxels apart. A
twentieth of a voxel moves no outline that a person drew.
"""


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of a volume are permuted and reversed to lie as those of another one.

    Args:
        axes: axis of the volume that becomes axis 0, 1, 2.
        reversed_axes: for each of the new axes, whether it runs against the volume's own.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    reversed_axes: tuple[bool, bool, bool] = (False, False, False)

    @property
    def is_identity(self) -> bool:
        """Whether nothing has to be moved."""
        return self == AxisOrder()

    def apply(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """The array ``(I, J, K)`` in the new order, as a view."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if turned else 1) for turned in self.reversed_axes)]


def axis_order(volume: Volume, target: Volume, names: tuple[str, str]) -> AxisOrder:
    """Find the order of axes in which ``volume`` lies on the grid of ``target``.

    Where one of the two says nothing about its place, equal shapes are all there is to ask for.

    Args:
        volume: what may have to be reordered.
        target: the grid it should be on.
        names: how messages call the two, usually their files.

    Raises:
        GeometryError: the shapes differ in every order, or a corner lies more than ``GRID_TOLERANCE_VOXELS`` off.
    """
    if not (volume.has_geometry and target.has_geometry):
        if volume.shape != target.shape:
            raise GeometryError(
                f"{names[0]} has shape {volume.shape}, {names[1]} {target.shape}, and one of them says nothing about its place; "
                "expected the same shape, so export both from one source"
            )
        return AxisOrder()
    # From voxel indices of the target to voxel indices of the volume: a signed permutation where the grids are one.
    between: NDArray[np.float64] = np.linalg.solve(volume.affine, target.affine).astype(np.float64)
    largest = np.abs(between[:3, :3]).argmax(axis=0)
    axes = (int(largest[0]), int(largest[1]), int(largest[2]))
    if sorted(axes) == [0, 1, 2]:
        turned = tuple(bool(between[axis, new] < 0) for new, axis in enumerate(axes))
        order = AxisOrder(axes, (turned[0], turned[1], turned[2]))
        permuted = tuple(volume.shape[axis] for axis in axes)
        if permuted == target.shape and _largest_offset(between, order, target.shape) <= GRID_TOLERANCE_VOXELS:
            return order
    raise GeometryError(
        f"{names[0]} (shape {volume.shape}, voxels of {_sizes(volume)} mm) does not lie on the grid of {names[1]} (shape {target.shape}, "
        f"{_sizes(target)} mm): corners are {_corner_distance(volume, target):.3g} mm apart, expected at most {GRID_TOLERANCE_VOXELS:g} "
        "voxels; take both from one source, or resample the first onto the second"
    )


def lay_on(volume: Volume, target: Volume, names: tuple[str, str], cache: ArrayCache) -> tuple[Volume, str]:
    """Put ``volume`` on the grid of ``target``; see :func:`axis_order`.

    Returns:
        The volume in the axis order and with the affine of ``target``, and what was done: ``same``, ``reordered``, or
        ``assumed`` where only the shapes could be compared.

    Raises:
        GeometryError: the two are not on one grid.
    """
    order = axis_order(volume, target, names)
    if volume.has_geometry == target.has_geometry and order.is_identity:
        return volume, "same"
    what = "reordered" if volume.has_geometry and target.has_geometry else "assumed"
    return cache.keep(_key(volume, target, order), _maker(volume, target, order)), what


def _maker(volume: Volume, target: Volume, order: AxisOrder) -> Callable[[], Volume]:
    return lambda: Volume(array=order.apply(volume.array), affine=target.affine, has_geometry=target.has_geometry)


def _key(volume: Volume, target: Volume, order: AxisOrder) -> str:
    # The affine enters because empty masks of two cases have one digest and two places.
    return f"laid 1 {volume_sha256(volume)} {order.axes} {order.reversed_axes} {target.affine.tolist()} {target.has_geometry}"


def _largest_offset(between: NDArray[np.float64], order: AxisOrder, shape: tuple[int, int, int]) -> float:
    """Largest distance along an axis, in voxels, between where a corner is and where the axis order puts it."""
    corners = np.array([[*corner, 1] for corner in product(*((0, length - 1) for length in shape))], dtype=np.float64)
    found = (corners @ between.T)[:, :3]
    expected = np.empty_like(found)
    for new, (axis, turned) in enumerate(zip(order.axes, order.reversed_axes, strict=True)):
        expected[:, axis] = shape[new] - 1 - corners[:, new] if turned else corners[:, new]
    return float(np.abs(found - expected).max())


def _corner_distance(volume: Volume, target: Volume) -> float:
    """Largest distance in millimetres from a corner of the target to the nearest corner of the volume."""
    ends = []
    for each in (volume, target):
        corners = np.array([[*corner, 1] for corner in product(*((0, length - 1) for length in each.shape))], dtype=np.float64)
        ends.append((corners @ each.affine.T)[:, :3])
    return float(np.linalg.norm(ends[1][:, None] - ends[0][None], axis=2).min(axis=1).max())


def _sizes(volume: Volume) -> str:
    return "×".join(f"{length:.4g}" for length in volume.spacing_mm)
