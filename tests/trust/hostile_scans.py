"""NIfTI, TIFF, PNG and DICOM files whose headers or streams are made to run something, to fill the memory, or never to end."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from attack import HARMLESS, Arguments, Ground, attack, deflated_zeros, nifti_file, object_array, pickled, torch_archive
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

GIB = 2**30


def scan(name: str, content: Callable[[Ground], bytes], file: str, codes: frozenset[int] = frozenset({4, 5})) -> None:
    """An attack by one file that is inspected."""

    def make(ground: Ground) -> Arguments:
        path = ground.inside / file
        path.write_bytes(content(ground))
        return ["inspect", path]

    attack(name, codes)(make)


for ending in ("nii", "nii.gz", "tif", "png", "dcm", "npy", "mq"):
    scan(f"pickle named .{ending}", pickled, f"scan.{ending}")
scan("pickle, gzipped, named .nii.gz", lambda ground: gzip.compress(pickled(ground)), "scan.nii.gz")
scan("pickle behind the DICOM preamble", lambda ground: bytes(128) + b"DICM" + pickled(ground), "scan.dcm")
scan("npy of objects named .nii", object_array, "scan.nii")
scan("torch archive named .nii.gz", torch_archive, "scan.nii.gz")
scan("torch archive named .tif", torch_archive, "scan.tif")


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def nifti(shape: tuple[int, ...] = (4, 4, 4), *, offset: float = 352, extension: bytes = bytes(4), code: int = 2) -> bytes:
    """A NIfTI-1 header by its offsets in nifti1.h; no voxels."""
    head = bytearray(348)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", head, 70, code, {2: 8, 64: 64}[code])
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<3f", head, 108, offset, 1, 0)
    struct.pack_into("<2h", head, 252, 0, 1)
    struct.pack_into("<12f", head, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    head[344:348] = b"n+1\0"
    return bytes(head) + extension


def nifti2(side: int) -> bytes:
    """A NIfTI-2 header that claims ``side`` voxels along each axis."""
    head = bytearray(544)
    struct.pack_into("<i", head, 0, 540)
    head[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into("<2h", head, 12, 2, 8)
    struct.pack_into("<8q", head, 16, 3, side, side, side, 1, 1, 1, 1)
    struct.pack_into("<q", head, 168, 544)
    return bytes(head) + bytes(64)


HUGE = (32767, 32767, 32767)
scan("NIfTI that claims 281 TB", lambda _: nifti(HUGE, code=64) + bytes(64), "scan.nii")
scan("NIfTI that claims 281 TB, gzipped", lambda _: gzip.compress(nifti(HUGE, code=64) + bytes(64)), "scan.nii.gz")
scan("NIfTI of 7 huge axes", lambda _: nifti((32767,) * 7) + bytes(64), "scan.nii")
scan("NIfTI whose voxels start at byte 1e18", lambda _: nifti(offset=1e18) + bytes(64), "scan.nii")
scan("NIfTI whose voxels start nowhere", lambda _: nifti(offset=float("nan")) + bytes(64), "scan.nii")
scan("NIfTI whose voxels start before the file", lambda _: nifti(offset=-1e9) + bytes(64), "scan.nii")
scan("NIfTI extension of 2 GB", lambda _: nifti(offset=2e9, extension=b"\1\0\0\0" + struct.pack("<2i", 2**31 - 16, 6)), "scan.nii")
scan(
    "NIfTI extension of 2 GB, gzipped",
    lambda _: gzip.compress(nifti(offset=2e9, extension=b"\1\0\0\0" + struct.pack("<2i", 2**31 - 16, 6))),
    "scan.nii.gz",
)
scan(
    "NIfTI extensions of no length",
    lambda _: nifti(offset=4096, extension=b"\1\0\0\0" + struct.pack("<2i", 0, 6) * 500) + bytes(64),
    "scan.nii",
    HARMLESS | {4},
)
scan("NIfTI-2 of 2^62 voxels an axis", lambda _: nifti2(2**62), "scan.nii")
scan("NIfTI-2 of negative axes", lambda _: nifti2(-(2**62)), "scan.nii")
scan("gzip bomb of 768 MiB", lambda _: _packed_nifti((1024, 1024, 768)), "scan.nii.gz")
scan("gzip bomb of 4 GiB behind a small scan", lambda _: _packed_nifti((4, 4, 4), 4 * GIB), "scan.nii.gz")
scan("gzip of 100 000 empty members", lambda _: gzip.compress(nifti() + bytes(63)) + gzip.compress(b"") * 100_000, "scan.nii.gz")
scan("gzip with a name of 40 MB", lambda _: b"\x1f\x8b\x08\x08\0\0\0\0\0\x03" + b"a" * 40_000_000, "scan.nii.gz")


def _packed_nifti(shape: tuple[int, int, int], size_bytes: int | None = None) -> bytes:
    """A header of its own gzip member, then a bomb as the next; to a reader both are one stream."""
    return gzip.compress(nifti(shape)) + deflated_zeros(size_bytes or shape[0] * shape[1] * shape[2], 31)


# --- TIFF and PNG -----------------------------------------------------------------------------------------------------

Tag = tuple[int, int, int, int]


def tiff(tags: list[Tag], following: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory at byte 8, data behind it; tags are number, type, count, value (TIFF 6, section 2)."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<2H2I", *tag) for tag in sorted(tags)) + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", 8) + directory + data


def gray(columns: int, rows: int, size_bytes: int, compression: int = 1, *more: Tag) -> list[Tag]:
    """Tags of an 8-bit gray page in one strip, which starts behind the directory."""
    count = 9 + len(more)
    place = 8 + 2 + 12 * count + 4
    shape = [(256, 4, 1, columns), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    return [*shape, (273, 4, 1, place), (277, 3, 1, 1), (278, 4, 1, rows), (279, 4, 1, size_bytes), *more]


def _packed_tiff(columns: int, rows: int) -> bytes:
    data = deflated_zeros(columns * rows, 15)
    return tiff(gray(columns, rows, len(data), 8), data=data)


def _many_pages(count: int) -> bytes:
    """Pages of one pixel, each with a directory of its own; all show the same byte."""
    tags = sorted(gray(1, 1, 1))
    size = 2 + 12 * len(tags) + 4
    pages = []
    for number in range(count):
        following = 8 + (number + 1) * size if number < count - 1 else 0
        pages.append(struct.pack("<H", len(tags)) + b"".join(struct.pack("<2H2I", *tag) for tag in tags) + struct.pack("<I", following))
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pages) + bytes(64)


scan("TIFF page that follows itself", lambda _: tiff(gray(4, 4, 16), following=8, data=bytes(16)), "scan.tif")
scan("TIFF of 2^32 columns and rows", lambda _: tiff(gray(2**32 - 1, 2**32 - 1, 16), data=bytes(16)), "scan.tif")
scan("TIFF Deflate bomb of 1.75 GiB", lambda _: _packed_tiff(2**15, 7 * 2**13), "scan.tif")
scan("TIFF Deflate bomb in a small page", lambda _: tiff(gray(4, 4, 2**21, 8), data=deflated_zeros(2 * GIB, 15)), "scan.tif")
scan("TIFF of 100 000 pages", lambda _: _many_pages(100_000), "scan.tif")
scan(
    "TIFF tag of 2^32 values",
    lambda _: tiff(gray(4, 4, 16, 1, (270, 2, 2**32 - 1, 0)), data=bytes(64)),
    "scan.tif",
    HARMLESS | {4},
)
scan(
    "TIFF whose strips are 2^32",
    lambda _: tiff([*(tag for tag in gray(4, 4, 16) if tag[0] not in (273, 279)), (273, 4, 2**30, 8), (279, 4, 2**30, 8)], data=bytes(64)),
    "scan.tif",
)
scan(
    "TIFF tile of 2^31 pixels a side",
    lambda _: tiff([*gray(4, 4, 16), (322, 4, 1, 2**31), (323, 4, 1, 2**31), (324, 4, 1, 8), (325, 4, 1, 16)], data=bytes(64)),
    "scan.tif",
)
scan("BigTIFF that starts at 2^63", lambda _: b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63 - 8) + bytes(64), "scan.tif")


@attack("OME-TIFF that names another file and an entity", HARMLESS | {4})
def _ome(ground: Ground) -> Arguments:
    secret = ground.outside / "secret.nii"
    text = f"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file://{secret}">]><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="4" SizeY="4" SizeZ="9" SizeC="1" SizeT="1">
<TiffData IFD="0" PlaneCount="9"><UUID FileName="../outside/secret.nii">urn:uuid:&e;</UUID></TiffData></Pixels></Image></OME>\0""".encode()
    place = 8 + 2 + 12 * 10 + 4 + 16
    path = ground.inside / "scan.ome.tif"
    path.write_bytes(tiff(gray(4, 4, 16, 1, (270, 2, len(text), place)), data=bytes(16) + text))
    return ["inspect", path]


def png(columns: int, rows: int, data: bytes, *chunks: tuple[bytes, bytes], bits: int = 8) -> bytes:
    """A gray PNG with sound chunks (PNG specification, section 5)."""
    parts = [(b"IHDR", struct.pack(">2I5B", columns, rows, bits, 0, 0, 0, 0)), *chunks, (b"IDAT", data), (b"IEND", b"")]
    packed = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


scan("PNG of 2^31 columns and rows", lambda _: png(2**31 - 1, 2**31 - 1, b"x"), "scan.png")
scan("PNG bomb of 256 MiB", lambda _: png(16384, 16384, deflated_zeros(2**28 + 2**24, 15)), "scan.png")
scan("PNG bomb of 320 MiB, 16 bits", lambda _: png(13000, 13000, deflated_zeros(2**28 + 2**26, 15), bits=16), "scan.png")
scan(
    "PNG text bomb",
    lambda _: png(4, 4, zlib.compress(bytes(20)), (b"zTXt", b"a\0\0" + deflated_zeros(GIB, 15))),
    "scan.png",
    HARMLESS | {4},
)
scan(
    "PNG profile bomb",
    lambda _: png(4, 4, zlib.compress(bytes(20)), (b"iCCP", b"a\0\0" + deflated_zeros(GIB, 15))),
    "scan.png",
    HARMLESS | {4},
)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def dicom_slice(k: int = 0, side: int = 4) -> FileDataset:
    """A sound CT slice."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    found = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.SeriesInstanceUID, found.Modality = "1.2.3.4", "CT"
    found.Rows = found.Columns = side
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 16
    found.HighBit, found.PixelRepresentation = 15, 1
    found.RescaleSlope, found.RescaleIntercept = "1", "0"
    found.ImagePositionPatient, found.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
    found.PixelSpacing, found.SliceThickness = [1, 1], "2"
    found.PixelData = np.arange(side * side, dtype=np.int16).tobytes()
    return found


def series(folder: Path, count: int = 3) -> Path:
    """A sound series."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        dicom_slice(k).save_as(folder / f"1-{k + 1:03d}.dcm", enforce_file_format=True)
    return folder


def dicom(name: str, change: Callable[[Path], None], codes: frozenset[int] = frozenset({4, 5})) -> None:
    """An attack by a change to the second file of a sound series."""

    def make(ground: Ground) -> Arguments:
        change(series(ground.inside / "series") / "1-002.dcm")
        return ["inspect", ground.inside / "series"]

    attack(name, codes)(make)


def _edited(edit: Callable[[FileDataset], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        found = dicom_slice(1)
        edit(found)
        found.save_as(path, enforce_file_format=True)

    return change


def _appended(tail: bytes) -> Callable[[Path], None]:
    """Put bytes in the place where the first element behind group 8 begins."""

    def change(path: Path) -> None:
        content = path.read_bytes()
        place = content.index(b"\x18\x00\x50\x00")
        path.write_bytes(content[:place] + tail + content[place:])

    return change


def _deflate(path: Path) -> None:
    found = dicom_slice(1)
    found.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    found.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    start = 132 + 12 + int(struct.unpack_from("<I", content, 140)[0])
    path.write_bytes(content[:start] + deflated_zeros(2 * GIB, -15))


def _jpeg2000(found: FileDataset) -> None:
    # SOC and SIZ (ISO 15444-1, A.5.1) of an image of 2^31 pixels a side.
    size = struct.pack(">2H8I4B", 41, 0, 2**31, 2**31, 0, 0, 2**31, 2**31, 0, 0, 0, 1, 15, 1) + b"\1"
    found.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    found.PixelData = encapsulate([b"\xff\x4f\xff\x51" + size + bytes(64)])
    found["PixelData"].is_undefined_length = True


def _runs(found: FileDataset) -> None:
    found.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    found.PixelData = encapsulate([struct.pack("<16I", 2, 64, 2**31, *[0] * 13) + b"\x81\0" * 4_000_000])
    found["PixelData"].is_undefined_length = True


def _nested(depth: int) -> bytes:
    """Sequences in sequences, none of which says where it ends (PS3.5 section 7.5)."""
    return (b"\x10\x00\x01\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth


dicom("DICOM that is a deflate bomb of 2 GiB", _deflate)
dicom("DICOM of 65535 rows without pixels", _edited(lambda found: setattr(found, "Rows", 65535)))
dicom(
    "DICOM of 65535 by 65535 pixels in 32 bytes", _edited(lambda found: (setattr(found, "Rows", 65535), setattr(found, "Columns", 65535)))
)
dicom("DICOM element of 4 GB", _appended(b"\x10\x00\x20\x40UT\0\0\xf0\xff\xff\xff"), HARMLESS | {4})
dicom("DICOM sequences 20 000 deep", _appended(_nested(20_000)))
dicom("DICOM JPEG 2000 of 2^31 pixels a side", _edited(_jpeg2000))
dicom("DICOM run lengths beyond the file", _edited(_runs))
dicom("DICOM slice that is a link to /dev/zero", lambda path: (path.unlink(), path.symlink_to("/dev/zero")))
dicom("DICOM slice that is a pipe", lambda path: (path.unlink(), os.mkfifo(path)))
dicom("DICOM slice that is a folder", lambda path: (path.unlink(), path.mkdir()), HARMLESS | {4})


@attack("DICOMDIR that names files elsewhere", HARMLESS | {4})
def _dicomdir(ground: Ground) -> Arguments:
    folder = series(ground.inside / "series")
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "..", "outside", "secret.nii"]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), pydicom.uid.ExplicitVRLittleEndian
    found = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.DirectoryRecordSequence = Sequence([record])
    found.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return ["inspect", folder]


# --- no files at all --------------------------------------------------------------------------------------------------


@attack("a pipe to inspect")
def _pipe(ground: Ground) -> Arguments:
    os.mkfifo(ground.inside / "scan.nii.gz")
    return ["inspect", ground.inside / "scan.nii.gz"]


for device in ("zero", "urandom"):

    @attack(f"a link to /dev/{device} to inspect")
    def _device(ground: Ground, device: str = device) -> Arguments:
        (ground.inside / "scan.nii").symlink_to(f"/dev/{device}")
        return ["inspect", ground.inside / "scan.nii"]


@attack("a link that leads to itself")
def _own_tail(ground: Ground) -> Arguments:
    (ground.inside / "scan.nii").symlink_to(ground.inside / "scan.nii")
    return ["inspect", ground.inside / "scan.nii"]


@attack("a scan whose name commands the terminal", frozenset({4}))
def _terminal(ground: Ground) -> Arguments:
    path = ground.inside / "a\x1b]0;owned\x07\x1b[2J\u202e\x9b31m.nii"
    nifti_file(path.with_name("sound.nii")).rename(path)
    path.write_bytes(path.read_bytes()[:400])
    return ["inspect", path]
