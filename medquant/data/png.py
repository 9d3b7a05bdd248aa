"""Gray PNG images, read with the size checked before memory is taken."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from medquant.data.volume import Volume
from medquant.errors import InputError

MAX_PIXELS = 2**27
"""Largest image that is read: 11585 × 11585. Pillow refuses those above 1.3 times as many."""

_SUSPECT_PIXELS, _SUSPECT_GROWTH = 2**26, 200

_GRAY_MODES = {"L": np.uint8, "I;16": np.uint16, "I;16B": np.uint16}
_REMEDY = "save it as 8-bit or 16-bit gray without transparency"


def read_png(path: Path) -> Volume:
    """Read a gray PNG as a volume of one slice, shape ``(I, J, 1)``, ``i`` the column and ``j`` the row; the affine is nominal.

    Raises:
        InputError: the file is missing, no PNG, cut short, fails its checksums, is not gray, or has more than ``MAX_PIXELS`` pixels.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a PNG image; check the path")
    _check_chunks(path)
    try:
        # Only the PNG reader is let near the file, whatever its first bytes say.
        # Pillow's warning of large images says no more than the checks below.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=["PNG"]) as image:
            columns, rows = image.size
            if columns * rows > MAX_PIXELS:
                raise InputError(f"{path}: {columns}×{rows} pixels, expected at most {MAX_PIXELS}; crop or split the image")
            if columns * rows > max(_SUSPECT_PIXELS, _SUSPECT_GROWTH * path.stat().st_size):
                raise InputError(f"{path}: {columns}×{rows} pixels in {path.stat().st_size} bytes are no image; crop or split it")
            if image.mode not in _GRAY_MODES:
                raise InputError(f"{path}: found pixels of mode {image.mode}, expected gray; {_REMEDY}")
            pixels = np.asarray(image).astype(_GRAY_MODES[image.mode], copy=False)
    except InputError:
        raise
    except Exception as error:
        # Pillow meets damaged files with many kinds of error, among them SyntaxError; for the user all of them are one.
        reason = " ".join(str(error).split()).replace(str(path), "it")[:120] or type(error).__name__
        raise InputError(f"{path}: damaged, cut short or no PNG ({reason}); copy it again, or {_REMEDY}") from error
    return Volume(array=pixels.transpose()[:, :, None], affine=np.eye(4), has_geometry=False)


def _check_chunks(path: Path) -> None:
    """Walk the chunks to the last one and check each one's CRC (PNG specification, section 5.3): Pillow stops at the last pixel."""
    with path.open("rb") as stream:
        if stream.read(8) != b"\x89PNG\r\n\x1a\n":
            raise InputError(f"{path}: found no PNG signature, expected a PNG image; convert the image")
        size_bytes = path.stat().st_size
        kind = b""
        while kind != b"IEND":
            head = stream.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            # Compared with the file before reading, so that a false length takes no memory.
            if len(head) < 8 or stream.tell() + length + 4 > size_bytes:
                raise InputError(f"{path}: ends before its last chunk; cut short, so copy it again")
            if zlib.crc32(kind + stream.read(length)).to_bytes(4, "big") != stream.read(4):
                raise InputError(f"{path}: a chunk fails its checksum; the file is damaged, so copy it again")
