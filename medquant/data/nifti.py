"""NIfTI scans and masks: read only when every byte and every header field has passed, written in one step.

The file that is named is the file that is read: ``c.nii.gz`` never stands in for ``c.nii``. Limits on sizes are in
:mod:`medquant.data.nifti_check`, the choice among the header's transforms in :mod:`medquant.data.nifti_geometry`, and what
happens to NaN and Inf in :mod:`medquant.data.voxel_rules`.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medquant.data.atomic import write_atomically
from medquant.data.nifti_check import NiftiContents, read_nifti_fully
from medquant.data.nifti_geometry import TransformRule, affine_mm
from medquant.data.nifti_header import NiftiHeader
from medquant.data.volume import Volume
from medquant.data.voxel_rules import BadVoxelRule, Notify, apply_bad_voxel_rule, count_bad_voxels
from medquant.errors import InputError, UsageError

if TYPE_CHECKING:
    import nibabel as nib

WRITTEN_TYPES = ("uint8", "int16", "int32", "float32")
"""Number types that are written."""

GEOMETRY_TOLERANCE = 1e-6
"""A qform is written where, in its 32-bit numbers, it gives each axis and the origin back to this part of their length."""

_HIGHEST_CLASS = 255
_LONGEST_AXIS = 32767
_LONGEST_DESCRIPTION = 79
_DATA_OFFSET = 352
# nifti1.h: intents whose "voxel" is a matrix, a vector, a point, a triangle or a quaternion.
_NOT_SCALAR_INTENTS = range(1004, 1011)


def read_nifti(
    path: Path,
    *,
    bad_voxels: BadVoxelRule = "refuse",
    transform: TransformRule = "agreed",
    max_decoded_bytes: int | None = None,
    notify: Notify | None = None,
) -> Volume:
    """Read a scan with one value a voxel.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        bad_voxels: what happens to NaN and Inf.
        transform: which of the header's transforms to believe where they contradict each other.
        max_decoded_bytes: limit on the decoded size; None for those of :mod:`medquant.data.nifti_check`.
        notify: told, in one line, of repaired voxels.

    Returns:
        Volume of shape ``(I, J, K)`` in native byte order: of the stored type where the file does not scale, else float32 (or
        float64 where float32 would not hold the values). An image of two axes has one slice; axes of length 1 beyond the third
        are dropped. ``has_geometry`` is False where the header gives voxel sizes only.

    Raises:
        InputError: no sound NIfTI file (see :func:`~medquant.data.nifti_check.read_nifti_fully`), not three axes, vectors
            instead of values, or bad voxels under the rule ``refuse``.
        GeometryError: the place of the voxels is missing or contradictory.
    """
    contents, affine, has_geometry = _read_placed(path, transform, max_decoded_bytes)
    array = apply_bad_voxel_rule(path, _with_axes(path, contents, 3), bad_voxels, notify)
    return Volume(array=array, affine=affine, has_geometry=has_geometry)


def read_nifti_mask(path: Path, *, transform: TransformRule = "agreed", max_decoded_bytes: int | None = None) -> Volume:
    """Read a mask of class numbers.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file of any number type.
        transform: as for :func:`read_nifti`.
        max_decoded_bytes: as for :func:`read_nifti`.

    Returns:
        uint8 volume of shape ``(I, J, K)``.

    Raises:
        InputError: as for :func:`read_nifti`; or a value is no whole number from 0 to 255. NaN is never repaired: whether it
            means background is not known.
        GeometryError: as for :func:`read_nifti`.
    """
    contents, affine, has_geometry = _read_placed(path, transform, max_decoded_bytes)
    return Volume(array=_class_numbers(path, _with_axes(path, contents, 3)), affine=affine, has_geometry=has_geometry)


def read_nifti_channels(
    path: Path,
    *,
    bad_voxels: BadVoxelRule = "refuse",
    transform: TransformRule = "agreed",
    max_decoded_bytes: int | None = None,
    notify: Notify | None = None,
) -> tuple[Volume, ...]:
    """Read a scan whose fourth axis holds the channels, as in the Medical Segmentation Decathlon.

    The arguments are those of :func:`read_nifti`. Each channel is judged for bad voxels on its own.

    Returns:
        One volume of shape ``(I, J, K)`` a channel, in stored order, on one grid; one volume where there is no fourth axis.

    Raises:
        InputError: as for :func:`read_nifti`, but four axes are allowed.
        GeometryError: as for :func:`read_nifti`.
    """
    contents, affine, has_geometry = _read_placed(path, transform, max_decoded_bytes)
    values = _with_axes(path, contents, 4)
    volumes = []
    for channel in range(values.shape[3]):
        source = f"{path}, channel {channel}" if values.shape[3] > 1 else path
        array = apply_bad_voxel_rule(source, values[..., channel], bad_voxels, notify)
        volumes.append(Volume(array=array, affine=affine, has_geometry=has_geometry))
    return tuple(volumes)


def write_nifti(path: Path, volume: Volume, *, description: str = "") -> None:
    """Write a volume as NIfTI-1, compressed where ``path`` ends in ``.gz``, replacing ``path`` in one step.

    The bytes depend on the arguments alone. The sform holds the affine, rounded to 32-bit numbers, in millimetres; the qform
    holds it too, unless it cannot (shear; or a turn so near to 180° that its rounding would show), when its code is 0. Where
    the volume has no geometry, both codes are 0 and only the voxel sizes are stored.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        volume: shape ``(I, J, K)``, of one of the types in :data:`WRITTEN_TYPES`.
        description: for the header's ``descrip``; ASCII, nothing of a patient.

    Raises:
        UsageError: another ending or number type, an empty or too long axis, NaN or Inf, a description that does not fit, or
            the file cannot be written.
    """
    lower = path.name.lower()
    if not lower.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path}: expected a name ending in .nii or .nii.gz; choose another name")
    _check_writable(path, volume, description)
    head = _header_to_write(volume, description).binaryblock + bytes(4)
    little_endian = volume.array.dtype.newbyteorder("<")

    def write_voxels(stream: BinaryIO) -> None:
        stream.write(head)
        # Slice by slice, so that no second copy of the scan is made.
        for k in range(volume.shape[2]):
            stream.write(volume.array[:, :, k].astype(little_endian, copy=False).tobytes(order="F"))

    def write_packed(stream: BinaryIO) -> None:
        # Neither name nor time goes into the gzip header.
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as packed:
            write_voxels(packed)  # type: ignore[arg-type]

    write_atomically(path, write_packed if lower.endswith(".gz") else write_voxels)


def _read_placed(path: Path, transform: TransformRule, max_decoded_bytes: int | None) -> tuple[NiftiContents, NDArray[np.float64], bool]:
    contents = read_nifti_fully(path, max_decoded_bytes)
    check_intent(path, contents.header)
    return (contents, *affine_mm(path, contents.header, transform))


def check_intent(path: Path, header: NiftiHeader) -> None:
    """Raise InputError where the header says that a voxel is more than one gray value."""
    if header.intent_code in _NOT_SCALAR_INTENTS:
        raise InputError(
            f"{path}: the header says that its values are vectors or matrices (intent code {header.intent_code}), "
            "expected one gray value a voxel; give the scan itself"
        )


def _with_axes(path: Path, contents: NiftiContents, axes: int) -> NDArray[np.generic]:
    """The values with 3 or 4 axes."""
    return contents.values.reshape(spatial_shape(path, contents.values.shape, axes), order="F")


def spatial_shape(path: Path, shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The shape with 3 or 4 axes; those of length 1 behind the third come and go as needed. InputError where it has more, or one."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > axes:
        remedy = "extract one volume, or read the fourth axis as channels" if len(shape) == 4 else "extract the volumes that are meant"
        raise InputError(f"{path}: found {len(shape)} axes of lengths {shape}, expected at most {axes}; {remedy}")
    if len(shape) < 2:
        raise InputError(f"{path}: found one axis of length {shape[0]}, expected an image of 2 or 3 axes; convert the scan again")
    return (*shape, 1, 1)[:axes]


def _class_numbers(path: Path, array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The same numbers as uint8, each of them proved to be one."""
    bad = count_bad_voxels(array)
    if bad.count:
        raise InputError(f"{path}: found {bad.describe()}, expected class numbers; decide what they are and repair the mask")
    numbers = np.empty(array.shape, dtype=np.uint8, order="F")
    for k in range(array.shape[2]):
        part: NDArray[Any] = array[:, :, k]
        # Compared before the cast, whose result for numbers out of range is not defined.
        wrong = (part < 0) | (part > _HIGHEST_CLASS) | (part != np.trunc(part))
        if wrong.any():
            raise InputError(
                f"{path}: found the value {part[wrong][0].item()} in slice {k}, expected class numbers, whole and from 0 to 255; "
                "give the mask, not the scan or a probability map, and resample masks by nearest neighbour"
            )
        numbers[:, :, k] = part
    return numbers


def _check_writable(path: Path, volume: Volume, description: str) -> None:
    if volume.array.dtype.name not in WRITTEN_TYPES:
        raise UsageError(f"{path}: found type {volume.array.dtype}, expected {', '.join(WRITTEN_TYPES)}; convert the array first")
    if not 1 <= min(volume.shape) <= max(volume.shape) <= _LONGEST_AXIS:
        raise UsageError(f"{path}: found shape {volume.shape}, expected lengths from 1 to {_LONGEST_AXIS}; crop the volume")
    bad = count_bad_voxels(volume.array)
    if bad.count:
        raise UsageError(f"{path}: found {bad.describe()}, expected finite numbers; no such file is written")
    if not description.isascii() or not description.isprintable() or len(description) > _LONGEST_DESCRIPTION:
        raise UsageError(f"{path}: the description does not fit, expected at most {_LONGEST_DESCRIPTION} plain ASCII characters")


def _header_to_write(volume: Volume, description: str) -> nib.Nifti1Header:
    import nibabel as nib

    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(volume.array.dtype.newbyteorder("<"))
    header.set_data_shape(volume.shape)
    header.set_xyzt_units("mm")
    header["vox_offset"] = _DATA_OFFSET
    # nibabel's own default, NaN, is a number other programs stumble over.
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["descrip"] = description.encode()
    header["pixdim"][1:4] = volume.spacing_mm
    if volume.has_geometry:
        header.set_sform(volume.affine, code=1)
        header.set_qform(volume.affine, code=1, strip_shears=True)
        if not _same_place(header.get_qform(), volume.affine):
            header.set_qform(None, code=0)
    return header


def _same_place(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> bool:
    """Whether axes and origin agree, each to a small part of its own length."""
    lengths = np.linalg.norm(wanted[:3], axis=0)
    return bool((np.abs(found - wanted)[:3] <= GEOMETRY_TOLERANCE * lengths).all())
