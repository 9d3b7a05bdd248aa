"""The header of a NIfTI file, checked field by field before any of it is believed.

Field names are those of nifti1.h and nifti2.h. Texts in the header (``descrip``, ``intent_name`` ..) and the extensions may hold
a patient's name; they are not looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from medquant.errors import InputError

if TYPE_CHECKING:
    import nibabel as nib

# sizeof_hdr → magic of a single file, magic of a header whose voxels lie in another file, first byte voxels may start at.
_KINDS = {348: (b"n+1\0", b"ni1\0", 352), 540: (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n", 544)}
_NUMBER_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {1: "1-bit", 32: "complex", 128: "RGB", 1536: "128-bit float", 1792: "complex", 2048: "complex", 2304: "RGBA"}
_MOST_AXES = 7


@dataclass(frozen=True)
class NiftiHeader:
    """What a checked header says about the voxels and, unchecked, about their place.

    Args:
        shape: length of each axis, as stored.
        stored: number type in the file, byte order included.
        data_offset: first byte of the voxels.
        slope: a voxel's value is ``slope · stored + intercept``; 1 and 0 where the file does not scale.
        intercept: see ``slope``.
        pixdim: size of a voxel along the first three axes, in the header's unit. May be nonsense.
        qform_code: 0 where the header gives no quaternion.
        sform_code: 0 where the header gives no matrix.
        qform: shape ``(4, 4)``, voxel index → RAS in the header's unit; None where quaternion or pixdim cannot be used.
        sform: shape ``(4, 4)``, likewise; may hold NaN or be singular.
        unit_code: spatial bits of ``xyzt_units``.
        intent_code: what the values mean.
    """

    shape: tuple[int, ...]
    stored: np.dtype[np.generic]
    data_offset: int
    slope: float
    intercept: float
    pixdim: tuple[float, float, float]
    qform_code: int
    sform_code: int
    qform: NDArray[np.float64] | None
    sform: NDArray[np.float64]
    unit_code: int
    intent_code: int

    @property
    def data_bytes(self) -> int:
        """Size of the stored voxels."""
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def scales(self) -> bool:
        """Whether stored numbers are not yet the values."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def read_nifti_header(path: Path, stream: BinaryIO) -> tuple[NiftiHeader, int]:
    """Take the fixed part of the header from the start of a stream.

    Returns:
        The header, and how many bytes of the stream it took.

    Raises:
        InputError: no NIfTI-1 or NIfTI-2 header of a single file; lengths, number type, voxel offset or scaling are impossible.
    """
    import nibabel as nib

    head = stream.read(348)
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    found = next(((size, order) for order in orders if (size := int.from_bytes(head[:4], order)) in _KINDS), None)
    if found is None or len(head) < 348:
        raise InputError(f"{path}: found no NIfTI header; cut short or another format, so copy the file again or convert the scan")
    size, order = found
    head += stream.read(size - 348)
    if len(head) < size:
        raise InputError(f"{path}: found {len(head)} bytes, expected a header of {size}; copy or download it again")
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    fields = kind(binaryblock=head, endianness="<" if order == "little" else ">", check=False)  # type: ignore[no-untyped-call]
    _check_magic(path, head, size)
    shape = _checked_shape(path, fields)
    slope, intercept = _checked_scaling(path, fields)
    checked = NiftiHeader(
        shape=shape,
        stored=_checked_type(path, fields, "<" if order == "little" else ">"),
        data_offset=_checked_offset(path, fields, _KINDS[size][2]),
        slope=slope,
        intercept=intercept,
        pixdim=_plain_pixdim(fields, len(shape)),
        qform_code=int(fields["qform_code"]),
        sform_code=int(fields["sform_code"]),
        qform=_qform(fields, len(shape)),
        sform=np.asarray(fields.get_sform(), dtype=np.float64),
        unit_code=int(fields["xyzt_units"]) & 7,
        intent_code=int(fields["intent_code"]),
    )
    return checked, size


def _check_magic(path: Path, head: bytes, size: int) -> None:
    single, pair, _ = _KINDS[size]
    magic = head[344:348] if size == 348 else head[4:12]
    if magic == pair:
        raise InputError(f"{path}: found a header whose voxels lie in a second file (.hdr and .img); convert the pair to one .nii file")
    if magic != single:
        raise InputError(f"{path}: found no NIfTI mark in the header, perhaps Analyze 7.5 or damaged; convert the scan to .nii again")


def _checked_shape(path: Path, fields: nib.Nifti1Header) -> tuple[int, ...]:
    axes = int(fields["dim"][0])
    if not 1 <= axes <= _MOST_AXES:
        raise InputError(f"{path}: the header announces {axes} axes, expected 1 to {_MOST_AXES}; damaged, so convert the scan again")
    shape = tuple(int(length) for length in fields["dim"][1 : axes + 1])
    if min(shape) < 1:
        raise InputError(f"{path}: found shape {shape}, expected lengths of 1 and more; the header is damaged, so convert the scan again")
    return shape


def _checked_type(path: Path, fields: nib.Nifti1Header, order: str) -> np.dtype[np.generic]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _NUMBER_TYPES:
        found = _OTHER_TYPES.get(code, "unknown")
        raise InputError(
            f"{path}: found voxels of {found} type (code {code}), expected plain numbers; convert the scan to one gray value a voxel"
        )
    stored: np.dtype[np.generic] = np.dtype(order + _NUMBER_TYPES[code])
    # The same fact is stored twice; in an uncompressed file nothing else would notice a damaged type.
    if bits != 8 * stored.itemsize:
        raise InputError(
            f"{path}: found {bits} bits a voxel for type {stored.name}; the header contradicts itself, so convert the scan again"
        )
    return stored


def _checked_offset(path: Path, fields: nib.Nifti1Header, lowest: int) -> int:
    offset = float(fields["vox_offset"])
    if not math.isfinite(offset) or offset < lowest or offset != int(offset):
        raise InputError(f"{path}: voxels start at byte {offset:g}, expected {lowest} or more; the header is damaged, so convert it again")
    return int(offset)


def _checked_scaling(path: Path, fields: nib.Nifti1Header) -> tuple[float, float]:
    """Slope 0 means unscaled (nifti1.h), and so does NaN, which nibabel writes where it does not scale."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise InputError(f"{path}: found scaling {slope:g} · stored + {intercept:g}, expected finite numbers; convert the scan again")
    return slope, intercept


def _plain_pixdim(fields: nib.Nifti1Header, axes: int) -> tuple[float, float, float]:
    i, j, k = (float(length) for length in fields["pixdim"][1:4])
    return i, j, 1.0 if axes < 3 and k == 0 else k


def _qform(fields: nib.Nifti1Header, axes: int) -> NDArray[np.float64] | None:
    """Matrix of the quaternion; None where its parts or the voxel sizes are impossible."""
    from nibabel.spatialimages import HeaderDataError

    pixdim = _plain_pixdim(fields, axes)
    if not all(math.isfinite(length) and length > 0 for length in pixdim):
        return None
    repaired = fields.copy()
    repaired["pixdim"][1:4] = pixdim
    # nifti1.h: any qfac but -1 would be a mistake; 0, from programs that do not know it, counts as 1.
    if repaired["pixdim"][0] == 0:
        repaired["pixdim"][0] = 1
    try:
        return np.asarray(repaired.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
