"""Series written by the package, read by SimpleITK and pydicom; masks laid on them, every voxel followed through the world."""

from __future__ import annotations

import itertools
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_builder import random_series, turned_axes, write
from numpy.typing import NDArray

from medquant.data.dicom import read_dicom_series, read_segmentation, write_dicom_series, write_segmentation
from medquant.data.dicom.writer import SeriesIdentity
from medquant.data.volume import Volume
from medquant.errors import GeometryError, InputError, UsageError

SPACING = (0.7, 0.9, 1.3)
ORIGIN = (-31.25, 12.5, 101.75)
CLASSES = {0: "background", 1: "gray matter", 2: "white matter"}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FORTY_EIGHT = [
    np.eye(3)[:, list(axes)] * signs for axes in itertools.permutations(range(3)) for signs in itertools.product([1.0, -1.0], repeat=3)
]


def oriented(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING
    affine[:3, 3] = ORIGIN
    return affine


def check_voxels(
    mask: Volume, label: int, values: NDArray[np.generic], to_lps: NDArray[np.float64], who: str, tolerance_mm: float = 1e-3
) -> None:
    """Every voxel of ``label`` in ``values``, taken to millimetres by its reader, lies on one of ``mask``; and as many of them."""
    there = np.argwhere(values == label)
    world = np.c_[there, np.ones(len(there))] @ to_lps.T @ RAS_TO_LPS
    index = (world @ np.linalg.inv(mask.affine).T)[:, :3]
    nearest = np.rint(index).astype(int)
    assert (np.abs(index - nearest) * mask.spacing_mm).max() < tolerance_mm, who
    assert (mask.array[tuple(nearest.T)] == label).all(), who
    assert len(there) == np.count_nonzero(mask.array == label), who


def frames_by_hand(path: Path, label: int) -> tuple[NDArray[np.generic], list[NDArray[np.float64]]]:
    """Frames of one segment and the matrix of each (column, row, 1 → LPS), from the functional groups (PS3.3 C.7.6.16)."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    row_spacing, column_spacing = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    frames, matrices = [], []
    for frame, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == label:
            position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            matrix = np.eye(4)
            matrix[:3] = np.column_stack([cosines[:3] * column_spacing, cosines[3:] * row_spacing, np.zeros(3), position])
            frames.append(frame)
            matrices.append(matrix)
    return np.array(frames), matrices


def round_trip(folder: Path, directions: NDArray[np.float64], seed: int) -> None:
    rng = np.random.default_rng(seed)
    affine = oriented(directions)
    scan = Volume(rng.integers(-1000, 2000, (5, 6, 4)).astype(np.int16), affine)
    mask = Volume(rng.integers(0, 3, (5, 6, 4)).astype(np.uint8), affine)
    write_dicom_series(folder / "scan", scan, description="test")

    image = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "scan")))
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    for index in itertools.product(*(range(length) for length in values.shape)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        place = np.linalg.inv(affine) @ RAS_TO_LPS @ [*lps, 1]
        nearest = np.rint(place[:3]).astype(int)
        assert (np.abs(place[:3] - nearest) * SPACING).max() < 1e-3
        assert scan.array[tuple(nearest)] == values[index]

    path = folder / "mask.dcm"
    write_segmentation(path, mask, folder / "scan", CLASSES, algorithm="test", algorithm_version="1")
    by_highdicom = hd.seg.segread(path).get_volume(combine_segments=True)
    for label in (1, 2):
        frames, matrices = frames_by_hand(path, label)
        found = 0
        for frame, matrix in zip(frames, matrices, strict=True):
            inside = np.argwhere(frame.T[:, :, None] == 1)
            world = np.c_[inside, np.ones(len(inside))] @ matrix.T @ RAS_TO_LPS
            index = (world @ np.linalg.inv(affine).T)[:, :3]
            nearest = np.rint(index).astype(int)
            assert (np.abs(index - nearest) * SPACING).max() < 1e-3
            assert (mask.array[tuple(nearest.T)] == label).all()
            found += len(inside)
        assert found == np.count_nonzero(mask.array == label)
        check_voxels(mask, label, np.asarray(by_highdicom.array), np.asarray(by_highdicom.affine), "highdicom")
    again, labels = read_segmentation(path)
    assert labels == {1: "gray matter", 2: "white matter"}
    for label in labels:
        check_voxels(mask, label, again.array, RAS_TO_LPS @ again.affine, "read_segmentation")
    # One class: as ITK has it, which joins all frames into one stack.
    single = Volume((mask.array == 1).astype(np.uint8), affine)
    write_segmentation(path, single, folder / "scan", {1: "gray matter"}, algorithm="test", algorithm_version="1")
    opened = SimpleITK.ReadImage(str(path))
    to_lps = np.eye(4)
    to_lps[:3, :3] = np.array(opened.GetDirection()).reshape(3, 3) * opened.GetSpacing()
    to_lps[:3, 3] = opened.GetOrigin()
    array = SimpleITK.GetArrayFromImage(opened).transpose(2, 1, 0)
    check_voxels(single, 1, (array > 0).astype(np.uint8), to_lps, "SimpleITK")


@pytest.mark.parametrize("number", [0, 5, 14, 23, 34, 47])
def test_series_and_mask_keep_every_voxel_in_place(tmp_path: Path, number: int) -> None:
    round_trip(tmp_path, FORTY_EIGHT[number], number)


def test_an_oblique_series_and_mask_keep_every_voxel_in_place(tmp_path: Path) -> None:
    round_trip(tmp_path, turned_axes(np.random.default_rng(1)), 1)


@pytest.mark.slow
def test_all_48_orientations_and_12_oblique_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    mirrored = [turned_axes(rng) * [1, 1, sign] for sign in (1, -1) for _ in range(6)]
    for number, directions in enumerate(FORTY_EIGHT + mirrored):
        round_trip(tmp_path / str(number), directions, number)


@pytest.mark.parametrize("number", range(0, 48, 5))
def test_a_mask_may_have_its_axes_in_any_order(tmp_path: Path, number: int) -> None:
    series = random_series(np.random.default_rng(number), count=4)
    write(tmp_path / "scan", series)
    turn = np.eye(4)
    turn[:3, :3] = FORTY_EIGHT[number]
    array = np.random.default_rng(1).integers(0, 2, (5, 6, 4)).astype(np.uint8)
    # nibabel turns array and affine together.
    import nibabel as nib

    turned = nib.Nifti1Image(array, series.affine()).as_reoriented(nib.io_orientation(turn))
    mask = Volume(np.asanyarray(turned.dataobj).astype(np.uint8), turned.affine)
    write_segmentation(tmp_path / "mask.dcm", mask, tmp_path / "scan", {1: "pancreas"}, algorithm="test", algorithm_version="1")
    again, _ = read_segmentation(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(again.array, array)
    np.testing.assert_allclose(again.affine, series.affine(), atol=1e-6)


def test_a_mask_elsewhere_is_refused(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(3))
    write(tmp_path / "scan", series)
    array = np.ones((5, 6, 8), dtype=np.uint8)
    wrong = {"moved": series.affine(), "scaled": series.affine(), "turned": series.affine()}
    wrong["moved"][0, 3] += 0.35
    wrong["scaled"][:3, 0] *= 1.01
    wrong["turned"][:3, :3] = turned_axes(np.random.default_rng(0)) * series.spacing
    for affine in wrong.values():
        with pytest.raises(GeometryError, match="does not lie on the voxels of the series"):
            write_segmentation(tmp_path / "m.dcm", Volume(array, affine), tmp_path / "scan", {1: "x"}, algorithm="a", algorithm_version="1")
    small = Volume(array[:, :, 1:], series.affine())
    with pytest.raises(GeometryError, match="does not lie on"):
        write_segmentation(tmp_path / "m.dcm", small, tmp_path / "scan", {1: "x"}, algorithm="a", algorithm_version="1")
    whole = Volume(array, series.affine())
    with pytest.raises(UsageError, match="without a name"):
        write_segmentation(tmp_path / "m.dcm", whole, tmp_path / "scan", {2: "x"}, algorithm="a", algorithm_version="1")
    with pytest.raises(UsageError, match="no class besides background"):
        write_segmentation(tmp_path / "m.dcm", whole, tmp_path / "scan", {0: "x"}, algorithm="a", algorithm_version="1")
    assert not (tmp_path / "m.dcm").exists()


def test_empty_masks_and_series_without_identifiers_are_written(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "pancreas_ct" / "totalseg_dicom" / "CT"  # no patient, study, series or object identifiers
    scan = read_dicom_series(folder)
    bone = Volume((scan.array > 300).astype(np.uint8), scan.affine)
    for mask in (bone, Volume(np.zeros_like(bone.array), scan.affine)):
        write_segmentation(tmp_path / "m.dcm", mask, folder, {1: "bone"}, algorithm="test", algorithm_version="1")
        again, labels = read_segmentation(tmp_path / "m.dcm")
        np.testing.assert_array_equal(again.array, mask.array)
        np.testing.assert_allclose(again.affine, scan.affine, atol=1e-9)
        assert labels == {1: "bone"}


def test_a_segmentation_says_what_it_is(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(4))
    paths = write(tmp_path / "scan", series)
    mask = Volume(np.ones((5, 6, 8), dtype=np.uint8), series.affine())
    write_segmentation(tmp_path / "m.dcm", mask, paths, {1: "pancreas"}, algorithm="medquant U-Net", algorithm_version="4/6 bits")
    found = pydicom.dcmread(tmp_path / "m.dcm")
    segment = found.SegmentSequence[0]
    assert (found.Modality, found.SegmentationType, segment.SegmentLabel) == ("SEG", "BINARY", "pancreas")
    assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "medquant U-Net")
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "4/6 bits"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"  # SNOMED CT: pancreas
    assert found.FrameOfReferenceUID == series.frame_of_reference
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == series.uid
    referenced = {item.ReferencedSOPInstanceUID for item in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {pydicom.dcmread(path).SOPInstanceUID for path in paths}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    scan = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), oriented(np.eye(3)))
    for name in ("a", "b"):
        write_dicom_series(tmp_path / name, scan, description="phantom", identity=SeriesIdentity("PHANTOM_0001", "7"))
    write_dicom_series(tmp_path / "c", scan, description="phantom", identity=SeriesIdentity("PHANTOM_0002", "7"))
    names = [f"1-{place:03d}.dcm" for place in range(1, 6)]
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    uids = [{str(pydicom.dcmread(tmp_path / folder / name).SOPInstanceUID) for name in names} for folder in "abc"]
    assert uids[0] == uids[1]
    assert len(uids[0] | uids[2]) == 10
    assert all(pydicom.uid.UID(uid).is_valid and uid.startswith("1.2.826.0.1.3680043.8.498.") for uid in uids[0])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_written_slices_hold_the_required_fields(tmp_path: Path, modality: str) -> None:
    scan = Volume(np.arange(60, dtype=np.float32).reshape(3, 4, 5), oriented(np.eye(3)))
    write_dicom_series(tmp_path / "s", scan, description="phantom", modality=modality)  # type: ignore[arg-type]
    found = pydicom.dcmread(tmp_path / "s" / "1-002.dcm")
    # Type 1 and 2 fields of the patient, study, series, frame of reference, equipment, plane, pixel and CT/MR modules (PS3.3 A.3, A.4).
    required = "PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime ReferringPhysicianName StudyID"
    required += " AccessionNumber Modality SeriesInstanceUID SeriesNumber FrameOfReferenceUID PositionReferenceIndicator Manufacturer"
    required += " PatientPosition InstanceNumber ImageType PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness"
    required += " SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation"
    required += {
        "CT": " RescaleIntercept RescaleSlope KVP AcquisitionNumber",
        "MR": " ScanningSequence SequenceVariant ScanOptions MRAcquisitionType EchoTime EchoTrainLength RepetitionTime",
    }[modality]
    assert [name for name in required.split() if name not in found] == []
    np.testing.assert_array_equal(found.pixel_array, scan.array[:, :, 1].T)
    assert [float(value) for value in found.PixelSpacing] == [0.9, 0.7]  # between rows, between columns


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    good = Volume(np.zeros((3, 4, 5), dtype=np.int16), oriented(np.eye(3)))
    sheared = oriented(np.eye(3))
    sheared[0, 1] = 0.2
    cases: list[tuple[Volume, type[Exception], str]] = [
        (Volume(good.array + 0.5, good.affine), UsageError, "no whole numbers"),
        (Volume(good.array + np.float32(40000), good.affine), UsageError, "no whole numbers"),
        (Volume(good.array * np.float32("nan"), good.affine), UsageError, "no whole numbers"),
        (Volume(good.array, good.affine, has_geometry=False), GeometryError, "without geometry"),
        (Volume(good.array, sheared), GeometryError, "not at right angles"),
    ]
    for volume, kind, words in cases:
        with pytest.raises(kind, match=words):
            write_dicom_series(tmp_path / "s", volume, description="x")

    def failing(place: int) -> str:
        if place == 3:
            raise RuntimeError("stop")
        return f"{place}.dcm"

    with pytest.raises(RuntimeError, match="stop"):
        write_dicom_series(tmp_path / "s", good, description="x", file_name=failing)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "kept").write_text("kept")
    with pytest.raises(UsageError, match="exists and is not empty"):
        write_dicom_series(tmp_path / "s", good, description="x")
    assert [path.name for path in tmp_path.rglob("*")] == ["s", "kept"]


def test_reading_back_gives_the_same_volume(tmp_path: Path) -> None:
    affine = oriented(turned_axes(np.random.default_rng(5)))
    scan = Volume(np.random.default_rng(6).integers(-1024, 3071, (7, 8, 9)).astype(np.int16), affine)
    write_dicom_series(tmp_path / "s", scan, description="x")
    again = read_dicom_series(tmp_path / "s")
    np.testing.assert_array_equal(again.array, scan.array)
    np.testing.assert_allclose(again.affine, affine, atol=1e-9)


def test_what_is_no_segmentation_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, random_series(np.random.default_rng(7), count=2))
    with pytest.raises(InputError, match="no readable segmentation"):
        read_segmentation(paths[0])
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(InputError, match="lacks the DICOM preamble"):
        read_segmentation(tmp_path / "x")
