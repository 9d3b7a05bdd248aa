"""Writing NIfTI files. Expected: the arrays and affines written, as medquant, nibabel and SimpleITK read them."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nifti_files import itk_affine, relative_error
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medquant.data.nifti import read_nifti, read_nifti_mask, write_nifti
from medquant.data.volume import Volume
from medquant.errors import GeometryError, UsageError

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]], dtype=float)
# The 48 ways to permute and flip three axes.
AXIS_TURNS = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII", "A.NII.GZ"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_written_files_in_other_programs(tmp_path: Path, name: str, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, (5, 4, 3)).astype(dtype)
    # A view whose memory lies otherwise, and the other byte order, are written as what they are.
    for array in (values, np.ascontiguousarray(values)[::-1], values.astype(np.dtype(dtype).newbyteorder(">"))):
        write_nifti(tmp_path / name, Volume(array, AFFINE), description="medquant mask")
        assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith(".gz")
        peer = nib.Nifti1Image.from_bytes(_unpacked(tmp_path / name))
        assert peer.header.get_data_dtype() == np.dtype(dtype)
        assert peer.header.get_xyzt_units()[0] == "mm"
        assert (int(peer.header["qform_code"]), int(peer.header["sform_code"])) == (1, 1)
        assert peer.header["descrip"].item() == b"medquant mask"
        np.testing.assert_array_equal(np.asarray(peer.dataobj), array)
        np.testing.assert_array_equal(read_nifti(tmp_path / name).array, array)
    if name.islower():
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / name))).transpose(2, 1, 0), values)


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def test_bytes_depend_on_the_volume_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(np.arange(60, dtype=np.int16).reshape(5, 4, 3), AFFINE)
    write_nifti(tmp_path / "a.nii.gz", volume)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_nifti(tmp_path / "other name.nii.gz", Volume(np.asfortranarray(volume.array), AFFINE))
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "other name.nii.gz").read_bytes()
    # RFC 1952: no flags (so no name), time 0.
    assert content[3:8] == bytes(5)
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_else_is_written(tmp_path: Path) -> None:
    good = Volume(np.zeros((2, 2, 2), np.uint8), AFFINE)
    path = tmp_path / "a.nii"
    write_nifti(path, good)
    before = path.read_bytes()
    nan = np.full((2, 2, 2), np.nan, np.float32)
    for array in (np.zeros((2, 2, 2), np.float64), np.zeros((2, 2, 2), bool), np.zeros((2, 0, 2), np.uint8), nan):
        with pytest.raises(UsageError, match="expected"):
            write_nifti(path, Volume(array, AFFINE))
    with pytest.raises(UsageError, match="lengths from 1 to 32767"):
        write_nifti(path, Volume(np.zeros((32768, 1, 1), np.uint8), AFFINE))
    for text in ("x" * 80, "µm", "two\nlines"):
        with pytest.raises(UsageError, match="description does not fit"):
            write_nifti(path, good, description=text)
    for name in ("a.nrrd", "a.gz", "a.hdr", "nii"):
        with pytest.raises(UsageError, match=r"ending in \.nii or \.nii\.gz"):
            write_nifti(tmp_path / name, good)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii"]


def test_no_geometry_stays_none(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, Volume(np.zeros((2, 3, 4), np.uint8), np.diag([0.5, 2, 3, 1.0]), has_geometry=False))
        volume = read_nifti(tmp_path / name)
        assert not volume.has_geometry
        assert volume.spacing_mm == (0.5, 2.0, 3.0)
        header = nib.load(tmp_path / name).header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 0)
        assert header.get_zooms() == (0.5, 2.0, 3.0)


def _random_affines(count: int, seed: int) -> list[NDArray[np.float64]]:
    """Rotations, every third an exact turn of the axes, half of them with flips; voxels of 0.05 to 8 mm; origins within 40 cm."""
    random = np.random.default_rng(seed)
    affines = []
    for number in range(count):
        turn = AXIS_TURNS[(number // 3) % 48] if number % 3 == 0 else Rotation.random(random_state=random).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = turn * random.choice([-1, 1], 3) * random.uniform(0.05, 8, 3)
        affine[:3, 3] = random.uniform(-400, 400, 3)
        affines.append(affine)
    return affines


def _check_affines(folder: Path, count: int) -> int:
    random = np.random.default_rng(count)
    both = 0
    for number, affine in enumerate(_random_affines(count, seed=1)):
        dtype = ("uint8", "int16", "int32", "float32")[number % 4]
        values = random.integers(0, 255, random.integers(1, 7, 3)).astype(dtype)
        # Not of one name: SimpleITK would take the one for the other.
        path = folder / ("packed.nii.gz" if number % 2 else "plain.nii")
        write_nifti(path, Volume(values, affine))
        volume, peer, image = read_nifti(path), nib.load(path), SimpleITK.ReadImage(str(path))
        assert volume.array.dtype == np.dtype(dtype)
        for array in (volume.array, np.asarray(peer.dataobj), SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)):
            np.testing.assert_array_equal(array, values)
        for found in (volume.affine, peer.affine, itk_affine(image)):
            assert relative_error(found, affine) < 1e-6
        if int(peer.header["qform_code"]):
            both += 1
            assert relative_error(peer.header.get_qform(), affine) < 1e-6
            assert relative_error(read_nifti(path, transform="qform").affine, affine) < 1e-6
    return both


def test_affines(tmp_path: Path) -> None:
    # Nearly all have a qform beside the sform; a turn near 180° may not.
    assert _check_affines(tmp_path, 96) > 86


@pytest.mark.slow
def test_affines_all(tmp_path: Path) -> None:
    assert _check_affines(tmp_path, 960) > 900


def test_shear_goes_into_the_sform_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for affine in _random_affines(60, seed=3):
        sheared = affine.copy()
        sheared[:3, :3] = affine[:3, :3] @ (np.eye(3) + np.triu(random.uniform(0.05, 0.4, (3, 3)), 1))
        write_nifti(tmp_path / "a.nii", Volume(np.zeros((2, 2, 2), np.uint8), sheared))
        peer = nib.load(tmp_path / "a.nii")
        assert (int(peer.header["qform_code"]), int(peer.header["sform_code"])) == (0, 1)
        assert relative_error(read_nifti(tmp_path / "a.nii").affine, sheared) < 1e-6
        assert relative_error(peer.affine, sheared) < 1e-6
        with pytest.raises(GeometryError, match="its code is 0"):
            read_nifti(tmp_path / "a.nii", transform="qform")


def test_turn_near_180_degrees_loses_its_qform(tmp_path: Path) -> None:
    # A quaternion's first part is computed from the other three: near 180° their 32-bit rounding turns the axes by up to 5e-4.
    turn = Rotation.from_rotvec(np.array([0.3, 0.8, 0.52]) / np.linalg.norm([0.3, 0.8, 0.52]) * np.radians(179.95)).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.5, 0.6, 2)
    affine[:3, 3] = 10, 20, 30
    write_nifti(tmp_path / "a.nii", Volume(np.zeros((2, 2, 2), np.uint8), affine))
    peer = nib.load(tmp_path / "a.nii")
    assert int(peer.header["qform_code"]) == 0
    np.testing.assert_allclose(peer.header.get_zooms(), (0.5, 0.6, 2), rtol=1e-7)
    for found in (read_nifti(tmp_path / "a.nii").affine, itk_affine(SimpleITK.ReadImage(str(tmp_path / "a.nii")))):
        assert relative_error(found, affine) < 1e-6


def test_real_scans_come_back(shared_data: Path, tmp_path: Path) -> None:
    for name in ("site9-sc01-image.nii.gz", "site9-sc01-mask-r1.nii.gz"):
        volume = read_nifti(shared_data / "spinal_gm" / "small" / name)
        write_nifti(tmp_path / name, volume)
        again = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(again.array, volume.array)
        assert relative_error(again.affine, volume.affine) < 1e-6
    # Counts from the README of the data: 99 voxels of gray and 422 of white matter.
    mask = read_nifti_mask(tmp_path / "site9-sc01-mask-r1.nii.gz")
    assert np.bincount(mask.array.ravel()).tolist() == [8000 - 99 - 422, 99, 422]
