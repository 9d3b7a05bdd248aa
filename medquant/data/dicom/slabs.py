"""A DICOM series of any size, slice by slice: decoded into a scratch folder, with the values and checks of the reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.dicom.geometry import Stack
from medquant.data.dicom.pixels import read_stored
from medquant.data.dicom.quiet import quiet_dicom
from medquant.data.dicom.series import check_decoded_size, check_series, choose_files, fill_plane, first_kind, fits_int16
from medquant.data.slabs import SliceSource
from medquant.data.stored import ArrayCache
from medquant.data.volume import Volume


@dataclass(frozen=True)
class OpenSeries:
    """A series that was read.

    Args:
        volume: its voxels, mapped when they are asked for.
        modality: what the kind of object says, ``CT`` or ``MR``.
    """

    volume: Volume
    modality: str


class _TooWideError(Exception):
    """A value does not fit into int16."""


def open_dicom_series(folder: Path, scratch: ArrayCache, *, name: str = "DICOM folder") -> OpenSeries:
    """Read the one series in ``folder``; see :func:`~medquant.data.dicom.read_dicom_series` for values, checks and errors.

    Args:
        folder: the slices; subfolders are not searched.
        scratch: cache in whose folder the voxels are put, for this reading only.
        name: what messages call the folder.

    Raises:
        InputError, GeometryError: as there.
        UsageError: the scratch folder cannot be written.
    """
    with quiet_dicom():
        files = choose_files(folder, None, name)
        stack = check_series(files, name)
        kind = first_kind(stack)
        try:
            volume = _decode(stack, kind, name, scratch)
        except _TooWideError:
            volume = _decode(stack, np.dtype(np.float32), name, scratch)
    return OpenSeries(volume, files[0].modality)


def series_files(folder: Path, *, name: str = "DICOM folder") -> list[Path]:
    """The files of the one series in ``folder``; raises as :func:`open_dicom_series`."""
    with quiet_dicom():
        return sorted(file.path for file in choose_files(folder, None, name))


def _decode(stack: Stack, kind: np.dtype[np.generic], name: str, scratch: ArrayCache) -> Volume:
    check_decoded_size(stack, kind, name)
    pixels = stack.slices[0].pixels

    def slices() -> Iterator[NDArray[np.generic]]:
        for header in stack.slices:
            stored = read_stored(header, name)
            if kind == np.int16 and not fits_int16(stored, header):
                raise _TooWideError
            plane: NDArray[np.generic] = np.empty((pixels.rows, pixels.columns), dtype=kind)
            fill_plane(plane, stored, header)
            yield plane.T

    shape = (pixels.columns, pixels.rows, len(stack.slices))
    return scratch.keep_slices(f"series {kind} of {name}", SliceSource(shape, kind, stack.affine, stack.has_geometry, slices))
