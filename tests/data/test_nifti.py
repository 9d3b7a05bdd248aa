"""Reading sound NIfTI files. Expected: the arrays and affines written, nibabel and SimpleITK reading the same files."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nifti_files import itk_affine, relative_error
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medquant.data.nifti import read_nifti, read_nifti_channels, read_nifti_mask, write_nifti
from medquant.data.volume import Volume
from medquant.errors import InputError

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]], dtype=float)
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64", "float32", "float64")


def _save(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(values, affine, dtype=values.dtype), path)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_number_types_and_byte_orders(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.arange(60).reshape(5, 4, 3).astype(dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    nib.save(nib.Nifti1Image(values, AFFINE, header), tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == (348).to_bytes(4, "little" if order == "<" else "big")
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.array.dtype == np.dtype(dtype)
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.spacing_mm == (0.5, 0.5, 3.0)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_2(tmp_path: Path, name: str) -> None:
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti2Image(values, AFFINE), tmp_path / name)
    volume = read_nifti(tmp_path / name)
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_array_equal(volume.affine, AFFINE)


def test_files_of_another_program(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-12, 30, 4))
    image.SetDirection(Rotation.from_euler("zyx", [20, -10, 35], degrees=True).as_matrix().ravel().tolist())
    for name in ("a.nii", "a.nii.gz"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        volume = read_nifti(tmp_path / name)
        # SimpleITK's numpy arrays are (k, j, i).
        np.testing.assert_array_equal(volume.array, values.transpose(2, 1, 0))
        assert relative_error(volume.affine, itk_affine(image)) < 1e-6


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected"),
    [
        # 16-bit numbers and their intercept fit the 24 bits of float32.
        ("int16", 2.0, -1.0, "float32"),
        ("uint16", 0.1, -1024.0, "float32"),
        # Steps of 1e-4 around 1e6: float32 numbers are 0.0625 apart there.
        ("int16", 1e-4, 1e6, "float64"),
        # Beyond the largest float32.
        ("int16", 1e36, 0.0, "float64"),
        # Below the smallest float32 of full precision.
        ("int16", 1e-40, 0.0, "float64"),
        # 32 bits do not fit 24, unless they are not used.
        ("int32-large", 0.5, 0.0, "float64"),
        ("int32-small", 0.5, 0.0, "float32"),
        ("float32", 3.0, 7.0, "float32"),
        ("float32", 1e-6, 1e6, "float64"),
        ("float64", 2.0, 0.0, "float64"),
    ],
)
def test_scaling(tmp_path: Path, stored: str, slope: float, intercept: float, expected: str) -> None:
    kind, _, size = stored.partition("-")
    top = {"int16": 32767, "uint16": 65535, "int32": 2**31 - 1}.get(kind, 100)
    values = np.linspace(-top if kind == "int16" else 0, 1000 if size == "small" else top, 60).reshape(5, 4, 3).astype(kind)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_data_dtype(kind)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    # nifti1.h: scl_slope and scl_inter are the 32-bit numbers at bytes 112 and 116.
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.array.dtype.name == expected
    exact = values.astype(np.float64) * np.float64(np.float32(slope)) + np.float64(np.float32(intercept))
    np.testing.assert_array_equal(volume.array, exact.astype(expected))
    # The distance of two neighbouring stored numbers survives, to 1/64 of it and more.
    if kind.startswith(("int", "uint")):
        assert np.abs(volume.array - exact).max() <= np.float32(slope) / 64
    np.testing.assert_allclose(volume.array, np.asarray(nib.load(tmp_path / "a.nii").dataobj, dtype=np.float64), rtol=1e-6)


def test_axes(tmp_path: Path) -> None:
    flat = np.arange(12, dtype=np.int16).reshape(4, 3)
    assert read_nifti(_save(tmp_path / "2d.nii", flat)).shape == (4, 3, 1)
    np.testing.assert_array_equal(read_nifti(tmp_path / "2d.nii").array[..., 0], flat)
    deep = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    for extra in ((1,), (1, 1), (1, 1, 1, 1)):
        np.testing.assert_array_equal(read_nifti(_save(tmp_path / "a.nii", deep.reshape(*deep.shape, *extra))).array, deep)
    _save(tmp_path / "a.nii", np.zeros((4, 3, 2, 1, 3), np.uint8))
    for read in (read_nifti, read_nifti_mask, read_nifti_channels):
        with pytest.raises(InputError, match=r"5 axes of lengths \(4, 3, 2, 1, 3\)"):
            read(tmp_path / "a.nii")
    with pytest.raises(InputError, match="one axis of length 7"):
        read_nifti_channels(_save(tmp_path / "a.nii", np.zeros(7, np.uint8)))


def test_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-99, 99, (5, 4, 3, 4)).astype(np.int16)
    with pytest.raises(InputError, match="read the fourth axis as channels"):
        read_nifti(_save(tmp_path / "a.nii.gz", values))
    channels = read_nifti_channels(tmp_path / "a.nii.gz")
    assert len(channels) == 4
    for index, channel in enumerate(channels):
        np.testing.assert_array_equal(channel.array, values[..., index])
        np.testing.assert_array_equal(channel.affine, AFFINE)
    assert [each.shape for each in read_nifti_channels(_save(tmp_path / "b.nii", values[..., 0]))] == [(5, 4, 3)]
    assert [each.shape for each in read_nifti_channels(_save(tmp_path / "c.nii", values[..., 0, 0]))] == [(5, 4, 1)]


def test_bad_voxels_are_judged_a_channel(tmp_path: Path) -> None:
    values = np.ones((3, 3, 3, 3), np.float32)
    values[0, 1, 2, 1], values[..., 2] = np.nan, np.inf
    _save(tmp_path / "a.nii", values)
    with pytest.raises(InputError, match=r"channel 1: found 1 NaN of 27"):
        read_nifti_channels(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"channel 2: found 27 infinite of 27 .* nothing is left"):
        read_nifti_channels(tmp_path / "a.nii", bad_voxels="zero")
    told: list[str] = []
    _save(tmp_path / "a.nii", values[..., :2])
    channels = read_nifti_channels(tmp_path / "a.nii", bad_voxels="zero", notify=told.append)
    assert [int(channel.array.sum()) for channel in channels] == [27, 26]
    assert told == [f"{tmp_path / 'a.nii'}, channel 1: 1 NaN of 27 voxels set to 0, as asked"]


def test_the_file_that_is_named(tmp_path: Path) -> None:
    # SimpleITK reads c.nii when asked for c.nii.gz.
    _save(tmp_path / "c.nii", np.full((2, 2, 2), 1, np.uint8))
    _save(tmp_path / "c.nii.gz", np.full((2, 2, 2), 2, np.uint8))
    _save(tmp_path / "u.nii.gz", np.full((2, 2, 2), 3, np.uint8)).rename(tmp_path / "C.NII.GZ")
    _save(tmp_path / "u.nii", np.full((2, 2, 2), 4, np.uint8)).rename(tmp_path / "C.NII")
    found = {name: int(read_nifti(tmp_path / name).array[0, 0, 0]) for name in ("c.nii", "c.nii.gz", "C.NII.GZ", "C.NII")}
    assert found == {"c.nii": 1, "c.nii.gz": 2, "C.NII.GZ": 3, "C.NII": 4}
    for name, text in ((".", "found a folder"), ("d.nii", "found nothing")):
        with pytest.raises(InputError, match=text):
            read_nifti(tmp_path / name)


@pytest.mark.parametrize("dtype", TYPES)
def test_masks_of_every_number_type(tmp_path: Path, dtype: str) -> None:
    values = np.zeros((4, 4, 4), dtype)
    values[1], values[2, 2, 2] = 1, 100
    mask = read_nifti_mask(_save(tmp_path / "m.nii.gz", values))
    assert mask.array.dtype == np.uint8
    np.testing.assert_array_equal(mask.array, values)


@pytest.mark.parametrize(("value", "dtype"), [(0.5, "float32"), (0.9999999, "float64"), (256, "int16"), (-1, "int16"), (1e30, "float32")])
def test_masks_that_are_none(tmp_path: Path, value: float, dtype: str) -> None:
    values = np.zeros((4, 4, 4), dtype)
    values[3, 1, 2] = value
    with pytest.raises(InputError, match="expected class numbers") as caught:
        read_nifti_mask(_save(tmp_path / "m.nii", values))
    assert f"the value {values[3, 1, 2].item()} in slice 2" in str(caught.value)
    values[3, 1, 2] = 0
    assert not read_nifti_mask(_save(tmp_path / "m.nii", values)).array.any()


def test_codes_of_zero_give_sizes_only(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2, 2, 2))
    header["pixdim"][1:4] = 0.5, 0.75, 3
    nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), None, header).to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[252:256] = bytes(4)
    (tmp_path / "a.nii").write_bytes(content)
    volume = read_nifti(tmp_path / "a.nii")
    assert not volume.has_geometry
    np.testing.assert_array_equal(volume.affine, np.diag([0.5, 0.75, 3, 1]))


@pytest.mark.parametrize("unit", ["unknown", "mm", "micron", "meter"])
def test_units_of_length(tmp_path: Path, unit: str) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), AFFINE)
    image.header.set_xyzt_units(unit)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "a.nii")
    found = read_nifti(tmp_path / "a.nii").affine
    factor = {"unknown": 1, "mm": 1, "micron": 1e-3, "meter": 1e3}[unit]
    np.testing.assert_allclose(found[:3], AFFINE[:3] * factor, rtol=1e-12)
    if unit != "unknown":
        assert relative_error(itk_affine(SimpleITK.ReadImage(str(tmp_path / "a.nii"))), found) < 1e-6


@pytest.mark.parametrize(("dtype", "slope", "copies"), [("int16", 1.0, 1.0), ("float32", 1.0, 1.0), ("int16", 0.5, 1.0 + 2.0)])
def test_reading_holds_the_voxels_once(tmp_path: Path, dtype: str, slope: float, copies: float) -> None:
    values = np.random.default_rng(0).integers(0, 2, (256, 256, 60)).astype(dtype)
    write_nifti(tmp_path / "a.nii.gz", Volume(values, AFFINE))
    if slope != 1.0:
        content = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
        content[112:116] = np.array(slope, "<f4").tobytes()
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content, 1))
    tracemalloc.start()
    volume = read_nifti(tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Scaled: the stored 2 bytes and the 4 of float32 together. Besides, pieces of 1 Mi voxels.
    assert peak < copies * values.nbytes + 30e6 * (slope != 1.0) + 6e6
    np.testing.assert_array_equal(volume.array, values * np.float32(slope))
