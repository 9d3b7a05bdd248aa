"""TIFF stacks: one gray page a slice, read with every size checked before memory is taken, written in one step.

Only the plain pages are looked at. What a description claims about further axes, or about other files that belong to
the stack, is not followed.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from medquant.data.atomic import write_atomically
from medquant.data.nifti_check import MAX_GROWN_BYTES, SUSPECT_GROWTH
from medquant.data.volume import Volume
from medquant.errors import InputError, UsageError

MAX_DECODED_BYTES = 2 * 1024**3
"""Largest stack, decoded, that is read unless the caller allows more."""

ACCEPTED_TYPES = ("uint8", "int8", "uint16", "int16", "float32", "float64")

MAX_PAGES = 10_000
"""Most pages that are read; each one costs the library a fifth of a millisecond, whatever it holds."""

_MAX_TILE_BYTES = 64 * 1024**2
_NO_COMPRESSION, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 8, 32946, 32773
# Decoded without plug-ins, and with a bounded growth: Deflate because it is checked below, PackBits by its nature.
_ACCEPTED_COMPRESSIONS = (_NO_COMPRESSION, _DEFLATE, _OLD_DEFLATE, _PACKBITS)
_BLACK_IS_ZERO = 1
_REMEDY = "export it again as a plain 8-bit, 16-bit or float gray multi-page TIFF (uncompressed or Deflate)"


def read_tiff_stack(path: Path, *, max_decoded_bytes: int = MAX_DECODED_BYTES) -> Volume:
    """Read a gray TIFF of one or more pages.

    Returns:
        A volume of shape ``(I, J, K)``, ``i`` the column, ``j`` the row and ``k`` the page, in the file's own number type.
        Its affine is nominal (1 mm) and ``has_geometry`` is False: a TIFF says nothing reliable about spacing.

    Raises:
        InputError: the file is missing, empty, truncated, damaged, in colour, of a number type or compression that is
            not accepted, larger than ``max_decoded_bytes`` or suspiciously dense, holds pages of different shape, or NaN or Inf.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise InputError(f"{path}: found {found}, expected a TIFF file; check the path")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise InputError(f"{path}: the file is empty (0 bytes), expected a TIFF stack; copy or download it again")
    try:
        with _quiet(), tifffile.TiffFile(path) as tiff:
            array = _read_pages(path, tiff, size_bytes, max_decoded_bytes)
    except InputError:
        raise
    except Exception as error:
        # Damaged files make the TIFF library fail in ways that cannot be listed; for the user all of them are one.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: damaged, cut short or no TIFF ({reason}); copy or download it again, or {_REMEDY}") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise InputError(f"{path}: found {count} NaN or Inf pixels, expected finite numbers; repair the image first")
    return Volume(array=array.transpose(2, 1, 0), affine=np.eye(4), has_geometry=False)


def write_tiff_stack(path: Path, array: NDArray[np.generic]) -> None:
    """Write ``array`` of shape ``(I, J, K)`` as ``K`` Deflate-compressed gray pages, page 0 first, replacing ``path`` in one step.

    The bytes depend on the array alone: no time, program version or path is stored.

    Raises:
        UsageError: the array has not three axes or no voxel, its number type is not accepted, or the file cannot be written.
    """
    if array.ndim != 3 or array.size == 0 or array.dtype.name not in ACCEPTED_TYPES:
        raise UsageError(
            f"{path}: found an array of shape {array.shape} and type {array.dtype}, expected three axes (i, j, page) "
            f"and one of {', '.join(ACCEPTED_TYPES)}"
        )
    pages = np.ascontiguousarray(array.transpose(2, 1, 0))

    def write(stream: BinaryIO) -> None:
        with tifffile.TiffWriter(stream) as tiff:
            for page in pages:
                tiff.write(page, photometric="minisblack", compression="zlib", metadata=None, software=False, contiguous=False)

    write_atomically(path, write)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the TIFF library's log inside the block: it repeats tags, and what matters of it the checks here find again."""
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_pages(path: Path, tiff: tifffile.TiffFile, size_bytes: int, max_decoded_bytes: int) -> NDArray[np.generic]:
    """Return the pages as one array ``(K, rows, columns)`` once all of them have passed the checks."""
    # Before the library walks the chain, because it would follow one that returns to itself without end.
    announced = _count_announced_pages(path, tiff, size_bytes)
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    if not pages or len(pages) != announced:
        raise InputError(f"{path}: found {len(pages)} readable pages of {announced}; the file is damaged, so copy or download it again")
    # TIFF 6, section 8, NewSubfileType: bit 0 marks a smaller copy of another page, which is no slice.
    pages = [page for page in pages if not page.subfiletype & 1]
    if not pages:
        raise InputError(f"{path}: found previews alone, no page of full resolution; {_REMEDY}")
    first = pages[0]
    for number, page in enumerate(pages):
        _check_page(path, number, page)
        if page.shape != first.shape or page.dtype != first.dtype:
            raise InputError(
                f"{path}: page {number} is {_describe(page)} but page 0 is {_describe(first)}; "
                "expected all pages alike, so save the slices as one stack without previews"
            )
        _check_segments(path, number, page, size_bytes)
    decoded_bytes = len(pages) * _page_bytes(first)
    if decoded_bytes > max_decoded_bytes:
        raise InputError(
            f"{path}: {len(pages)} pages of {_describe(first)} need {decoded_bytes / 2**20:.0f} MiB, "
            f"expected at most {max_decoded_bytes / 2**20:.0f} MiB; split or crop the stack"
        )
    if decoded_bytes > MAX_GROWN_BYTES and decoded_bytes > SUSPECT_GROWTH * size_bytes:
        raise InputError(
            f"{path}: {size_bytes} bytes grow {decoded_bytes // size_bytes}-fold to {decoded_bytes / 2**20:.0f} MiB, expected at most "
            f"{MAX_GROWN_BYTES / 2**20:.0f} MiB of so dense a file; if you trust it, save it uncompressed"
        )
    stack = np.empty((len(pages), *first.shape), dtype=np.dtype(first.dtype).newbyteorder("="))
    for number, page in enumerate(pages):
        if page.compression in (_DEFLATE, _OLD_DEFLATE):
            _check_deflate(path, number, page)
        stack[number] = page.asarray()
    return stack


def _count_announced_pages(path: Path, tiff: tifffile.TiffFile, size_bytes: int) -> int:
    """Follow the chain of page headers to its end (TIFF 6, section 2; BigTIFF doubles the widths).

    The TIFF library takes an offset beyond the end of the file for the end of the chain, and returns the pages before it.
    """
    count_bytes, entry_bytes, offset_bytes = (8, 20, 8) if tiff.is_bigtiff else (2, 12, 4)
    order: Literal["little", "big"] = "little" if tiff.byteorder == "<" else "big"
    stream = tiff.filehandle

    def number_at(position: int, width: int) -> int:
        if position + width > size_bytes:
            raise InputError(
                f"{path}: the list of pages leads beyond the file of {size_bytes} bytes; cut short, so copy or download it again"
            )
        stream.seek(position)
        return int.from_bytes(stream.read(width), order)

    seen: set[int] = set()
    page = number_at(8 if tiff.is_bigtiff else 4, offset_bytes)
    while page:
        if page in seen:
            raise InputError(f"{path}: the list of pages returns to itself; the file is damaged, {_REMEDY}")
        seen.add(page)
        if len(seen) > MAX_PAGES:
            raise InputError(f"{path}: found more than {MAX_PAGES} pages, expected the slices of a stack; split the stack")
        page = number_at(page + count_bytes + entry_bytes * number_at(page, count_bytes), offset_bytes)
    return len(seen)


def _check_page(path: Path, number: int, page: tifffile.TiffPage) -> None:
    found: str | None = None
    if page.samplesperpixel != 1 or len(page.shape) != 2:
        found = f"{page.samplesperpixel} samples a pixel (colour or transparency)"
    elif page.photometric != _BLACK_IS_ZERO:
        found = f"pixels coded as {getattr(page.photometric, 'name', page.photometric)}"
    elif page.dtype is None or np.dtype(page.dtype).name not in ACCEPTED_TYPES:
        found = f"{page.bitspersample}-bit pixels of type {page.dtype}"
    elif page.compression not in _ACCEPTED_COMPRESSIONS:
        found = f"compression {getattr(page.compression, 'name', page.compression)}"
    elif min(page.shape) < 1:
        found = f"a size of {page.shape[1]}×{page.shape[0]} pixels"
    elif (orientation := page.tags.get("Orientation")) is not None and orientation.value != 1:
        found = f"orientation tag {int(orientation.value)} (rotated or mirrored display)"
    if found is not None:
        raise InputError(f"{path}: page {number} has {found}, expected one upright gray sample a pixel; {_REMEDY}")


def _check_segments(path: Path, number: int, page: tifffile.TiffPage, size_bytes: int) -> None:
    """Refuse pages whose data is not wholly in the file; the TIFF library would fill some such gaps with zeros."""
    if _chunk_bytes(page) > max(_page_bytes(page), _MAX_TILE_BYTES):
        raise InputError(f"{path}: page {number} has tiles of {_chunk_bytes(page)} bytes, far beyond the image; {_REMEDY}")
    offsets, counts = page.dataoffsets, page.databytecounts
    complete = (
        len(offsets) == len(counts) == math.prod(page.chunked)
        and min(counts) > 0
        and all(offset + count <= size_bytes for offset, count in zip(offsets, counts, strict=True))
        and (page.compression != _NO_COMPRESSION or sum(counts) >= _page_bytes(page))
    )
    if not complete:
        raise InputError(
            f"{path}: the pixels of page {number} ({_describe(page)}) are not all in the file of {size_bytes} bytes; "
            "it was cut short or damaged, so copy or download it again"
        )


def _check_deflate(path: Path, number: int, page: tifffile.TiffPage) -> None:
    """Refuse compressed data that grows beyond the size its page has."""
    limit = _chunk_bytes(page)
    stream = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        stream.seek(offset)
        decoder = zlib.decompressobj()
        decoded = decoder.decompress(stream.read(count), limit + 1)
        if len(decoded) > limit:
            raise InputError(f"{path}: page {number} unpacks to more than its {limit} bytes; the file is damaged, {_REMEDY}")


def _page_bytes(page: tifffile.TiffPage) -> int:
    return math.prod(page.shape) * np.dtype(page.dtype).itemsize


def _chunk_bytes(page: tifffile.TiffPage) -> int:
    return math.prod(page.chunks) * np.dtype(page.dtype).itemsize


def _describe(page: tifffile.TiffPage) -> str:
    return f"{page.shape[1]}×{page.shape[0]} {page.dtype}"
