"""Masks as DICOM segmentation objects (PS3.3 A.51), which other software opens in the place of their series."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medquant.data.atomic import write_atomically
from medquant.data.dicom.files import DicomFile, has_dicom_magic
from medquant.data.dicom.geometry import Stack
from medquant.data.dicom.quiet import quiet_dicom
from medquant.data.dicom.series import MAX_DECODED_BYTES, check_series, choose_files
from medquant.data.volume import Volume
from medquant.errors import GeometryError, InputError, UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# The patient and study modules of a segmentation (PS3.3 table A.51-1): copied from the series, and kept nowhere else.
_COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_MAY_BE_EMPTY = tuple(field for field in _COPIED if field not in ("IssuerOfPatientID", "StudyInstanceUID"))

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_INDEX_TOLERANCE = 1e-3
# SNOMED CT codes, as the standard's context groups list them; other classes are coded as tissue, and named by their label.
_CATEGORIES = {
    "pancreas": ("AnatomicalStructure", "Pancreas"),
    "gray matter": ("Tissue", "GrayMatter"),
    "white matter": ("Tissue", "WhiteMatter"),
}
_SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def write_segmentation(
    path: Path,
    mask: Volume,
    source: Path | Sequence[Path],
    classes: Mapping[int, str],
    *,
    algorithm: str,
    algorithm_version: str,
    series: int | None = None,
    name: str = "DICOM folder",
) -> None:
    """Write ``mask`` as a binary segmentation of the series it was made from.

    Args:
        path: file to write, replaced in one step.
        mask: class numbers on the voxels of the series; axes in any order and direction, as long as the affine says so.
        source: the folder, or the files, of the series; see :func:`read_dicom_series` for ``series`` and ``name``.
        classes: class number → name; 0 is background and makes no segment. Segments are numbered from 1 in class order.
        algorithm: name of what drew the mask, with ``algorithm_version`` (PS3.3 10.16).

    The object carries the patient and study fields of the series, as the standard asks; a field the series lacks stays
    empty, and identifiers of study and frame of reference, which may not be empty, are made up if the series has none.

    Raises:
        InputError, GeometryError: the series is refused; see :func:`read_dicom_series`.
        GeometryError: the mask does not lie on the voxels of the series.
        UsageError: the mask holds a class number without a name, there is no class to write, or ``path`` cannot be written.
    """
    names = {number: text for number, text in sorted(classes.items()) if number != 0}
    _check_classes(mask, names)
    with quiet_dicom():
        stack = check_series(choose_files(source, series, name), name)
        planes = _on_grid(mask, stack, name)
        numbers = np.zeros(256, dtype=np.uint8)
        for segment, number in enumerate(names, start=1):
            if number < numbers.size:
                numbers[number] = segment
        segments = np.empty(planes.shape, dtype=np.uint8)
        # Slice by slice: an index, or a comparison, as large as the mask would take as much memory again.
        for place, plane in enumerate(planes):
            segments[place] = numbers[plane]
        dataset = _build(stack, segments, list(names.values()), algorithm, algorithm_version, name)

        def write(stream: BinaryIO) -> None:
            dataset.save_as(stream)

        write_atomically(path, write)


def read_segmentation(path: Path, *, name: str = "DICOM segmentation") -> tuple[Volume, dict[int, str]]:
    """Read a segmentation whose segments do not overlap.

    Returns:
        A uint8 volume of segment numbers (0 where there is none), shape ``(I, J, K)`` with axes as :func:`read_dicom_series`
        has them, over the slices the object holds (empty ones at the ends are usually left out); and segment number → label.

    Raises:
        InputError: no segmentation, damaged, fractional, or with overlapping segments.
        GeometryError: its frames form no regular stack.
    """
    import highdicom as hd

    if not has_dicom_magic(path):
        raise InputError(f"{name}: lacks the DICOM preamble, expected a segmentation; check the path")
    with quiet_dicom():
        try:
            found: Any = hd.seg.segread(path)
            labels = {int(item.SegmentNumber): str(item.SegmentLabel) for item in found.SegmentSequence if int(item.SegmentNumber)}
            kind = str(found.SegmentationType)
        except Exception:
            raise InputError(f"{name}: no readable segmentation object; copy or download it again") from None
        if kind not in ("BINARY", "LABELMAP"):
            raise InputError(f"{name}: a fractional segmentation, expected a binary one; threshold it first")
        try:
            volume = _stack_frames(found, name)
        except InputError:
            raise
        except Exception:
            raise InputError(f"{name}: segments that overlap, or frames that form no stack or are damaged; export it again") from None
    # The library's axes are (slice, row, column).
    lps = np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    result = Volume(np.asarray(volume.array).transpose(2, 1, 0), _LPS_FROM_RAS @ lps)
    return (result if np.linalg.det(lps[:3, :3]) > 0 else _turned(result)), labels


def _stack_frames(found: Any, name: str) -> Any:
    # Two frames far apart make a large volume of a small file: its size is known before it is made.
    geometry = found.get_volume_geometry()
    size_bytes = int(np.prod([int(length) for length in geometry.spatial_shape], dtype=object))
    if size_bytes > MAX_DECODED_BYTES:
        raise InputError(f"{name}: its frames span {size_bytes / 2**20:.0f} MiB, expected at most {MAX_DECODED_BYTES / 2**20:.0f}; crop it")
    return found.get_volume(combine_segments=True, dtype=np.uint8)


def _turned(volume: Volume) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (volume.shape[2] - 1)
    affine[:3, 2] *= -1
    return Volume(volume.array[:, :, ::-1], affine)


def _check_classes(mask: Volume, names: Mapping[int, str]) -> None:
    if not names:
        raise UsageError("found no class besides background, expected at least one to write as a segment; name the classes")
    found = {int(value) for k in range(mask.shape[2]) for value in np.unique(mask.array[:, :, k])}
    unnamed = sorted(found - names.keys() - {0})
    if unnamed:
        raise UsageError(f"the mask holds class numbers without a name ({', '.join(map(str, unnamed[:8]))}); name them in classes")


def _on_grid(mask: Volume, stack: Stack, name: str) -> NDArray[np.generic]:
    """Return the mask as ``(slice, row, column)`` of the series, its axes permuted and turned as the two affines say."""
    pixels = stack.slices[0].pixels
    shape = np.array([pixels.columns, pixels.rows, len(stack.slices)])
    to_series = np.linalg.inv(stack.affine) @ mask.affine
    turn = np.rint(to_series[:3, :3]).astype(int)
    axes = np.abs(turn).argmax(axis=1)
    far_corner = np.abs(to_series[:3, :3] - turn) @ np.array(mask.shape, dtype=float)
    is_permutation = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    start = np.array([0 if turn[row, axes[row]] > 0 else shape[row] - 1 for row in range(3)])
    fits = is_permutation and tuple(np.array(mask.shape)[axes]) == tuple(shape)
    if not fits or max(far_corner.max(), np.abs(to_series[:3, 3] - start).max()) > _INDEX_TOLERANCE:
        raise GeometryError(
            f"{name}: the mask of shape {mask.shape} does not lie on the voxels of the series {tuple(map(int, shape))}; resample it first"
        )
    turned = mask.array.transpose([int(axis) for axis in axes])
    directions = tuple(slice(None, None, int(turn[row, axes[row]])) for row in range(3))
    return turned[directions].transpose(2, 1, 0)


def _build(stack: Stack, segments: NDArray[np.uint8], labels: Sequence[str], algorithm: str, algorithm_version: str, name: str) -> Any:
    import highdicom as hd
    from pydicom.uid import generate_uid

    lps = (_LPS_FROM_RAS @ stack.affine)[:, [2, 1, 0, 3]]
    try:
        sources = _source_datasets([header.file for header in stack.slices], stack)
        volume = hd.Volume(segments, lps, coordinate_system="PATIENT", frame_of_reference_uid=sources[0].FrameOfReferenceUID)
        return hd.seg.Segmentation(
            source_images=sources,
            pixel_array=volume,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _describe_segment(place, text, algorithm, algorithm_version) for place, text in enumerate(labels, start=1)
            ],
            series_instance_uid=generate_uid(),
            series_number=900,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="medquant",
            manufacturer_model_name=algorithm,
            software_versions=algorithm_version,
            device_serial_number="none",
            content_label="SEGMENTATION",
            content_description="Automatic segmentation",
        )
    except Exception:
        # The library quotes header values in its errors.
        raise InputError(f"{name}: its headers do not allow a segmentation object to be made; export the series again") from None


def _describe_segment(number: int, label: str, algorithm: str, algorithm_version: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    category, kind = _CATEGORIES.get(label.lower(), ("Tissue", "Tissue"))
    identification = hd.AlgorithmIdentificationSequence(name=algorithm, family=codes.DCM.ArtificialIntelligence, version=algorithm_version)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label[:64],
        segmented_property_category=getattr(codes.SCT, category),
        segmented_property_type=getattr(codes.SCT, kind),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
    )


def _source_datasets(files: Sequence[DicomFile], stack: Stack) -> list[Dataset]:
    """What the segmentation has to know of each slice, and of the patient: no more of the headers is read."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    whole = dcmread(files[0].path, stop_before_pixels=True, specific_tags=list(_COPIED))
    common = Dataset()
    if whole.get("SpecificCharacterSet"):
        common.SpecificCharacterSet = whole.SpecificCharacterSet
    for field in _COPIED:
        if whole.get(field) or field in _MAY_BE_EMPTY:
            setattr(common, field, whole.get(field) or "")
    if not re.fullmatch(r"\d{8}", str(common.PatientBirthDate)):
        common.PatientBirthDate = ""
    if common.PatientSex not in ("M", "F", "O"):
        common.PatientSex = ""
    common.StudyInstanceUID = whole.get("StudyInstanceUID") or generate_uid()
    common.SeriesInstanceUID = files[0].series or generate_uid()
    common.FrameOfReferenceUID = files[0].fields.get("FrameOfReferenceUID") or generate_uid()
    common.Modality = str(files[0].fields.get("Modality") or "OT")
    common.Rows, common.Columns = stack.slices[0].pixels.rows, stack.slices[0].pixels.columns
    sources = []
    for header in stack.slices:
        dataset = Dataset()
        dataset.update(common)
        dataset.SOPClassUID, dataset.SOPInstanceUID = header.file.sop_class, header.file.instance
        for field in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            if field in header.file.fields:
                setattr(dataset, field, header.file.fields[field].value)
        sources.append(dataset)
    return sources
