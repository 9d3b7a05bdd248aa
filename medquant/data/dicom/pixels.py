"""Pixel data from the file to stored numbers: plain or compressed, every size checked before memory is taken."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medquant.data.dicom.headers import PixelFormat, SliceHeader
from medquant.errors import InputError

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")

# One named decoder each, so that a result does not depend on what else is installed. The two JPEG lossless processes
# have no decoder of a free licence among the requirements; they are read where python-gdcm is installed.
DECODERS = {RLE: "pydicom"}
DECODERS |= dict.fromkeys(_JPEG_2000, "pylibjpeg")
DECODERS |= dict.fromkeys(_JPEG_LS, "pyjpegls")
DECODERS |= dict.fromkeys(_JPEG_LOSSLESS, "gdcm")

_UNDEFINED = 0xFFFFFFFF
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
# Lossless streams of noise grow a little; a stream far beyond the picture hides something else.
_LARGEST_GROWTH, _SLACK_BYTES = 2, 65536
_COPY_AGAIN = "copy or download it again"


def read_stored(header: SliceHeader, where: str) -> NDArray[np.generic]:
    """Return the stored numbers of one slice, shape ``(rows, columns)``, before slope and intercept.

    Bits outside BitsStored and HighBit (old overlays) are dropped and the sign is extended (PS3.5 section 8.1.1).

    Raises:
        InputError: the pixel data is cut short, of another length than the header needs, in an encoding that cannot be
            read, or damaged.
    """
    file, name = header.file, f"{where}: {header.file.label}"
    try:
        with file.path.open("rb") as stream:
            if file.transfer_syntax in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
                plane = _read_native(name, stream, header)
                return _keep_stored_bits(plane, header.pixels)
            frame = _read_frame(name, stream, header)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check its permissions and the disk") from None
    plane = _decode(name, frame, header)
    return plane if file.transfer_syntax in _JPEG_2000 else _keep_stored_bits(plane, header.pixels)


def check_decodable(header: SliceHeader, where: str) -> None:
    """Raise InputError where the transfer syntax has no decoder here."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = header.file.transfer_syntax
    if syntax in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
        return
    if syntax not in DECODERS or DECODERS[syntax] not in get_decoder(UID(syntax)).available_plugins:
        # Standard syntaxes have a public name; anything else could be a private text.
        kind = UID(syntax).name if UID(syntax).name != syntax else "an unknown encoding"
        raise InputError(
            f"{where}: {header.file.label} is stored as {kind}, which cannot be read here; convert it to Explicit VR Little Endian"
        )


def _read_native(name: str, stream: BinaryIO, header: SliceHeader) -> NDArray[np.generic]:
    pixels, syntax = header.pixels, header.file.transfer_syntax
    length = _read_element_length(name, stream, header)
    expected = pixels.size_bytes
    if length not in (expected, expected + expected % 2):
        raise InputError(
            f"{name} announces {length} bytes of pixels, expected {expected} for {pixels.columns}×{pixels.rows}; {_COPY_AGAIN}"
        )
    if pixels.bits_allocated == 8 and syntax == BIG_ENDIAN:
        raise InputError(f"{name} holds 8-bit pixels in big-endian words, which is not read; convert it to Explicit VR Little Endian")
    kind = np.dtype(f"{'i' if pixels.is_signed else 'u'}{pixels.bits_allocated // 8}")
    plane: NDArray[np.generic] = np.empty((pixels.rows, pixels.columns), dtype=kind)
    got = stream.readinto(plane.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
    if got != expected:
        raise InputError(f"{name} ends after {got} of {expected} bytes of pixels; cut short, so {_COPY_AGAIN}")
    return plane.view(kind.newbyteorder(">" if syntax == BIG_ENDIAN else "<")).astype(kind, copy=False)


def _read_element_length(name: str, stream: BinaryIO, header: SliceHeader) -> int:
    """Place the stream behind the head of the pixel data element (PS3.5 section 7.1) and return the length it announces."""
    file = header.file
    stream.seek(file.pixel_offset or 0)
    is_implicit = file.transfer_syntax == IMPLICIT
    head = stream.read(8 if is_implicit else 12)
    if len(head) < (8 if is_implicit else 12):
        raise InputError(f"{name} ends at its pixel data; cut short, so {_COPY_AGAIN}")
    order = ">" if file.transfer_syntax == BIG_ENDIAN else "<"
    (length,) = struct.unpack(f"{order}I", head[-4:])
    return int(length)


def _read_frame(name: str, stream: BinaryIO, header: SliceHeader) -> bytes:
    """Join the fragments of the one frame (PS3.5 annex A.4); the delimiter at their end shows that none is missing."""
    if _read_element_length(name, stream, header) != _UNDEFINED:
        raise InputError(f"{name} announces compressed pixels but no fragments; the file is damaged, so {_COPY_AGAIN}")
    longest = _LARGEST_GROWTH * header.pixels.size_bytes + _SLACK_BYTES
    fragments: list[bytes] = []
    total = 0
    while True:
        head = stream.read(8)
        if head[:4] == _DELIMITER:
            break
        if len(head) < 8 or head[:4] != _ITEM:
            raise InputError(f"{name} ends within its compressed pixels; cut short or damaged, so {_COPY_AGAIN}")
        (length,) = struct.unpack("<I", head[4:])
        total += length
        if total > longest:
            raise InputError(f"{name} holds over {longest} bytes of compressed pixels, far more than the picture needs; {_COPY_AGAIN}")
        # A fragment cut short leaves no head of a next one to be read.
        fragments.append(stream.read(length))
    if len(fragments) < 2:
        raise InputError(f"{name} holds no compressed pixels; the file is damaged, so {_COPY_AGAIN}")
    # The first item is the offset table.
    return b"".join(fragments[1:])


def _decode(name: str, frame: bytes, header: SliceHeader) -> NDArray[np.generic]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    pixels, syntax = header.pixels, header.file.transfer_syntax
    _check_codestream(name, frame, header)
    try:
        plane: NDArray[np.generic]
        options: dict[str, Any] = {
            "rows": pixels.rows,
            "columns": pixels.columns,
            "samples_per_pixel": 1,
            "photometric_interpretation": "MONOCHROME2",
            "bits_allocated": pixels.bits_allocated,
            "bits_stored": pixels.bits_stored,
            "pixel_representation": int(pixels.is_signed),
            "number_of_frames": 1,
            "pixel_keyword": "PixelData",
        }
        plane, _ = get_decoder(UID(syntax)).as_array(encapsulate([frame]), index=0, raw=True, decoding_plugin=DECODERS[syntax], **options)
    except Exception:
        # Decoders fail in many ways; their texts may hold paths and header values.
        raise InputError(f"{name} has compressed pixels ({UID(syntax).name}) that cannot be decoded; {_COPY_AGAIN}") from None
    if plane.shape != (pixels.rows, pixels.columns):
        raise InputError(f"{name} decodes to shape {plane.shape}, expected {(pixels.rows, pixels.columns)}; {_COPY_AGAIN}")
    return plane


def _check_codestream(name: str, frame: bytes, header: SliceHeader) -> None:
    """Compare the size inside a JPEG stream with the header, and look for its end, before a decoder takes either for granted."""
    pixels, syntax = header.pixels, header.file.transfer_syntax
    if syntax == RLE:
        return
    found = _jpeg_2000_size(frame) if syntax in _JPEG_2000 else _jpeg_size(frame)
    if found != (pixels.rows, pixels.columns, 1):
        text = "no readable size" if found is None else f"{found[1]}×{found[0]} pixels of {found[2]} samples"
        raise InputError(f"{name} holds a compressed picture with {text}, expected {pixels.columns}×{pixels.rows} of 1; {_COPY_AGAIN}")
    if not frame.rstrip(b"\x00").endswith(b"\xff\xd9"):
        raise InputError(f"{name} holds a compressed picture without its end marker; cut short, so {_COPY_AGAIN}")


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns, components from the SIZ segment, which must come first (ISO 15444-1 A.5.1)."""
    if len(frame) < 42 or not frame.startswith(b"\xff\x4f\xff\x51"):
        return None
    right, bottom, left, top = struct.unpack(">4I", frame[8:24])
    (components,) = struct.unpack(">H", frame[40:42])
    return bottom - top, right - left, components


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns, components from the frame header SOF3 or SOF55 (ISO 10918-1 B.2.2, ISO 14495-1 C.2.2)."""
    if not frame.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker in (0xC3, 0xF7):
            rows, columns, components = struct.unpack(">HHB", frame[place + 5 : place + 10])
            return rows, columns, components
        place += 2 + length
    return None


def _keep_stored_bits(plane: NDArray[np.generic], pixels: PixelFormat) -> NDArray[np.generic]:
    above = pixels.bits_allocated - 1 - pixels.high_bit
    unused = pixels.bits_allocated - pixels.bits_stored
    if unused == 0:
        return plane
    kind = np.dtype(f"i{pixels.bits_allocated // 8}" if pixels.is_signed else f"u{pixels.bits_allocated // 8}")
    unsigned = plane.view(f"u{plane.dtype.itemsize}").astype(f"u{pixels.bits_allocated // 8}")
    kept: NDArray[np.generic] = np.right_shift(np.left_shift(unsigned, above).view(kind), unused)
    return kept
