"""What one slice says of itself, checked: size, number format, place in the patient, and how stored numbers become values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medquant.data.dicom.files import MULTI_FRAME_IMAGES, DicomFile
from medquant.errors import GeometryError, InputError

# Norms and right angle of the direction cosines, which are stored as decimal text.
_COSINE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PixelFormat:
    """How the samples of a slice are stored (PS3.3 C.7.6.3, PS3.5 section 8.1).

    Args:
        rows, columns: size in pixels.
        bits_allocated: 8 or 16.
        bits_stored, high_bit: which of these bits hold the sample.
        is_signed: two's complement.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of one decoded slice."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True)
class SliceHeader:
    """One slice of a classic CT or MR series.

    Args:
        file: where the pixels are.
        pixels: how they are stored.
        slope, intercept: value = slope × stored + intercept (PS3.3 C.11.1.1.2).
        position: centre of the first pixel, LPS millimetres (PS3.3 C.7.6.2.1.1).
        row_cosines: direction in which the column index grows, unit length.
        column_cosines: direction in which the row index grows, unit length.
        row_spacing_mm, column_spacing_mm: distance between rows, and between columns (PS3.3 10.7.1.3).
        thickness_mm: extent of a slice that has no neighbour; None where the header tells nothing.
    """

    file: DicomFile
    pixels: PixelFormat
    slope: float
    intercept: float
    position: tuple[float, ...]
    row_cosines: tuple[float, ...]
    column_cosines: tuple[float, ...]
    row_spacing_mm: float
    column_spacing_mm: float
    thickness_mm: float | None


def read_slice_header(file: DicomFile, where: str) -> SliceHeader:
    """Check one file of a CT or MR series.

    Raises:
        InputError: multi-frame, colour, MONOCHROME1, a lookup table, a number format other than 8 or 16 bits, or a header
            field that is missing or no number.
        GeometryError: position, orientation or pixel spacing missing, not finite, zero, or not at right angles.
    """
    name = f"{where}: {file.label}"
    frames = _numbers(name, file, "NumberOfFrames", 1, InputError)
    if file.sop_class in MULTI_FRAME_IMAGES or (frames is not None and frames[0] != 1):
        raise InputError(f"{name} is a multi-frame image, expected one slice a file; convert it to a classic series or to NIfTI")
    pixels = _pixel_format(name, file)
    slope = (_numbers(name, file, "RescaleSlope", 1, InputError) or (1.0,))[0]
    intercept = (_numbers(name, file, "RescaleIntercept", 1, InputError) or (0.0,))[0]
    if slope == 0:
        raise InputError(f"{name} has a rescale slope of 0, expected another number; the header is damaged, so export the series again")
    position = _needed(name, file, "ImagePositionPatient", 3)
    orientation = _needed(name, file, "ImageOrientationPatient", 6)
    row_spacing_mm, column_spacing_mm = _needed(name, file, "PixelSpacing", 2)
    if min(row_spacing_mm, column_spacing_mm) <= 0:
        raise GeometryError(f"{name} has a pixel spacing of 0 or less, expected millimetres above 0; repair the header first")
    rows, columns = _unit_cosines(name, orientation)
    return SliceHeader(
        file, pixels, slope, intercept, position, rows, columns, row_spacing_mm, column_spacing_mm, _thickness_mm(name, file)
    )


def _pixel_format(name: str, file: DicomFile) -> PixelFormat:
    samples = int(_integer(name, file, "SamplesPerPixel"))
    photometric = str(file.fields.get("PhotometricInterpretation") or "")
    if samples != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise InputError(f"{name} is a colour image ({samples} samples a pixel), expected MONOCHROME2; export the gray series")
    if photometric == "MONOCHROME1":
        # Writers disagree on whether the values or only the display is turned round.
        raise InputError(f"{name} is MONOCHROME1 (low values shown bright), expected MONOCHROME2; convert the series first")
    if file.fields.get("ModalityLUTSequence"):
        raise InputError(f"{name} needs a modality lookup table, expected slope and intercept; convert the series first")
    pixels = PixelFormat(
        rows=_integer(name, file, "Rows"),
        columns=_integer(name, file, "Columns"),
        bits_allocated=_integer(name, file, "BitsAllocated"),
        bits_stored=_integer(name, file, "BitsStored"),
        high_bit=_integer(name, file, "HighBit"),
        is_signed=_integer(name, file, "PixelRepresentation") == 1,
    )
    if pixels.rows < 1 or pixels.columns < 1:
        raise InputError(f"{name} has {pixels.columns}×{pixels.rows} pixels, expected at least one; {_REMEDY}")
    fits = 1 <= pixels.bits_stored <= pixels.high_bit + 1 <= pixels.bits_allocated
    if pixels.bits_allocated not in (8, 16) or not fits:
        raise InputError(
            f"{name} has {pixels.bits_stored} bits stored up to bit {pixels.high_bit} of {pixels.bits_allocated}, "
            f"expected 8 or 16 allocated that hold them; {_REMEDY}"
        )
    return pixels


_REMEDY = "export the series again"


def _thickness_mm(name: str, file: DicomFile) -> float | None:
    for field in ("SpacingBetweenSlices", "SliceThickness"):
        found = _numbers(name, file, field, 1, GeometryError)
        # Negative spacings occur where tables count downwards; the sign says nothing about one slice.
        if found and found[0] != 0:
            return abs(found[0])
    return None


def _unit_cosines(name: str, orientation: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    rows, columns = orientation[:3], orientation[3:]
    lengths = math.hypot(*rows), math.hypot(*columns)
    across = sum(a * b for a, b in zip(rows, columns, strict=True))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(across)) > _COSINE_TOLERANCE:
        raise GeometryError(f"{name} has row and column directions that are not perpendicular unit vectors; repair the header first")
    return tuple(value / lengths[0] for value in rows), tuple(value / lengths[1] for value in columns)


def _needed(name: str, file: DicomFile, field: str, count: int) -> tuple[float, ...]:
    found = _numbers(name, file, field, count, GeometryError)
    if found is None:
        raise GeometryError(f"{name} has no {field}, so its place is unknown; export the series again with its geometry")
    return found


def _numbers(name: str, file: DicomFile, field: str, count: int, kind: type[InputError] | type[GeometryError]) -> tuple[float, ...] | None:
    """Return the ``count`` finite numbers of a field, None where it is absent or empty; the text of a wrong value is not repeated."""
    try:
        value: Any = file.fields.get(field)
        if value is None or value == "":
            return None
        values = tuple(float(item) for item in ([value] if count == 1 else value))
    except Exception:
        values = ()
    if len(values) != count or not all(math.isfinite(item) for item in values):
        raise kind(f"{name} has a {field} that is not {count} finite number{'s' if count > 1 else ''}; repair the header first")
    return values


def _integer(name: str, file: DicomFile, field: str) -> int:
    found = _numbers(name, file, field, 1, InputError)
    if found is None or found[0] != int(found[0]):
        raise InputError(f"{name} has no {field}, expected a whole number; the header is damaged, so {_REMEDY}")
    return int(found[0])
