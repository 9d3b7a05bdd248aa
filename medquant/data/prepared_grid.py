"""The grid on which a network sees a case, and the way back to the grid on which its mask is scored and written.

Three steps, each undone exactly or by the stated rule: axes are brought to the order right–left, back–front, foot–head
(RAS, by permuting and flipping alone, with the slicing axis last); slices are resampled to a stated in-plane spacing; the
slices themselves stay what they are. Resampled grids share their middle with the original, so flipped input gives flipped
output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import FloatArray, LabelArray, Volume
from medquant.errors import CheckpointError, GeometryError

SliceAxis = Literal["sagittal", "coronal", "axial", "stored"]
SLICE_AXES: tuple[str, ...] = get_args(SliceAxis)

_SAME_SPACING = 1e-3
"""Spacings that differ by less than this share are the same; resampling would only blur."""


@dataclass(frozen=True)
class Plane:
    """In-plane resampling of slices from ``(I, J)`` to ``(P, Q)``.

    Args:
        stored: size of the stored slice.
        prepared: size of the resampled slice.
        step: distance of resampled pixels, in stored pixels, along both axes.
    """

    stored: tuple[int, int]
    prepared: tuple[int, int]
    step: tuple[float, float]

    def image(self, pixels: NDArray[np.generic]) -> FloatArray:
        """Cubic splines, with the pixels averaged first where the grid becomes coarser; (I, J) → (P, Q) float32."""
        from scipy.ndimage import affine_transform, gaussian_filter

        values = np.asarray(pixels, dtype=np.float64)
        blur = [max(0.0, (step - 1.0) / 2.0) for step in self.step]
        if any(blur):
            values = gaussian_filter(values, blur, mode="nearest")
        moved = affine_transform(values, np.asarray(self.step), self._offset(), self.prepared, order=3, mode="nearest")
        return np.asarray(moved, dtype=np.float32)

    def mask(self, pixels: LabelArray) -> LabelArray:
        """Each class interpolated linearly, the largest share wins, the lower class on a tie; (I, J) → (P, Q) uint8."""
        return _labels(pixels, self.step, self._offset(), self.prepared)

    def restore(self, pixels: LabelArray) -> LabelArray:
        """The rule of ``mask``, from the resampled grid to the stored one; (P, Q) → (I, J) uint8."""
        back = tuple(1.0 / step for step in self.step)
        offset = tuple(-start / step for start, step in zip(self._offset(), self.step, strict=True))
        return _labels(pixels, (back[0], back[1]), (offset[0], offset[1]), self.stored)

    def _offset(self) -> tuple[float, float]:
        """Position of the first resampled pixel, in stored pixels."""
        starts = [
            ((stored - 1) - (prepared - 1) * step) / 2 for stored, prepared, step in zip(self.stored, self.prepared, self.step, strict=True)
        ]
        return starts[0], starts[1]


@dataclass(frozen=True)
class PreparedGrid:
    """Where a stored volume lies on the network's grid.

    Args:
        stored_shape: ``(I, J, K)`` of the file.
        axes: stored axis that becomes prepared axis 0, 1, 2.
        flipped: whether the prepared axis runs against the stored one.
        plane: in-plane resampling, None where slices stay as they are.
        spacing_mm: of the prepared grid.
    """

    stored_shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    plane: Plane | None
    spacing_mm: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the prepared array; slices lie along the last axis."""
        i, j, k = (self.stored_shape[axis] for axis in self.axes)
        return (i, j, k) if self.plane is None else (*self.plane.prepared, k)

    @property
    def is_identity(self) -> bool:
        """Whether the prepared array is the stored one."""
        return self.axes == (0, 1, 2) and not any(self.flipped) and self.plane is None

    def orient(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """A view with the axes in prepared order; nothing is copied."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def image(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Stored image → prepared image; float32 where it is resampled, otherwise a view of the stored number type."""
        oriented = self.orient(array)
        if self.plane is None:
            return oriented
        return _by_slice(oriented, self.plane.image, self.shape, np.dtype(np.float32))

    def mask(self, array: NDArray[np.generic]) -> LabelArray:
        """Stored mask → prepared mask."""
        oriented = np.asarray(self.orient(array), dtype=np.uint8)
        if self.plane is None:
            return oriented
        return np.asarray(_by_slice(oriented, self.plane.mask, self.shape, np.dtype(np.uint8)), dtype=np.uint8)

    def place(self, canvas: LabelArray, k: int, pixels: LabelArray) -> None:
        """Put slice ``k`` of a prepared mask, ``(P, Q)``, to its place in ``canvas``, the mask on the grid of the file: see ``restore``."""
        # A view: what is written here is written there.
        self.orient(canvas)[:, :, k] = pixels if self.plane is None else self.plane.restore(pixels)

    def restore(self, mask: LabelArray) -> LabelArray:
        """Prepared mask → mask on the grid of the file.

        Raises:
            GeometryError: the mask is not on the prepared grid.
        """
        if mask.shape != self.shape:
            raise GeometryError(f"a mask of shape {mask.shape} cannot go back to the scan: the network's grid has {self.shape}")
        if self.plane is not None:
            stored = (*self.plane.stored, mask.shape[2])
            mask = np.asarray(_by_slice(mask, self.plane.restore, stored, np.dtype(np.uint8)), dtype=np.uint8)
        unflipped = mask[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]
        return np.ascontiguousarray(unflipped.transpose(tuple(int(place) for place in np.argsort(self.axes))))


@dataclass(frozen=True)
class GridRule:
    """How the prepared grid follows from a volume.

    Args:
        slice_axis: anatomical axis across which slices are cut; ``stored``: the file's last axis, nothing reoriented.
        spacing_mm: in-plane spacing along the two remaining axes in RAS order, None for the file's own.
    """

    slice_axis: SliceAxis = "stored"
    spacing_mm: tuple[float, float] | None = None

    def grid(self, volume: Volume) -> PreparedGrid:
        """The prepared grid of a volume; one without geometry keeps its axes and its pixels."""
        if not volume.has_geometry:
            return PreparedGrid(volume.shape, (0, 1, 2), (False, False, False), None, volume.spacing_mm)
        axes, flipped = _orientation(volume.affine, self.slice_axis)
        spacing = tuple(_without_noise(volume.spacing_mm[axis]) for axis in axes)
        size = tuple(volume.shape[axis] for axis in axes)
        plane = self._plane((size[0], size[1]), (spacing[0], spacing[1]))
        in_plane = (spacing[0], spacing[1]) if plane is None or self.spacing_mm is None else self.spacing_mm
        return PreparedGrid(volume.shape, axes, flipped, plane, (*in_plane, spacing[2]))

    def _plane(self, size: tuple[int, int], spacing: tuple[float, float]) -> Plane | None:
        if self.spacing_mm is None or all(abs(new / old - 1) < _SAME_SPACING for new, old in zip(self.spacing_mm, spacing, strict=True)):
            return None
        step = (self.spacing_mm[0] / spacing[0], self.spacing_mm[1] / spacing[1])
        prepared = tuple(max(1, math.ceil(length / each - 1e-6)) for length, each in zip(size, step, strict=True))
        return Plane(size, (prepared[0], prepared[1]), step)

    def to_json(self) -> dict[str, object]:
        """The rule as plain JSON values; ``from_json`` gives it back."""
        return {"slice_axis": self.slice_axis, "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm)}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> GridRule:
        """Read what ``to_json`` wrote.

        Raises:
            CheckpointError: keys, types or values are not those of a grid rule.
        """
        axis, spacing = data.get("slice_axis"), data.get("spacing_mm")
        known = next((name for name in get_args(SliceAxis) if name == axis), None)
        numbers = isinstance(spacing, list | tuple) and all(type(value) in (int, float) for value in spacing)
        listed = [float(value) for value in spacing] if numbers and isinstance(spacing, list | tuple) else None
        well_formed = spacing is None or (listed is not None and len(listed) == 2 and all(0 < value < math.inf for value in listed))
        if known is None or set(data) != {"slice_axis", "spacing_mm"} or not well_formed:
            raise CheckpointError(f"stored grid rule {dict(data)!r} is not readable, expected slice_axis and spacing_mm")
        return GridRule(known, None if listed is None else (listed[0], listed[1]))


def _without_noise(spacing_mm: float) -> float:
    """To six digits: a NIfTI holds 32-bit numbers, DICOM decimals, and the pixels of one scan must be resampled to the same bits."""
    return float(f"{spacing_mm:.6g}")


def choose_slice_axis(volumes: list[Volume]) -> SliceAxis:
    """The axis across which a dataset is sliced: that of the thick slices, where there are such, otherwise axial.

    Args:
        volumes: at least one image of each subject that is trained on.
    """
    if not all(volume.has_geometry for volume in volumes):
        return "stored"
    spacings = []
    for volume in volumes:
        axes, _ = _orientation(volume.affine, "axial")
        spacings.append([volume.spacing_mm[axis] for axis in axes])
    right, front, head = (float(value) for value in np.median(np.asarray(spacings), axis=0))
    # Twice as far apart as the pixels: then these are the slices the scanner took.
    if right >= 2 * max(front, head):
        return "sagittal"
    return "coronal" if front >= 2 * max(right, head) else "axial"


def _orientation(affine: NDArray[np.float64], slice_axis: SliceAxis) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Stored axis and direction of each prepared axis."""
    if slice_axis == "stored":
        return (0, 1, 2), (False, False, False)
    import nibabel as nib

    found = nib.io_orientation(affine)
    stored_of = {int(anatomical): stored for stored, anatomical in enumerate(found[:, 0])}
    last = {"sagittal": 0, "coronal": 1, "axial": 2}[slice_axis]
    order = [axis for axis in (0, 1, 2) if axis != last] + [last]
    axes = [stored_of[anatomical] for anatomical in order]
    flips = [bool(found[stored, 1] < 0) for stored in axes]
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def _by_slice(array: NDArray[np.generic], change: object, shape: tuple[int, int, int], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    # Slices contiguous, as the cache stores them and the network takes them.
    result = np.empty((shape[2], shape[1], shape[0]), dtype=dtype).transpose(2, 1, 0)
    for k in range(shape[2]):
        result[:, :, k] = change(array[:, :, k])  # type: ignore[operator]
    return result


def _labels(pixels: LabelArray, step: tuple[float, float], offset: tuple[float, float], shape: tuple[int, int]) -> LabelArray:
    from scipy.ndimage import affine_transform

    present = np.unique(pixels)
    if len(present) == 1:
        return np.full(shape, present[0], dtype=np.uint8)
    result = np.full(shape, present[0], dtype=np.uint8)
    largest = np.full(shape, -1.0, dtype=np.float32)
    for number in present:
        share = affine_transform(
            (pixels == number).astype(np.float32), np.asarray(step), offset, shape, output=np.float32, order=1, mode="nearest"
        )
        better = share > largest
        result[better] = number
        largest[better] = share[better]
    return result
