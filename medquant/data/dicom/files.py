"""Which files of a folder are DICOM, what each one is, and how a message may call it.

Only the header fields listed in :data:`READ_FIELDS` are ever loaded; names, identifiers and dates of a patient are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from medquant.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

READ_FIELDS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
)

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
# PS3.4 table B.5-1: enhanced and legacy converted enhanced CT and MR.
MULTI_FRAME_IMAGES = frozenset({f"{CT_IMAGE}.1", f"{CT_IMAGE}.2", f"{MR_IMAGE}.1", f"{MR_IMAGE}.3", f"{MR_IMAGE}.4"})
IMAGES = MULTI_FRAME_IMAGES | {CT_IMAGE, MR_IMAGE}

_DEFLATED = "1.2.840.10008.1.2.1.99"
_PREAMBLE_BYTES, _MAGIC = 128, b"DICM"
_DICOM_ENDINGS = frozenset({".dcm", ".dicom", ".dic", ".ima", ".img"})
# A DICOMDIR (PS3.3 annex F) lists files; it holds no image.
_MEDIA_DIRECTORY = "DICOMDIR"
_COUNTED_NAME = re.compile(r"(?P<lead>(?:im|img|image|slice|ct|mr|i|z)?[-_]?|\d{1,3}-)(?P<number>\d{1,6})", re.IGNORECASE)
_COPY_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class DicomFile:
    """One DICOM object, its pixel data still on the disk.

    Args:
        path: where it lies; kept out of the representation, for a name may hold an identifier.
        label: what a message may call it.
        sop_class: UID of the kind of object, "" where the file names none.
        transfer_syntax: UID of the encoding.
        pixel_offset: byte at which the pixel data element begins, None where there is none.
        fields: the header fields of :data:`READ_FIELDS` the file has.
        instance: UID of the object, for references to it.
    """

    path: Path = field(repr=False)
    label: str
    sop_class: str
    transfer_syntax: str
    pixel_offset: int | None
    fields: Dataset = field(repr=False)
    instance: str = field(repr=False)

    @property
    def series(self) -> str:
        """UID of the series, "" where the file names none."""
        return str(self.fields.get("SeriesInstanceUID") or "")

    @property
    def modality(self) -> str:
        """What the kind of object says; the header's own word is free text and is not repeated."""
        return {CT_IMAGE: "CT", MR_IMAGE: "MR"}.get(self.sop_class, "multi-frame CT or MR")


def has_dicom_magic(path: Path) -> bool:
    """Whether the file begins as PS3.10 section 7.1 asks: 128 bytes for anyone's use, then the letters DICM."""
    try:
        # Opening a pipe would wait for its other end.
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(_PREAMBLE_BYTES + len(_MAGIC))[_PREAMBLE_BYTES:] == _MAGIC
    except OSError:
        return False


def slice_labels(paths: Sequence[Path]) -> list[str]:
    """How messages call the files, in the order given (by name).

    A name is repeated only where it cannot be anyone's: a running number, perhaps after a word such as IM or a series
    number (``1-017.dcm``), among other files numbered alike. Any other file is called by its place.
    """
    if len(paths) == 1:
        return ["the file"]
    matches = [_COUNTED_NAME.fullmatch(path.stem if path.suffix.lower() in _DICOM_ENDINGS else path.name) for path in paths]
    numbers = [int(match["number"]) for match in matches if match]
    leads = {match["lead"] for match in matches if match}
    # One file alone, or numbers far apart, could be identifiers of persons.
    running = len(numbers) > 1 and len(leads) == 1 and max(numbers) - min(numbers) < 10 * len(numbers)
    return [
        f"file {path.name}" if match and running else f"file {place} of {len(paths)} (in name order)"
        for place, (path, match) in enumerate(zip(paths, matches, strict=True), start=1)
    ]


def sort_out(folder: Path, where: str) -> tuple[list[Path], int]:
    """Split the files of ``folder`` (its subfolders are not searched) into DICOM files, sorted by name, and a count of others.

    Left out and counted are hidden files, a DICOMDIR, text, and names whose ending tells another kind.

    Raises:
        InputError: the folder cannot be listed, or a file that is named like a slice, or says nothing of another kind, is no
            DICOM: it may be a damaged slice, and without it the volume would be short.
    """
    try:
        paths = sorted(entry for entry in folder.iterdir() if not entry.is_dir())
    except OSError as error:
        raise InputError(f"{where}: cannot be listed ({error.strerror}); check the path and its permissions") from None
    visible = [path for path in paths if not path.name.startswith(".") and path.name.upper() != _MEDIA_DIRECTORY]
    found = []
    for path, label in zip(visible, slice_labels(visible), strict=True):
        if not path.is_file():
            # A link that leads nowhere stands for a slice that was not downloaded; without it the volume would be short.
            raise InputError(f"{where}: {label} is a broken link, a pipe or a device, expected a file; copy the slice itself there")
        if has_dicom_magic(path):
            found.append(path)
        elif not _is_of_another_kind(path):
            size_bytes = path.stat().st_size
            raise InputError(
                f"{where}: {label} ({size_bytes} bytes) lacks the DICOM preamble, expected DICM at byte 128; it may be a damaged slice, "
                "so copy it again, or move it elsewhere"
            )
    return found, len(paths) - len(found)


def open_dicom(path: Path, label: str, where: str) -> DicomFile:
    """Read the header up to the pixel data.

    Raises:
        InputError: the file is missing, unreadable, without preamble or transfer syntax, deflated, or its header is damaged.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    name = f"{where}: {label}"
    if path.exists() and not path.is_file():
        raise InputError(f"{name} is no file but a folder, a pipe or a device; copy the slice itself there")
    try:
        meta = read_file_meta_info(path)
        transfer_syntax = str(meta.get("TransferSyntaxUID") or "")
        _check_transfer_syntax(name, transfer_syntax)
        with path.open("rb") as stream:
            fields = dcmread(stream, stop_before_pixels=True, specific_tags=list(READ_FIELDS))
            pixel_offset = _pixel_offset(stream, transfer_syntax)
        meta_class = str(meta.get("MediaStorageSOPClassUID") or "")
        sop_class = str(fields.get("SOPClassUID") or meta_class)
        instance = str(fields.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or "")
    except InputError:
        raise
    except InvalidDicomError:
        raise InputError(f"{name} lacks the DICOM preamble, so its encoding is unknown; export it again as a DICOM file") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check that it exists and its permissions") from None
    except Exception:
        # A damaged header makes the library fail in ways that cannot be listed, some of them quoting the header.
        raise InputError(f"{name} has a damaged header; {_COPY_AGAIN}") from None
    # Either may be cut within its digits, and pass for another kind.
    if pixel_offset is None and not IMAGES.isdisjoint({sop_class, meta_class}):
        raise InputError(f"{name} ends before its pixel data, expected an image; cut short, so {_COPY_AGAIN}")
    return DicomFile(path, label, sop_class, transfer_syntax, pixel_offset, fields, instance)


def _check_transfer_syntax(name: str, transfer_syntax: str) -> None:
    if not transfer_syntax:
        raise InputError(f"{name} names no transfer syntax, so its encoding is unknown; {_COPY_AGAIN}, or export it anew")
    if transfer_syntax == _DEFLATED:
        # The library would inflate the whole file before its size is known.
        raise InputError(f"{name} is stored deflated, which is not read; convert it to Explicit VR Little Endian")


def _pixel_offset(stream: BinaryIO, transfer_syntax: str) -> int | None:
    offset = stream.tell()
    tag = stream.read(4)
    expected = b"\x7f\xe0\x00\x10" if transfer_syntax == "1.2.840.10008.1.2.2" else b"\xe0\x7f\x10\x00"
    return offset if tag == expected else None


def _is_of_another_kind(path: Path) -> bool:
    """Whether a file without preamble says by its name or content that it is no slice."""
    suffix = path.suffix.lower()
    if suffix in _DICOM_ENDINGS:
        return False
    # Endings of digits belong to an identifier used as a name.
    if suffix.lstrip(".").isalpha() or suffix in {".gz", ".7z", ".mp4"}:
        return True
    head = path.read_bytes() if path.stat().st_size < 4096 else b""
    return bool(head) and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head)
