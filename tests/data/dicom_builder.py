"""Small DICOM series for tests, made with pydicom by hand: the package's own writer has no part in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = np.eye(3)


@dataclass
class Series:
    """Stored planes ``(slice, row, column)``, and where their voxels are; slices follow ``cross(row, column)``."""

    planes: NDArray[np.generic]
    axes: NDArray[np.float64] = field(default_factory=lambda: AXIAL)  # columns: directions of column index, row index, slice index; LPS
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5)  # column, row, slice
    origin: tuple[float, float, float] = (-10.25, 20.5, 30.75)
    slope: str | None = "1"
    intercept: str | None = "-1024"
    uid: str = field(default_factory=lambda: str(generate_uid()))
    frame_of_reference: str = field(default_factory=lambda: str(generate_uid()))
    sop_class: str = CT

    def position(self, k: float) -> NDArray[np.float64]:
        return np.array(self.origin) + k * self.spacing[2] * self.axes[:, 2]

    def affine(self) -> NDArray[np.float64]:
        """RAS, for index (column, row, slice): written out here from PS3.3 C.7.6.2.1.1."""
        lps = np.eye(4)
        lps[:3, :3] = self.axes * np.array(self.spacing)
        lps[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps

    def dataset(self, k: int) -> FileDataset:
        plane = self.planes[k]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.UID(self.sop_class)
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = self.uid, self.frame_of_reference
        dataset.StudyInstanceUID = "1.2.3.4"
        dataset.Modality = "CT"
        dataset.PatientID = dataset.PatientName = "TEST"
        # Falls while the position grows: nothing may be sorted by it.
        dataset.InstanceNumber = len(self.planes) - k
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        bits = 8 * plane.dtype.itemsize
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(plane.dtype.kind == "i")
        if self.slope is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = self.slope, self.intercept
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in self.position(k)]
        dataset.ImageOrientationPatient = [f"{value:.10f}" for value in self.axes[:, :2].T.ravel()]
        dataset.PixelSpacing = [f"{self.spacing[1]:.10f}", f"{self.spacing[0]:.10f}"]
        # Wrong on purpose: the distance must come from the positions.
        dataset.SliceThickness = "9.5"
        dataset.PixelData = plane.tobytes()
        return dataset


def random_series(rng: np.random.Generator, count: int = 8, rows: int = 6, columns: int = 5, **changes: object) -> Series:
    planes = rng.integers(0, 2000, (count, rows, columns)).astype(np.int16)
    return Series(planes, **changes)  # type: ignore[arg-type]


def plain_names(count: int) -> list[str]:
    return [f"1-{place:03d}.dcm" for place in range(1, count + 1)]


def save(dataset: Dataset, path: Path) -> None:
    """Write without pydicom's checks of values: a test may want a wrong one."""
    before = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        dataset.save_as(path, enforce_file_format=True)
    finally:
        pydicom.config.settings.writing_validation_mode = before


def write(
    folder: Path, series: Series, names: list[str] | None = None, edit: Callable[[int, FileDataset], None] | None = None
) -> list[Path]:
    """Write the slices, slice ``k`` under ``names[k]``, and return their paths in the order of ``k``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, name in enumerate(names or plain_names(len(series.planes))):
        dataset = series.dataset(k)
        if edit is not None:
            edit(k, dataset)
        save(dataset, folder / name)
        paths.append(folder / name)
    return paths


def edit_file(path: Path, edit: Callable[[FileDataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    save(dataset, path)


def turned_axes(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random rotation (QR of a Gaussian matrix, made proper)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 2] *= -1
    return np.asarray(q)
