"""Writing a volume as a classic series of CT or MR slices, the same bytes from the same input."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from medquant.data.atomic import write_atomically
from medquant.data.dicom.files import CT_IMAGE, MR_IMAGE
from medquant.data.dicom.pixels import EXPLICIT
from medquant.data.dicom.quiet import quiet_dicom
from medquant.data.volume import Volume
from medquant.errors import GeometryError, UsageError

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset
    from pydicom.uid import UID

_INT16 = np.iinfo(np.int16)
_RIGHT_ANGLE_TOLERANCE = 1e-4
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SeriesIdentity:
    """What made data carries in place of a patient.

    Args:
        subject: patient identifier and name, for example ``PHANTOM_0001``.
        seed: text from which, with ``subject`` and the description, all identifiers follow.
        uid_prefix: root of the identifiers, ending in a point (PS3.5 section 9).
    """

    subject: str = "PHANTOM"
    seed: str = "0"
    uid_prefix: str = "1.2.826.0.1.3680043.8.498."

    def uid(self, *words: str) -> UID:
        """An identifier that follows from the identity and ``words`` alone."""
        from pydicom.uid import generate_uid

        return generate_uid(prefix=self.uid_prefix, entropy_srcs=["medquant", self.seed, self.subject, *words])


def numbered_name(place: int) -> str:
    """Name of the slice at ``place`` (from 1) as in the Pancreas-CT downloads."""
    return f"1-{place:03d}.dcm"


def write_dicom_series(
    folder: Path,
    volume: Volume,
    *,
    description: str,
    modality: Literal["CT", "MR"] = "CT",
    identity: SeriesIdentity | None = None,
    file_name: Callable[[int], str] = numbered_name,
) -> None:
    """Write ``volume`` as a new folder of slices, one for each index ``k``, which appears whole or not at all.

    Rows follow ``j`` and columns ``i`` of the array; slices are numbered in the order of ``k``. Values are stored as they
    are (slope 1, intercept 0), in 16 bits. Any orthogonal affine can be written; a mirrored one is read back with its
    slices in opposite order, every voxel at its place.

    Raises:
        UsageError: values that are no whole numbers of 16 bits, ``folder`` exists and is not empty, or cannot be written.
        GeometryError: the volume has no geometry, or axes that are not at right angles (PS3.3 C.7.6.2.1.1).
    """
    planes = _whole_numbers(folder, volume)
    geometry = _SliceGeometry.of(volume)
    who = identity or SeriesIdentity()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not empty, expected a new folder; choose another place")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another place") from error
    try:
        with quiet_dicom():
            for k in range(planes.shape[0]):
                dataset = _slice_dataset(planes[k], geometry, k, description, modality, who)
                write_atomically(temporary / file_name(k + 1), _saver(dataset))
        temporary.chmod(0o755)
        # Replaces an empty folder, and fails on one that was filled meanwhile.
        temporary.replace(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); free some space or choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _SliceGeometry:
    """The affine in the terms of a header; ``step`` leads from one slice to the next, all in LPS millimetres."""

    orientation: NDArray[np.float64]
    row_spacing_mm: float
    column_spacing_mm: float
    origin: NDArray[np.float64]
    step: NDArray[np.float64]

    @classmethod
    def of(cls, volume: Volume) -> _SliceGeometry:
        if not volume.has_geometry:
            raise GeometryError("a volume without geometry cannot be written as DICOM, which needs millimetres; give it an affine first")
        lps = _LPS_FROM_RAS @ volume.affine
        column_spacing_mm, row_spacing_mm, slice_spacing_mm = volume.spacing_mm
        directions = lps[:3, :3] / [column_spacing_mm, row_spacing_mm, slice_spacing_mm]
        if np.abs(directions.T @ directions - np.eye(3)).max() > _RIGHT_ANGLE_TOLERANCE:
            raise GeometryError("the volume's axes are not at right angles, expected an upright box of voxels; resample it first")
        return cls(directions[:, :2].T.ravel(), row_spacing_mm, column_spacing_mm, lps[:3, 3], lps[:3, 2])


def _whole_numbers(folder: Path, volume: Volume) -> NDArray[np.int16]:
    """Return the voxels as ``(slice, row, column)``."""
    planes = volume.array.transpose(2, 1, 0)
    if planes.size == 0 or planes.dtype.kind not in "iuf":
        raise UsageError(f"{folder}: found voxels of type {planes.dtype} and shape {volume.shape}, expected numbers; nothing is written")
    converted = planes.astype(np.int16) if _within_16_bits(planes) else None
    if converted is None or not np.array_equal(converted, planes):
        raise UsageError(
            f"{folder}: found values that are no whole numbers of 16 bits, expected {_INT16.min} to {_INT16.max}; round them first"
        )
    return np.ascontiguousarray(converted)


def _within_16_bits(planes: NDArray[np.generic]) -> bool:
    low, high = float(planes.min()), float(planes.max())
    return bool(np.isfinite([low, high]).all()) and low >= _INT16.min and high <= _INT16.max


def _saver(dataset: FileDataset) -> Callable[[BinaryIO], None]:
    return lambda stream: dataset.save_as(stream, enforce_file_format=True)


def _slice_dataset(
    plane: NDArray[np.int16], geometry: _SliceGeometry, k: int, description: str, modality: str, who: SeriesIdentity
) -> FileDataset:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CT_IMAGE if modality == "CT" else MR_IMAGE)
    meta.MediaStorageSOPInstanceUID = who.uid(description, modality, f"slice {k}")
    meta.TransferSyntaxUID = UID(EXPLICIT)
    # Not the library's version, so that the bytes do not change with it.
    meta.ImplementationClassUID = UID(f"{who.uid_prefix}1")
    meta.ImplementationVersionName = "MEDQUANT"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\x00" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _describe_subject(dataset, description, modality, who)
    _place(dataset, geometry, k)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    if modality == "CT":
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
    dataset.PixelData = plane.astype("<i2").tobytes()
    return dataset


def _describe_subject(dataset: FileDataset, description: str, modality: str, who: SeriesIdentity) -> None:
    """Fill patient, study, series and equipment (PS3.3 A.3.3, A.4.3); what must be present but is not known stays empty."""
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    dataset.PatientID = dataset.PatientName = who.subject
    dataset.Modality = modality
    dataset.SeriesDescription = description
    dataset.Manufacturer = "medquant"
    dataset.StudyInstanceUID = who.uid("study")
    dataset.SeriesInstanceUID = who.uid(description, modality, "series")
    dataset.FrameOfReferenceUID = who.uid("frame of reference")
    dataset.SeriesNumber = 1
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(dataset, keyword, "")
    dataset.PositionReferenceIndicator = ""
    dataset.PatientPosition = "HFS"
    if modality == "CT":
        dataset.KVP = None
        dataset.AcquisitionNumber = None
    else:
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions, dataset.MRAcquisitionType = "RM", "NONE", "", "2D"
        dataset.RepetitionTime = dataset.EchoTime = dataset.EchoTrainLength = None


def _place(dataset: FileDataset, geometry: _SliceGeometry, k: int) -> None:
    dataset.InstanceNumber = k + 1
    dataset.ImagePositionPatient = [_decimal(value) for value in geometry.origin + k * geometry.step]
    dataset.ImageOrientationPatient = [_decimal(value) for value in geometry.orientation]
    dataset.PixelSpacing = [_decimal(geometry.row_spacing_mm), _decimal(geometry.column_spacing_mm)]
    dataset.SliceThickness = _decimal(float(np.linalg.norm(geometry.step)))


def _decimal(value: float) -> str:
    """The number as at most 16 characters (PS3.5 table 6.2-1, DS); zero without a sign."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(round(float(value), 12) + 0.0)
