"""A series of CT or MR slices as one volume, or the reason why not, naming the slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.dicom.files import IMAGES, DicomFile, open_dicom, slice_labels, sort_out
from medquant.data.dicom.geometry import Stack, stack_slices
from medquant.data.dicom.headers import SliceHeader, read_slice_header
from medquant.data.dicom.pixels import check_decodable, read_stored
from medquant.data.dicom.quiet import quiet_dicom
from medquant.data.volume import Volume
from medquant.errors import InputError

MAX_DECODED_BYTES = 2 * 1024**3
"""Largest volume, decoded, that is read unless the caller allows more."""

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class FoundSeries:
    """What a folder holds.

    Args:
        series: CT and MR series, each as its files; in the order in which ``series=`` counts them, from 1.
        ignored: number of other files (text, hidden files, DICOMDIR, structure sets, segmentations, reports).
        other_kinds: standard name of each other kind of DICOM object → how many.
    """

    series: tuple[tuple[DicomFile, ...], ...]
    ignored: int
    other_kinds: dict[str, int]

    def choose(self, series: int | None, name: str) -> tuple[DicomFile, ...]:
        """Return the files of the series meant: the only one, or the one counted ``series`` from 1.

        Raises:
            InputError: there is none, there are several and none is chosen, or fewer than ``series``; the series are listed.
        """
        if not self.series:
            kinds = ", ".join(f"{count} × {kind}" for kind, count in self.other_kinds.items())
            what = f"no CT or MR slices but {kinds}" if kinds else f"no DICOM slices ({self.ignored} other files)"
            raise InputError(f"{name}: found {what}, expected a CT or MR series; point to the folder that holds the slices")
        listed = "; ".join(f"{place}: {describe_series(files)}" for place, files in enumerate(self.series, start=1))
        if series is None and len(self.series) > 1:
            raise InputError(f"{name}: found {len(self.series)} series, expected one ({listed}); choose with series=, or separate them")
        if series is not None and not 1 <= series <= len(self.series):
            raise InputError(f"{name}: found no series {series}, expected 1 to {len(self.series)} ({listed})")
        return self.series[(series or 1) - 1]


def read_dicom_series(
    folder: Path, *, series: int | None = None, name: str = "DICOM folder", max_decoded_bytes: int = MAX_DECODED_BYTES
) -> Volume:
    """Read the classic CT or MR series in ``folder`` (subfolders are not searched).

    Args:
        series: which one, counted from 1, where the folder holds several.
        name: what messages call the folder; its path is never repeated, for it may hold a patient's name or a date.

    Returns:
        A volume of shape ``(I, J, K)``: ``i`` the column, ``j`` the row, ``k`` the slice, sorted by position to grow along
        row direction × column direction, so that the affine (RAS millimetres) always has a positive determinant. Values are
        slope × stored + intercept: int16 where every slope is 1, every intercept whole and every value fits, else float32.
        Padding keeps its value. A slice that stands alone gets the thickness its header tells; ``has_geometry`` is False
        where it tells none.

    Raises:
        InputError: no series, several of them and none chosen, a file that is damaged, cut short, compressed in a way that
            cannot be read, multi-frame or in colour, or a volume larger than ``max_decoded_bytes``.
        GeometryError: slices that form no regular, complete, upright stack; see :func:`stack_slices`.
    """
    with quiet_dicom():
        return _read_volume(choose_files(folder, series, name), name, max_decoded_bytes)


def read_dicom_files(
    paths: Sequence[Path], *, series: int | None = None, name: str = "DICOM files", max_decoded_bytes: int = MAX_DECODED_BYTES
) -> Volume:
    """Read the classic CT or MR series that these files form; see :func:`read_dicom_series`.

    Raises:
        InputError, GeometryError: as there; also where ``paths`` is empty or one of them is no DICOM file.
    """
    with quiet_dicom():
        return _read_volume(choose_files(paths, series, name), name, max_decoded_bytes)


def find_series(folder: Path, *, name: str = "DICOM folder") -> FoundSeries:
    """Open the header of every DICOM file in ``folder`` and sort the files into series.

    Raises:
        InputError: the folder cannot be listed, or holds a file that may be a damaged slice.
    """
    with quiet_dicom():
        paths, ignored = sort_out(folder, name)
        return _group(paths, ignored, name)


def open_files(paths: Sequence[Path], *, name: str = "DICOM files") -> FoundSeries:
    """Open the header of each of these files and sort them into series; raises InputError for one that is no DICOM file."""
    with quiet_dicom():
        return _group(sorted(paths), 0, name)


def check_series(files: Sequence[DicomFile], name: str) -> Stack:
    """Check all that the headers of one series tell, pixels aside; see :func:`read_dicom_series` for what is raised."""
    headers = [read_slice_header(file, name) for file in files]
    for header in headers:
        check_decodable(header, name)
    return stack_slices(headers, name)


def choose_files(source: Path | Sequence[Path], series: int | None, name: str) -> tuple[DicomFile, ...]:
    """Find the files of the one series meant in a folder, or among files; see :func:`read_dicom_series` for what is raised."""
    with quiet_dicom():
        if not isinstance(source, Path):
            return open_files(source, name=name).choose(series, name)
        if not source.is_dir():
            found = "a file" if source.is_file() else "nothing"
            raise InputError(f"{name}: found {found}, expected a folder of DICOM slices; check the path")
        return find_series(source, name=name).choose(series, name)


def _group(paths: Sequence[Path], ignored: int, name: str) -> FoundSeries:
    from pydicom.uid import UID

    files = [open_dicom(path, label, name) for path, label in zip(paths, slice_labels(paths), strict=True)]
    grouped: dict[str, list[DicomFile]] = {}
    other: Counter[str] = Counter()
    for file in files:
        if file.sop_class in IMAGES:
            grouped.setdefault(file.series, []).append(file)
        else:
            # Only registered kinds have a name that differs from their number.
            kind = UID(file.sop_class).name
            other[kind if kind != file.sop_class else "unknown kind"] += 1
    # By the identifiers: an order that stays the same whatever the files are called.
    series = tuple(tuple(grouped[key]) for key in sorted(grouped))
    return FoundSeries(series, ignored + sum(other.values()), dict(sorted(other.items())))


def describe_series(files: Sequence[DicomFile]) -> str:
    """Modality, number of slices and their size in a few words, for a list to choose from."""
    first = files[0]
    rows, columns = first.fields.get("Rows"), first.fields.get("Columns")
    size = f" of {columns}×{rows}" if isinstance(rows, int) and isinstance(columns, int) else ""
    return f"{first.modality}, {len(files)} slice{'s' if len(files) > 1 else ''}{size}"


def _read_volume(files: Sequence[DicomFile], name: str, max_decoded_bytes: int) -> Volume:
    stack = check_series(files, name)
    values = _allocate(stack, first_kind(stack), name, max_decoded_bytes)
    for place, header in enumerate(stack.slices):
        stored = read_stored(header, name)
        if values.dtype == np.int16 and not fits_int16(stored, header):
            wider = _allocate(stack, np.dtype(np.float32), name, max_decoded_bytes)
            wider[:place] = values[:place]
            values = wider
        fill_plane(values[place], stored, header)
    return Volume(values.transpose(2, 1, 0), stack.affine, stack.has_geometry)


def _allocate(stack: Stack, kind: np.dtype[np.generic], name: str, max_decoded_bytes: int) -> NDArray[np.generic]:
    check_decoded_size(stack, kind, name, max_decoded_bytes)
    pixels = stack.slices[0].pixels
    return np.empty((len(stack.slices), pixels.rows, pixels.columns), dtype=kind)


def first_kind(stack: Stack) -> np.dtype[np.generic]:
    """The number type a series is read as, unless a value does not fit: int16 where all values are whole, else float32."""
    whole = all(header.slope == 1 and header.intercept == int(header.intercept) for header in stack.slices)
    return np.dtype(np.int16 if whole else np.float32)


def check_decoded_size(stack: Stack, kind: np.dtype[np.generic], name: str, max_decoded_bytes: int = MAX_DECODED_BYTES) -> None:
    """Raise InputError where the volume would be larger than allowed."""
    pixels = stack.slices[0].pixels
    shape = (len(stack.slices), pixels.rows, pixels.columns)
    size_bytes = kind.itemsize * shape[0] * shape[1] * shape[2]
    if size_bytes > max_decoded_bytes:
        raise InputError(
            f"{name}: {shape[0]} slices of {shape[2]}×{shape[1]} need {size_bytes / 2**20:.0f} MiB, "
            f"expected at most {max_decoded_bytes / 2**20:.0f} MiB; split or crop the series"
        )


def fits_int16(stored: NDArray[np.generic], header: SliceHeader) -> bool:
    """Whether all values of a slice of slope 1 are int16."""
    low, high = int(stored.min()) + int(header.intercept), int(stored.max()) + int(header.intercept)
    return bool(_INT16.min <= low and high <= _INT16.max)


def fill_plane(plane: NDArray[np.generic], stored: NDArray[np.generic], header: SliceHeader) -> None:
    """Write the values of a slice, slope × stored + intercept, into ``plane`` of int16 or float32."""
    if plane.dtype == np.int16:
        plane[...] = stored.astype(np.int32) + np.int32(header.intercept)
    else:
        plane[...] = stored.astype(np.float64) * header.slope + header.intercept
