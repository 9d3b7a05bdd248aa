"""Values and geometry of a read series against closed forms, SimpleITK, and labels drawn on real scans."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_builder import Series, random_series, turned_axes, write
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from medquant.data.dicom import read_dicom_files, read_dicom_series
from medquant.data.volume import Volume


def simpleitk_series(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def check_against_simpleitk(volume: Volume, image: SimpleITK.Image) -> None:
    """Each voxel of ``image`` found at its place through the affine, with the same value."""
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    assert values.shape == volume.shape
    corners = [(0, 0, 0), (values.shape[0] - 1, 0, 0), (0, values.shape[1] - 1, 0), tuple(length - 1 for length in values.shape)]
    found = []
    for index in corners:
        lps = np.array(image.TransformContinuousIndexToPhysicalPoint([float(value) for value in index]))
        ras = np.append(lps * [-1, -1, 1], 1)
        found.append((np.linalg.inv(volume.affine) @ ras)[:3])
    # SimpleITK may order the slices the other way round; nothing else may differ.
    whole = np.rint(found)
    np.testing.assert_allclose(found, whole, atol=2e-3)
    turned = whole[0][2] != 0
    expected = [(i, j, values.shape[2] - 1 - k if turned else k) for i, j, k in corners]
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(volume.array, values[:, :, ::-1] if turned else values)


@pytest.mark.parametrize("seed", range(6))
def test_random_orientations_have_the_affine_of_the_standard(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    series = random_series(rng, axes=turned_axes(rng), spacing=tuple(rng.uniform(0.3, 4, 3)), origin=tuple(rng.uniform(-300, 300, 3)))
    write(tmp_path, series, [f"{place}.dcm" for place in rng.permutation(8)])
    volume = read_dicom_series(tmp_path)
    assert volume.array.dtype == np.int16
    assert volume.has_geometry
    np.testing.assert_allclose(volume.affine, series.affine(), atol=2e-6)
    np.testing.assert_array_equal(volume.array, series.planes.transpose(2, 1, 0) - 1024)
    check_against_simpleitk(volume, simpleitk_series(tmp_path))


@pytest.mark.parametrize(
    ("slope", "intercept", "low", "high", "kind"),
    [
        ("1", "-1024", 0, 4095, np.int16),
        ("1.0", "0.0", -32768, 32767, np.int16),
        ("1", "-1024", -32768, 0, np.float32),  # −33792 does not fit
        ("1", "0.5", 0, 100, np.float32),
        ("0.25", "-3", -500, 500, np.float32),
        (None, None, -5, 900, np.int16),
    ],
)
def test_slope_and_intercept_are_applied_exactly(
    tmp_path: Path, slope: str | None, intercept: str | None, low: int, high: int, kind: type
) -> None:
    planes = np.random.default_rng(0).integers(low, high, (4, 6, 5), endpoint=True).astype(np.int16)
    planes[:2] = np.abs(planes[:2] // 2)  # the first slices fit 16 bits in every case
    planes[2, 1, 1], planes[3, 0, 0] = low, high
    write(tmp_path, Series(planes, slope=slope, intercept=intercept))
    found = read_dicom_series(tmp_path).array
    assert found.dtype == kind
    expected = (planes.astype(np.float64) * float(slope or 1) + float(intercept or 0)).transpose(2, 1, 0)
    np.testing.assert_array_equal(found, expected)  # all of them are exact in 24 bits


def test_each_slice_has_its_own_slope_as_in_positron_and_some_mr_images(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(1), count=4)

    def edit(k: int, dataset: FileDataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(k + 1), str(-k)

    write(tmp_path, series, edit=edit)
    factors = np.arange(4)
    expected = series.planes.transpose(2, 1, 0) * (factors + 1.0) - factors
    np.testing.assert_array_equal(read_dicom_series(tmp_path).array, expected)


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 13), (10, 15)])
def test_only_the_stored_bits_count(tmp_path: Path, is_signed: bool, stored: int, high: int) -> None:
    # Closed form: a field of `stored` bits ending at bit `high`, other bits at random (old overlays).
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2**stored, (3, 6, 5))
    shift = high + 1 - stored
    noise = rng.integers(0, 2**16, values.shape) & ~(((1 << stored) - 1) << shift) & 0xFFFF
    words = ((values << shift) | noise).astype(np.uint16)

    def edit(_: int, dataset: FileDataset) -> None:
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = stored, high, int(is_signed)

    write(tmp_path, Series(words, intercept="0"), edit=edit)
    expected = np.where(is_signed & (values >= 2 ** (stored - 1)), values - 2**stored, values)
    np.testing.assert_array_equal(read_dicom_series(tmp_path).array, expected.transpose(2, 1, 0))


def test_eight_bit_slices_and_odd_lengths(tmp_path: Path) -> None:
    planes = np.random.default_rng(3).integers(0, 256, (3, 3, 5)).astype(np.uint8)

    def edit(_: int, dataset: FileDataset) -> None:
        dataset.PixelData = dataset.PixelData + b"\0"  # 15 bytes are padded to an even number (PS3.5 section 7.1.1)

    write(tmp_path, Series(planes, intercept="0"), edit=edit)
    np.testing.assert_array_equal(read_dicom_series(tmp_path).array, planes.transpose(2, 1, 0))


def test_rounded_cosines_do_not_stretch_the_voxels(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(6), axes=turned_axes(np.random.default_rng(6)))

    def edit(_: int, dataset: FileDataset) -> None:
        dataset.ImageOrientationPatient = [f"{value:.4f}" for value in 1.0005 * series.axes[:, :2].T.ravel()]

    write(tmp_path, series, edit=edit)
    assert read_dicom_series(tmp_path).spacing_mm == pytest.approx((0.7, 0.9, 2.5), abs=1e-6)


def test_a_single_slice_takes_its_thickness(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(4), count=3)
    paths = write(tmp_path, series)
    alone = read_dicom_files([paths[1]])
    assert alone.has_geometry
    expected = series.affine()
    expected[:3, 2] *= 9.5 / 2.5  # the builder's SliceThickness over its spacing
    expected[:3, 3] = series.position(1) * [-1, -1, 1]
    np.testing.assert_allclose(alone.affine, expected, atol=1e-6)

    def thin(_: int, dataset: FileDataset) -> None:
        del dataset.SliceThickness

    bare = read_dicom_files([write(tmp_path, series, edit=thin)[0]])
    assert not bare.has_geometry
    assert bare.spacing_mm == pytest.approx((0.7, 0.9, 1.0))


def test_positions_rounded_to_two_digits_still_make_a_regular_stack(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(5), count=40, spacing=(0.7, 0.7, 0.625))

    def edit(k: int, dataset: FileDataset) -> None:
        dataset.ImagePositionPatient = [f"{value:.2f}" for value in series.position(k)]

    write(tmp_path, series, edit=edit)
    affine = read_dicom_series(tmp_path).affine
    corner = affine @ [4, 5, 39, 1]
    assert np.abs(corner - series.affine() @ [4, 5, 39, 1]).max() < 0.006  # rounding of one position


def hounsfield_at(volume: Volume, label: nib.Nifti1Image, number: int) -> tuple[float, float]:
    """Mean value under a label, taken through both affines, and by array index."""
    inside: NDArray[np.int64] = np.argwhere(np.asanyarray(label.dataobj) == number)
    world = np.c_[inside, np.ones(len(inside))] @ np.asarray(label.affine).T
    index = np.rint((world @ np.linalg.inv(volume.affine).T)[:, :3]).astype(int)
    through = volume.array[tuple(index.T)].mean()
    return float(through), float(volume.array[tuple(inside.T)].mean())


def test_the_pancreas_lies_in_its_place_through_the_affines(shared_data: Path) -> None:
    # The two figures stand in the data's own README.
    folder = shared_data / "pancreas_ct" / "totalseg_dicom"
    volume = read_dicom_series(folder / "CT")
    assert volume.spacing_mm == pytest.approx((0.9765625, 0.9765625, 2.0))
    through, by_index = hounsfield_at(volume, nib.load(folder / "multiorgan_seg.nii.gz"), 7)
    assert through == pytest.approx(61, abs=0.5)
    assert by_index == pytest.approx(-132, abs=0.5)
    check_against_simpleitk(volume, simpleitk_series(folder / "CT"))


@pytest.mark.parametrize(("case", "mean"), [(1, 104), (2, 92)])
def test_the_nih_cases_read_with_their_labels(shared_data: Path, case: int, mean: int) -> None:
    root = shared_data / "pancreas_ct" / "Pancreas-CT"
    folder = next((root / f"PANCREAS_{case:04d}").glob("*/*"))
    volume = read_dicom_series(folder)
    label = nib.load(root / "TCIA_pancreas_labels-02-05-2017" / f"label{case:04d}.nii.gz")
    assert hounsfield_at(volume, label, 1)[0] == pytest.approx(mean, abs=1)
    check_against_simpleitk(volume, simpleitk_series(folder))
