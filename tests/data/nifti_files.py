"""NIfTI files made byte by byte, by the field offsets of nifti1.h, so that nothing under test decides what is in them; affines compared."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.75, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]], dtype=float)
SHAPE = (8, 7, 6)


def nifti_bytes(values: NDArray[np.generic], *, qform_code: int = 0, sform_code: int = 1, order: str = "<") -> bytearray:
    """A NIfTI-1 file of float32 or int16 with :data:`AFFINE` in both transforms."""
    code, bits = {"float32": (16, 32), "int16": (4, 16)}[values.dtype.name]
    head = bytearray(352)
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, values.ndim, *values.shape, *[1] * (7 - values.ndim))
    struct.pack_into(order + "2h", head, 70, code, bits)
    # The quaternion of AFFINE is that of a half turn about j with a mirrored third axis: b, c, d = 0, 1, 0 and qfac = -1.
    struct.pack_into(order + "8f", head, 76, -1, 0.5, 0.75, 3, 1, 1, 1, 1)
    struct.pack_into(order + "3f", head, 108, 352, 1, 0)
    head[123] = 2
    struct.pack_into(order + "2h", head, 252, qform_code, sform_code)
    struct.pack_into(order + "6f", head, 256, 0, 1, 0, 10, -20, 5)
    struct.pack_into(order + "12f", head, 280, *AFFINE[:3].ravel())
    head[344:348] = b"n+1\0"
    return head + values.astype(values.dtype.newbyteorder(order)).tobytes(order="F")


def random_values(random: np.random.Generator) -> NDArray[np.float32]:
    return random.normal(50, 20, SHAPE).astype(np.float32)


def save_bytes(folder: Path, content: bytes, packed: bool) -> Path:
    path = folder / ("packed.nii.gz" if packed else "plain.nii")
    path.write_bytes(gzip.compress(content, 1, mtime=0) if packed else content)
    return path


def put(content: bytearray, offset: int, code: str, *numbers: float) -> None:
    struct.pack_into("<" + code, content, offset, *numbers)


def itk_affine(image: SimpleITK.Image) -> NDArray[np.float64]:
    """SimpleITK counts millimetres in LPS; the first two rows change sign."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def relative_error(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Each axis and the origin against its own length."""
    return float((np.abs(found - wanted)[:3] / np.linalg.norm(wanted[:3], axis=0)).max())
