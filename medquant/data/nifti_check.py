"""What a NIfTI file is, found out without trusting it: sizes from the header first, then the data to its last byte.

The checksum at the end of a gzip stream is the only protection a ``.nii.gz`` has; it is seen only by who reads that far.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medquant.errors import InputError

MAX_DECODED_BYTES = 2 * 1024**3

_MAGIC_SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_PIECE_BYTES = 1024**2
_RGB_TYPES = (128, 2304)


@dataclass(frozen=True)
class NiftiContents:
    """Header facts and voxels of a NIfTI file whose every byte was read.

    Args:
        values: voxels in stored axes, scaled by slope and intercept where the header has them.
        stored_type: number type in the file.
        affine: shape ``(4, 4)``, voxel index → RAS millimetres, by nibabel's choice among the header's transforms.
        spacing: length of a voxel along each of the first three axes, in the header's spatial unit (millimetres if it names none).
        has_geometry: the header names a transform (qform or sform), not spacing alone.
    """

    values: NDArray[np.generic]
    stored_type: str
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    has_geometry: bool


def read_nifti_fully(path: Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> NiftiContents:
    """Read a ``.nii`` or ``.nii.gz``, stream and voxels to their end.

    Raises:
        InputError: no single-file NIfTI; cut short; failing its checksum; of colour or complex voxels; more bytes after the
            voxels than a header allows; or larger than ``max_decoded_bytes``.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: BinaryIO = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            return _read(path, stream, max_decoded_bytes)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cut short or damaged ({error}); copy or download it again") from error
    except Exception as error:
        # nibabel meets odd headers with many kinds of error; for the user all of them are one.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: the NIfTI header is not readable ({reason}); convert the scan again from its source") from error


def _read(path: Path, stream: BinaryIO, max_decoded_bytes: int) -> NiftiContents:
    header, head = _read_header(path, stream)
    shape, stored = tuple(int(length) for length in header.get_data_shape()), header.get_data_dtype()
    if int(header["datatype"]) in _RGB_TYPES or stored.kind not in "iuf":
        raise InputError(f"{path}: found voxels of type {stored}, expected plain numbers; convert the scan to one gray value a voxel")
    offset = int(header["vox_offset"])
    data_bytes = math.prod(shape) * stored.itemsize
    if not shape or min(shape) < 1 or offset < len(head):
        raise InputError(
            f"{path}: found shape {shape} with voxels from byte {offset}, expected a single-file NIfTI; convert the scan again"
        )
    # Scaled values are held as float64 beside the stored ones.
    needed = offset + data_bytes
    if needed > max_decoded_bytes:
        raise InputError(
            f"{path}: shape {shape} of {stored} needs {needed / 2**20:.0f} MiB, expected at most "
            f"{max_decoded_bytes / 2**20:.0f} MiB; crop or split the scan"
        )
    content = _read_exactly(path, stream, needed - len(head), shape)
    slope, intercept = header.get_slope_inter()
    values = np.frombuffer(content, dtype=stored, offset=offset - len(head)).reshape(shape, order="F")
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        values = values * float(slope) + float(intercept or 0.0)
    return NiftiContents(
        values=values,
        stored_type=stored.newbyteorder("=").name,
        affine=np.asarray(header.get_best_affine(), dtype=np.float64),
        spacing=tuple(float(zoom) for zoom in header.get_zooms()[:3]),
        has_geometry=bool(int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0),
    )


def _read_header(path: Path, stream: BinaryIO) -> tuple[nib.Nifti1Header, bytes]:
    """Parse the fixed-size header alone; extensions, which may hold anything, are skipped with the rest."""
    head = stream.read(348)
    size = next((size for order in ("little", "big") if (size := int.from_bytes(head[:4], order)) in _MAGIC_SIZES), None)
    if size is None or len(head) < 348:
        raise InputError(f"{path}: found no NIfTI header; cut short or another format, so copy the file again or convert the scan")
    head += stream.read(size - 348)
    if len(head) < size:
        raise InputError(f"{path}: found {len(head)} bytes, expected a header of {size}; copy or download it again")
    header: nib.Nifti1Header = _MAGIC_SIZES[size](binaryblock=head, check=False)  # type: ignore[no-untyped-call]
    return header, head


def _read_exactly(path: Path, stream: BinaryIO, wanted_bytes: int, shape: tuple[int, ...]) -> bytearray:
    """Read the rest of the stream in pieces; refuse both less and clearly more than the header announced."""
    content = bytearray()
    while piece := stream.read(_PIECE_BYTES):
        content += piece
        if len(content) > wanted_bytes + _PIECE_BYTES:
            raise InputError(f"{path}: holds more data than its shape {shape} needs; the header is wrong, so convert the scan again")
    if len(content) < wanted_bytes:
        raise InputError(f"{path}: found {len(content)} of {wanted_bytes} bytes after the header; cut short, so copy or download it again")
    return content
