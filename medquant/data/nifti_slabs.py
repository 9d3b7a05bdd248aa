"""NIfTI scans of any size, slice by slice: a plain file is mapped where it lies, any other is decoded into a scratch folder.

The values, the checks and their words are those of :mod:`medquant.data.nifti`; only the way to them needs no memory for the scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.nifti import check_intent, spatial_shape
from medquant.data.nifti_check import (
    OpenNifti,
    check_end,
    largest_stored,
    open_nifti,
    read_voxels,
    scaled,
    scaled_type,
    skip_to_voxels,
)
from medquant.data.nifti_geometry import TransformRule, affine_mm
from medquant.data.nifti_header import NiftiHeader
from medquant.data.slabs import MappedVolume, SliceSource
from medquant.data.stored import ArrayCache
from medquant.data.volume import Volume
from medquant.data.voxel_rules import BadVoxels, count_bad_voxels, refuse_bad_voxels


def open_nifti_channels(
    path: Path, scratch: ArrayCache, *, transform: TransformRule = "agreed", max_decoded_bytes: int | None = None
) -> tuple[Volume, ...]:
    """Read a scan whose fourth axis, where there is one, holds the channels; see :func:`~medquant.data.nifti.read_nifti_channels`.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        scratch: cache in whose folder decoded voxels are put, under keys that hold the path alone: one for this reading only.
        transform: which of the header's transforms to believe.
        max_decoded_bytes: as there.

    Returns:
        One volume of shape ``(I, J, K)`` a channel, whose array maps a file each time it is asked for.

    Raises:
        InputError, GeometryError: as there, under the rule that refuses bad voxels.
        UsageError: the scratch folder cannot be written.
    """
    with open_nifti(path, max_decoded_bytes) as opened:
        header, packed = opened.header, opened.packed
        check_intent(path, header)
        i, j, k, channels = spatial_shape(path, header.shape, 4)
    affine, has_geometry = affine_mm(path, header, transform)
    if packed or not header.stored.isnative or (header.stored.itemsize > 1 and header.data_offset % header.stored.itemsize):
        stored = _decode(path, (i, j, k * channels), affine, has_geometry, scratch, max_decoded_bytes)
    else:
        with open_nifti(path, max_decoded_bytes) as opened:
            opened.stream.seek(header.data_offset + header.data_bytes)
            check_end(path, opened)
        stored = MappedVolume(path, header.data_offset, (i, j, k * channels), header.stored, affine, has_geometry)
    values = _scaled(path, stored, header, scratch) if header.scales else stored
    if channels == 1:
        _check_voxels(path, values)
        return (values,)
    parts = tuple(PartVolume(values, number * k, (i, j, k)) for number in range(channels))
    for number, part in enumerate(parts):
        _check_voxels(f"{path}, channel {number}", part)
    return parts


class PartVolume(Volume):
    """Some slices of a volume.

    Args:
        whole: the volume.
        first: its first slice in this one.
        shape: ``(I, J, K)`` of this one.
    """

    def __init__(self, whole: Volume, first: int, shape: tuple[int, int, int]) -> None:
        object.__setattr__(self, "affine", whole.affine)
        object.__setattr__(self, "has_geometry", whole.has_geometry)
        self.__dict__.update(_whole=whole, _first=first, _shape=shape)

    @property
    def array(self) -> NDArray[np.generic]:
        """Shape ``(I, J, K)``; a view of the whole volume's array."""
        whole: Volume = self.__dict__["_whole"]
        first: int = self.__dict__["_first"]
        return whole.array[:, :, first : first + self.shape[2]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape ``(I, J, K)``."""
        shape: tuple[int, int, int] = self.__dict__["_shape"]
        return shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Number type of the voxels."""
        whole: Volume = self.__dict__["_whole"]
        return whole.dtype


def _decode(
    path: Path,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    has_geometry: bool,
    scratch: ArrayCache,
    max_decoded_bytes: int | None,
) -> Volume:
    """Stored numbers in native byte order, every byte of the file read to its end."""

    def slices() -> Iterator[NDArray[np.generic]]:
        with open_nifti(path, max_decoded_bytes) as opened:
            skip_to_voxels(path, opened)
            for k in range(shape[2]):
                yield _next_slice(path, opened, shape, k)
            check_end(path, opened)

    with open_nifti(path, max_decoded_bytes) as opened:
        native = opened.header.stored.newbyteorder("=")
    return scratch.keep_slices(f"stored numbers of {path}", SliceSource(shape, native, affine, has_geometry, slices))


def _next_slice(path: Path, opened: OpenNifti, shape: tuple[int, int, int], k: int) -> NDArray[np.generic]:
    dtype = opened.header.stored
    content = np.empty(shape[0] * shape[1] * dtype.itemsize, dtype=np.uint8)
    read_voxels(path, opened, content, k * content.size)
    pixels = content.view(dtype).reshape(shape[:2], order="F")
    return pixels if dtype.isnative else pixels.astype(dtype.newbyteorder("="))


def _scaled(path: Path, stored: Volume, header: NiftiHeader, scratch: ArrayCache) -> Volume:
    count = stored.shape[2]
    dtype = np.dtype(scaled_type(max(largest_stored(stored.array[:, :, k]) for k in range(count)), header))

    def slices() -> Iterator[NDArray[np.generic]]:
        for k in range(count):
            yield scaled(stored.array[:, :, k], header, dtype)

    return scratch.keep_slices(f"values of {path}", SliceSource(stored.shape, dtype, stored.affine, stored.has_geometry, slices))


def _check_voxels(source: Path | str, volume: Volume) -> None:
    if volume.dtype.kind != "f":
        return
    found = [count_bad_voxels(volume.array[:, :, k]) for k in range(volume.shape[2])]
    refuse_bad_voxels(
        source, BadVoxels(sum(each.nan for each in found), sum(each.infinite for each in found), sum(each.total for each in found))
    )
