"""What a NIfTI file is, found out without trusting it: sizes from the header first, then the data to its last byte.

The checksum at the end of a gzip stream is the only protection a ``.nii.gz`` has; it is seen only by who reads that far.

How much a file may hold, decoded: :data:`MAX_DECODED_BYTES`. A compressed one, besides, at most
:data:`MAX_GROWN_BYTES` where that is more than :data:`SUSPECT_GROWTH` times its size: masks grow a thousandfold but are
small, images are large but grow tenfold, and a file that does both is made to fill the memory. No gzip stream grows more
than :data:`DEFLATE_GROWTH` times, so a header that promises more is wrong. All of this is known before a voxel is decoded.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medquant.data.nifti_geometry import affine_mm
from medquant.data.nifti_header import NiftiHeader, read_nifti_header
from medquant.errors import GeometryError, InputError

MAX_DECODED_BYTES = 2 * 1024**3
"""Largest file, decoded, that is read unless the caller gives another limit."""

MAX_GROWN_BYTES = 512 * 1024**2
"""Largest file, decoded, that is read unless the caller gives a limit, where it is much smaller on disk."""

SUSPECT_GROWTH = 200
"""Decoded to compressed size above which :data:`MAX_GROWN_BYTES` holds; scans stay below 50."""

DEFLATE_GROWTH = 1032
"""Deflate (RFC 1951) stores at best 258 bytes in 2 bits."""

_PIECE_BYTES = 1024**2
# Some programs fill the last block of a file with zeros.
_PADDING_BYTES = 511


@dataclass(frozen=True)
class NiftiContents:
    """Header facts and voxels of a NIfTI file whose every byte was read.

    Args:
        values: voxels in stored axes and native byte order. Of the stored type, unless the header scales: then float32, or
            float64 where float32 would round by more than 1/64 of the step between two stored numbers.
        stored_type: number type in the file.
        header: the checked header.
        affine: shape ``(4, 4)``, voxel index → RAS millimetres; NaN or singular where the header gives no better.
        spacing: length of a voxel along each of the first three axes in millimetres.
        has_geometry: the header names a transform (qform or sform), not spacing alone.
        geometry_fault: why the affine cannot be trusted, or None.
    """

    values: NDArray[np.generic]
    stored_type: str
    header: NiftiHeader
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    has_geometry: bool
    geometry_fault: str | None


def read_nifti_fully(path: Path, max_decoded_bytes: int | None = None) -> NiftiContents:
    """Read a ``.nii`` or ``.nii.gz``, stream and voxels to their end; which of the two it is, its first bytes tell.

    Voxels that are NaN and transforms that cannot be are reported as found.

    Args:
        path: the very file that is read; none of a similar name is looked for.
        max_decoded_bytes: the only limit on the decoded size; None for the limits that this module states.

    Raises:
        InputError: missing; no single-file NIfTI; an impossible header; cut short; failing its checksum; of colour or complex
            voxels; more bytes after the voxels than padding explains; or larger than allowed.
    """
    with open_nifti(path, max_decoded_bytes) as opened:
        stored = _read_stored(path, opened)
    header = opened.header
    return _contents(path, header, _scaled(stored, header) if header.scales else stored)


@dataclass(frozen=True)
class OpenNifti:
    """A NIfTI file whose header has passed the checks, its stream right behind the fixed part of the header.

    Args:
        header: the checked header.
        head_bytes: what was read of the stream.
        stream: decoded bytes.
        packed: whether the file is compressed.
    """

    header: NiftiHeader
    head_bytes: int
    stream: BinaryIO
    packed: bool


@contextmanager
def open_nifti(path: Path, max_decoded_bytes: int | None = None) -> Iterator[OpenNifti]:
    """Open a file and check all that can be known before its voxels are read.

    Inside the block, a stream that cannot be read, ends early or fails its checksum becomes an InputError.

    Raises:
        InputError: see :func:`read_nifti_fully`.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise InputError(f"{path}: found {found}, expected a NIfTI file; check the path")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            size_bytes = os.fstat(raw.fileno()).st_size
            stream: BinaryIO = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            header, head_bytes = read_nifti_header(path, stream)
            needed = header.data_offset + header.data_bytes
            if packed:
                _check_limit(path, header, needed, size_bytes, max_decoded_bytes)
                _check_growth(path, header, needed, size_bytes)
            else:
                _check_length(path, needed, size_bytes)
                _check_limit(path, header, needed, needed, max_decoded_bytes)
            yield OpenNifti(header, head_bytes, stream, packed)
    except (OSError, EOFError, zlib.error) as error:
        # What the error quotes of the file is not repeated.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the stream ends early or fails its checksum"
        raise InputError(f"{path}: cut short or damaged ({reason}); copy or download it again") from error


def _contents(path: Path, header: NiftiHeader, values: NDArray[np.generic]) -> NiftiContents:
    fault: str | None = None
    try:
        affine, has_geometry = affine_mm(path, header)
    except GeometryError as error:
        fault, has_geometry = str(error), header.qform_code > 0 or header.sform_code > 0
        nowhere = np.full((4, 4), np.nan)
        affine = header.sform if header.sform_code > 0 else nowhere if header.qform is None else header.qform
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return NiftiContents(
        values=values,
        stored_type=header.stored.name,
        header=header,
        affine=affine,
        spacing=tuple(float(length) for length in (lengths if np.isfinite(lengths).all() else header.pixdim)),
        has_geometry=has_geometry,
        geometry_fault=fault,
    )


def _check_length(path: Path, needed: int, size_bytes: int) -> None:
    """An uncompressed file has no checksum, but a length."""
    if size_bytes < needed:
        raise InputError(f"{path}: found {size_bytes} of {needed} bytes; cut short or a damaged header, so copy or download it again")


def _check_growth(path: Path, header: NiftiHeader, needed: int, size_bytes: int) -> None:
    if needed > DEFLATE_GROWTH * size_bytes:
        raise InputError(
            f"{path}: {size_bytes} compressed bytes cannot hold the {needed} of shape {header.shape}; "
            "cut short or a damaged header, so copy or download it again"
        )


def _check_limit(path: Path, header: NiftiHeader, needed: int, size_bytes: int, limit: int | None) -> None:
    allowed, remedy = (MAX_DECODED_BYTES if limit is None else limit), "crop or split the scan, or allow more (max_decoded_bytes)"
    if limit is None and needed > SUSPECT_GROWTH * size_bytes:
        allowed = MAX_GROWN_BYTES
        remedy = f"it grows {needed // size_bytes}-fold; if you trust it, unpack it to .nii, or allow more (max_decoded_bytes)"
    if needed > allowed:
        raise InputError(
            f"{path}: shape {header.shape} of {header.stored.name} needs {needed / 2**20:.0f} MiB, expected at most "
            f"{allowed / 2**20:.0f} MiB; {remedy}"
        )


def _read_stored(path: Path, opened: OpenNifti) -> NDArray[np.generic]:
    """Read straight into the array that is returned, then on to the end of the stream, where the checksum is."""
    header = opened.header
    skip_to_voxels(path, opened)
    content = np.empty(header.data_bytes, dtype=np.uint8)
    read_voxels(path, opened, content, 0)
    check_end(path, opened)
    stored = content.view(header.stored)
    if not stored.dtype.isnative:
        stored = stored.byteswap(inplace=True).view(header.stored.newbyteorder("="))
    return stored.reshape(header.shape, order="F")


def skip_to_voxels(path: Path, opened: OpenNifti) -> None:
    """Read past header and extensions."""
    skipped = opened.head_bytes
    while skipped < opened.header.data_offset:
        piece = opened.stream.read(min(_PIECE_BYTES, opened.header.data_offset - skipped))
        if not piece:
            raise InputError(f"{path}: ends before its voxels, which start at byte {opened.header.data_offset}; copy or download it again")
        skipped += len(piece)


def read_voxels(path: Path, opened: OpenNifti, content: NDArray[np.uint8], before: int) -> None:
    """Fill ``content`` with the next bytes of voxels, ``before`` bytes of them having been read; InputError where they end."""
    read: Callable[[memoryview], int | None] = opened.stream.readinto  # type: ignore[attr-defined]
    filled = 0
    while filled < content.size:
        count = read(content.data[filled : filled + _PIECE_BYTES])
        if not count:
            found, wanted = before + filled, opened.header.data_bytes
            raise InputError(f"{path}: found {found} of {wanted} bytes of voxels; cut short, so copy or download it again")
        filled += count


def check_end(path: Path, opened: OpenNifti) -> None:
    """Read on to the end of the stream, where gzip compares checksum and length; more than padding is refused."""
    # Less than was asked for comes only at the end of the stream.
    padding = opened.stream.read(_PADDING_BYTES + 1)
    if len(padding) > _PADDING_BYTES or any(padding):
        raise InputError(
            f"{path}: holds more data than its shape {opened.header.shape} needs; the header is wrong, so convert the scan again"
        )


def _scaled(stored: NDArray[np.generic], header: NiftiHeader) -> NDArray[np.generic]:
    """Apply slope and intercept in float64, one part after the other, and keep the result in the type that suffices."""
    flat = stored.reshape(-1, order="F")
    parts = [slice(start, start + _PIECE_BYTES) for start in range(0, flat.size, _PIECE_BYTES)]
    values = np.empty(flat.size, dtype=scaled_type(max(largest_stored(flat[part]) for part in parts), header))
    for part in parts:
        values[part] = scaled(flat[part], header, values.dtype)
    return values.reshape(header.shape, order="F")


def scaled(part: NDArray[np.generic], header: NiftiHeader, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Slope and intercept applied to stored numbers, in float64, as ``dtype``."""
    # A value beyond the largest number becomes Inf, which the reader's rule for bad voxels then meets.
    with np.errstate(over="ignore", invalid="ignore"):
        values: NDArray[np.generic] = (part.astype(np.float64) * header.slope + header.intercept).astype(dtype)
    return values


def largest_stored(part: NDArray[np.generic]) -> float:
    """Largest magnitude among the finite numbers."""
    finite = part[np.isfinite(part)] if part.dtype.kind == "f" else part
    return max(abs(float(finite.min())), abs(float(finite.max()))) if finite.size else 0.0


def scaled_type(largest_stored: float, header: NiftiHeader) -> type[np.float32] | type[np.float64]:
    """float32, unless its rounding at the largest value is no longer small beside the step between stored numbers."""
    limits = np.finfo(np.float32)
    if header.stored.kind == "f" and header.stored.itemsize == 8:
        return np.float64
    slope = abs(header.slope)
    largest = slope * largest_stored + abs(header.intercept)
    if header.stored.kind == "f":
        allowed_error = slope * largest_stored * float(limits.eps)
    else:
        allowed_error = slope / 64
    fits = largest <= float(limits.max) and slope >= float(limits.tiny) and largest * float(limits.eps) / 2 <= allowed_error
    return np.float32 if fits else np.float64
