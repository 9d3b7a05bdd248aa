"""Every odd NIfTI file that comes with the real data: read with these facts, or refused with these words.

Shapes, types, the voxel of each row and its value were taken down from nibabel 5.4 and SimpleITK 2.5, which agree on them; which
file is defective, and how, from the README of the data. Affines and all other voxels are compared with nibabel as the test runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medquant.data.nifti import read_nifti, read_nifti_channels, read_nifti_mask
from medquant.errors import InputError


@dataclass(frozen=True)
class Reads:
    shape: tuple[int, int, int]
    dtype: str
    voxel: tuple[int, int, int]
    value: float
    mask_voxels: int | None = None


@dataclass(frozen=True)
class Refused:
    because: str
    # Where the rest is sound: bad voxels that the rule "zero" repairs, or channels of the fourth axis.
    repairs: int = 0
    channels: int = 0


TABLE: dict[str, Reads | Refused] = {
    "anatomical.nii": Reads((33, 41, 25), "int16", (16, 20, 12), 11881),
    "example4d.nii.gz": Refused("4 axes of lengths (128, 96, 24, 2)", channels=2),
    "functional.nii": Refused("4 axes of lengths (17, 21, 3, 20)", channels=20),
    "nifti1.hdr": Refused("voxels lie in a second file"),
    "reoriented_anat_moved.nii": Reads((21, 26, 22), "float32", (10, 12, 9), 5057.02197265625),
    "resampled_anat_moved.nii": Refused("153 NaN of 1071 voxels", repairs=153),
    "rgb_test_file.nii.gz": Refused("RGB type (code 128), expected plain numbers"),
    "sct_dmri_4d.nii.gz": Refused("4 axes of lengths (40, 42, 5, 7)", channels=7),
    "sct_fmri_tsnr_nan.nii.gz": Refused("408 NaN of 27744 voxels", repairs=408),
    "sct_mtr_inf.nii.gz": Refused("633 infinite of 8000 voxels", repairs=633),
    "sct_t2_PSR.nii.gz": Reads((60, 55, 52), "int16", (30, 4, 0), 39),
    "sct_t2_PSR_seg-manual.nii.gz": Reads((60, 55, 52), "uint8", (31, 9, 22), 1, mask_voxels=4275),
    "sct_t2s_crop.nii.gz": Reads((49, 54, 9), "float32", (24, 27, 0), 403.32763671875),
    "sct_t2s_crop_gmseg_manual.nii.gz": Reads((49, 54, 9), "int16", (25, 32, 3), 1, mask_voxels=519),
    "sct_t2s_crop_seg_int64.nii.gz": Reads((49, 54, 9), "int64", (25, 29, 8), 1, mask_voxels=2443),
    "sct_warp_5d.nii.gz": Refused("vectors or matrices (intent code 1007)"),
    "sub-unf01_T2star.nii.gz": Reads((131, 141, 16), "float32", (65, 70, 8), 174.13409423828125),
    "sub-unf01_T2star_lesion-manual.nii.gz": Reads((131, 141, 16), "float32", (69, 54, 5), 1, mask_voxels=90),
    "sub-unf01_T2star_seg-manual.nii.gz": Reads((131, 141, 16), "float32", (68, 54, 8), 1, mask_voxels=1227),
}


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "odd_inputs" / "nifti"


def test_the_table_is_complete(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(TABLE)


@pytest.mark.parametrize(("name", "expected"), [row for row in TABLE.items() if isinstance(row[1], Reads)])
def test_read(folder: Path, name: str, expected: Reads) -> None:
    path = folder / name
    volume = read_nifti(path)
    assert (volume.shape, volume.array.dtype.name, volume.has_geometry) == (expected.shape, expected.dtype, True)
    assert volume.array.dtype.isnative
    assert volume.array[expected.voxel] == expected.value
    peer = nib.load(path)
    np.testing.assert_array_equal(volume.array, np.asarray(peer.dataobj))
    np.testing.assert_allclose(volume.affine, peer.affine, rtol=0, atol=1e-6)
    assert SimpleITK.ReadImage(str(path)).GetPixel(*expected.voxel) == expected.value


@pytest.mark.parametrize(("name", "expected"), [row for row in TABLE.items() if isinstance(row[1], Reads)])
def test_read_as_mask(folder: Path, name: str, expected: Reads) -> None:
    if expected.mask_voxels is None:
        with pytest.raises(InputError, match="expected class numbers") as caught:
            read_nifti_mask(folder / name)
        assert name in str(caught.value)
        return
    mask = read_nifti_mask(folder / name)
    assert (mask.shape, mask.array.dtype.name) == (expected.shape, "uint8")
    assert int(mask.array.sum()) == expected.mask_voxels
    assert mask.array[expected.voxel] == 1


@pytest.mark.parametrize(("name", "expected"), [row for row in TABLE.items() if isinstance(row[1], Refused)])
def test_refused(folder: Path, name: str, expected: Refused) -> None:
    for read in (read_nifti, read_nifti_mask):
        with pytest.raises(InputError) as caught:
            read(folder / name)
        assert expected.because in str(caught.value)
        assert name in str(caught.value)


@pytest.mark.parametrize(("name", "expected"), [row for row in TABLE.items() if isinstance(row[1], Refused) and row[1].repairs])
def test_repaired_when_asked(folder: Path, name: str, expected: Refused) -> None:
    told: list[str] = []
    volume = read_nifti(folder / name, bad_voxels="zero", notify=told.append)
    assert len(told) == 1
    assert str(expected.repairs) in told[0]
    peer = np.asarray(nib.load(folder / name).dataobj)
    np.testing.assert_array_equal(volume.array, np.where(np.isfinite(peer), peer, 0))
    assert np.count_nonzero(~np.isfinite(peer)) == expected.repairs


@pytest.mark.parametrize(("name", "expected"), [row for row in TABLE.items() if isinstance(row[1], Refused) and row[1].channels])
def test_read_as_channels(folder: Path, name: str, expected: Refused) -> None:
    channels = read_nifti_channels(folder / name)
    peer = nib.load(folder / name)
    values = np.asarray(peer.dataobj)
    assert len(channels) == expected.channels == values.shape[3]
    for index, channel in enumerate(channels):
        # functional.nii is scaled: nibabel computes float64, which is rounded here to float32.
        np.testing.assert_allclose(channel.array, values[..., index], rtol=2**-24)
        np.testing.assert_allclose(channel.affine, peer.affine, rtol=0, atol=1e-6)


def test_damage_that_cannot_be_repaired_stays_refused_as_channels(folder: Path) -> None:
    for name in ("sct_warp_5d.nii.gz", "nifti1.hdr", "rgb_test_file.nii.gz"):
        with pytest.raises(InputError):
            read_nifti_channels(folder / name, bad_voxels="zero")
