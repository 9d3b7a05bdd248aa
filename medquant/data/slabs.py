"""Volumes that are made slice by slice and never held as a whole: what decoding and resampling hand to the cache."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import Volume

_PIECE_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class SliceSource:
    """A volume that is yet to be made.

    Args:
        shape: ``(I, J, K)``.
        dtype: number type, native byte order.
        affine: as in :class:`Volume`.
        has_geometry: as in :class:`Volume`.
        slices: gives the ``K`` slices ``(I, J)``, first to last; may be asked more than once.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    affine: NDArray[np.float64]
    has_geometry: bool
    slices: Callable[[], Iterator[NDArray[np.generic]]]

    def volume(self) -> Volume:
        """The whole volume, in memory."""
        array = np.empty(self.shape[::-1], dtype=self.dtype).transpose(2, 1, 0)
        for k, pixels in enumerate(self.slices()):
            array[:, :, k] = pixels
        return Volume(array, self.affine, self.has_geometry)


def write_npy_slices(stream: BinaryIO, source: SliceSource) -> str:
    """Write an ``.npy`` of ``(K, J, I)``; returns the ``array_sha256`` of the volume."""
    little = source.dtype.newbyteorder("<")
    header = {"descr": np.lib.format.dtype_to_descr(little), "fortran_order": False, "shape": source.shape[::-1]}
    np.lib.format.write_array_header_1_0(stream, header)
    digest = _begun(source.dtype, source.shape)
    for pixels in source.slices():
        data = np.ascontiguousarray(pixels.T, dtype=little).reshape(-1).view(np.uint8).data
        digest.update(data)
        stream.write(data)
    return digest.hexdigest()


def npy_sha256(path: Path) -> str:
    """``array_sha256`` of the volume in an ``.npy`` of ``(K, J, I)``, read in pieces: nothing of it stays in the process.

    Raises:
        OSError, ValueError: the file cannot be read, or is no such array.
    """
    with path.open("rb") as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        digest = _begun(dtype, shape[::-1])
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def let_go(array: NDArray[np.generic]) -> None:
    """Take the pages of a mapped file that were touched out of this process; of any other array nothing happens."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            base.madvise(mmap.MADV_DONTNEED)


class FileVolume(Volume):
    """What volumes share whose voxels stay in a file: all but the voxels is known without opening it.

    Args:
        path: the file.
        shape: ``(I, J, K)``.
        dtype: number type.
        affine: as in :class:`Volume`.
        has_geometry: as in :class:`Volume`.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int, int], dtype: np.dtype[np.generic], affine: NDArray[np.float64], has_geometry: bool
    ) -> None:
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "has_geometry", has_geometry)
        self.__dict__.update(_path=path, _shape=shape, _dtype=dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape ``(I, J, K)``; the file is not opened."""
        shape: tuple[int, int, int] = self.__dict__["_shape"]
        return shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Number type of the voxels; the file is not opened."""
        dtype: np.dtype[np.generic] = self.__dict__["_dtype"]
        return dtype

    @property
    def sha256(self) -> str:
        """``array_sha256`` of the voxels."""
        return str(self.__dict__["_sha256"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.sha256 == other.sha256 and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash(self.sha256)


class MappedVolume(FileVolume):
    """A volume whose voxels lie, plain and slice by slice, in a file that is mapped anew each time they are asked for.

    Args:
        path: the file.
        offset_bytes: where the first voxel lies.
        shape: ``(I, J, K)``; ``i`` is fastest in the file.
        dtype: number type in the file, native byte order.
        affine: as in :class:`Volume`.
        has_geometry: as in :class:`Volume`.
    """

    def __init__(
        self,
        path: Path,
        offset_bytes: int,
        shape: tuple[int, int, int],
        dtype: np.dtype[np.generic],
        affine: NDArray[np.float64],
        has_geometry: bool,
    ) -> None:
        super().__init__(path, shape, dtype, affine, has_geometry)
        self.__dict__["_offset"] = offset_bytes

    @property
    def array(self) -> NDArray[np.generic]:
        """Shape ``(I, J, K)``, read-only, mapped now."""
        place = self.__dict__
        mapped: NDArray[np.generic] = np.memmap(place["_path"], dtype=self.dtype, mode="r", offset=place["_offset"], shape=self.shape[::-1])
        return np.asarray(mapped).transpose(2, 1, 0)

    @property
    def sha256(self) -> str:
        """``array_sha256`` of the voxels, found once."""
        if "_sha256" not in self.__dict__:
            self.__dict__["_sha256"] = self._find_sha256()
        return str(self.__dict__["_sha256"])

    def _find_sha256(self) -> str:
        digest = _begun(self.dtype, self.shape)
        for k in range(self.shape[2]):
            digest.update(np.ascontiguousarray(self.array[:, :, k].T, dtype=self.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def _begun(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> hashlib._Hash:
    """The digest of :func:`array_sha256` before the first voxel."""
    little = dtype.newbyteorder("<")
    return hashlib.sha256(f"{little.kind}{little.itemsize} {tuple(shape)} ".encode())
