"""Scans read slice by slice are the scans the readers read. Expected: ``read_nifti``, ``read_nifti_channels``, ``read_dicom_series``."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from medquant.data.content import array_sha256
from medquant.data.dicom import read_dicom_series, write_dicom_series
from medquant.data.dicom.slabs import open_dicom_series, series_files
from medquant.data.nifti import read_nifti_channels, write_nifti
from medquant.data.nifti_slabs import open_nifti_channels
from medquant.data.slabs import MappedVolume, SliceSource, npy_sha256
from medquant.data.stored import ArrayCache, StoredVolume
from medquant.data.volume import Volume
from medquant.errors import InputError, MedquantError

AFFINE = np.diag([0.7, 0.8, 2.0, 1.0])


def values(shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    random = np.random.default_rng(len(shape))
    return (random.normal(100, 60, shape) if dtype.startswith("f") else random.integers(0, 120, shape)).astype(dtype)


def write(path: Path, array: NDArray[np.generic], scaling: tuple[float, float] | None = None, big_endian: bool = False) -> Path:
    header = nib.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_dtype(array.dtype.newbyteorder(">" if big_endian else "<"))
    image = nib.Nifti1Image(array, AFFINE, header)
    if scaling is not None:
        image.header.set_slope_inter(*scaling)
        # nibabel would change the stored numbers to fit the slope.
        data = array.astype(image.header.get_data_dtype()).tobytes(order="F")
        nib.save(image, path)
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        head = bytearray(raw[: len(raw) - len(data)])
        order = ">f4" if big_endian else "<f4"
        head[112:120] = np.array(scaling, dtype=order).tobytes()
        whole = bytes(head) + data
        path.write_bytes(gzip.compress(whole) if path.name.endswith(".gz") else whole)
    else:
        nib.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5), (6, 5, 4, 3), (6, 5, 1, 1), (1, 1, 1)])
def test_slices_of_a_nifti_are_what_the_reader_reads(ending: str, dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    for scaling, big_endian in ((None, False), (None, True), ((0.5, -3.0), False)):
        path = write(tmp_path / f"a{ending}", values(shape, dtype), scaling, big_endian)
        expected = read_nifti_channels(path)
        found = open_nifti_channels(path, ArrayCache(tmp_path / f"{scaling}{big_endian}"))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert (one.dtype, one.shape, one.has_geometry) == (other.dtype, other.shape, other.has_geometry)
            np.testing.assert_array_equal(one.array, other.array)
            np.testing.assert_array_equal(one.affine, other.affine)
            assert not one.array.flags.writeable


def test_a_plain_file_is_mapped_and_another_is_decoded(tmp_path: Path) -> None:
    array = values((7, 5, 4), "int16")
    (plain,) = open_nifti_channels(write(tmp_path / "a.nii", array), ArrayCache(tmp_path / "one"))
    assert isinstance(plain, MappedVolume)
    assert not (tmp_path / "one").exists()
    (packed,) = open_nifti_channels(write(tmp_path / "a.nii.gz", array), ArrayCache(tmp_path / "two"))
    assert isinstance(packed, StoredVolume)
    assert plain.sha256 == packed.sha256 == array_sha256(array)
    assert plain == plain
    assert hash(plain) == hash(plain)
    packed.verify()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_damage_is_met_with_the_words_of_the_reader(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{ending}", values((17, 15, 14), "float32"))
    data = path.read_bytes()
    faults = [data[: len(data) * share // 100] for share in (1, 30, 50, 90, 99)] + [data[:-1], data + b"\1" * 600]
    if ending.endswith("gz"):
        for place in np.linspace(20, len(data) - 1, 25).astype(int):
            faults.append(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    holed = values((17, 15, 14), "float32")
    holed[1, 2, 3] = np.nan  # type: ignore[index]
    other = write(tmp_path / f"b{ending}", holed)
    faults.append(other.read_bytes())
    refused = 0
    for number, fault in enumerate(faults):
        path.write_bytes(fault)
        try:
            read_nifti_channels(path)
        except MedquantError as error:
            expected = error
            refused += 1
        else:
            continue
        with pytest.raises(type(expected)) as met:
            open_nifti_channels(path, ArrayCache(tmp_path / f"cache{number}"))
        assert str(met.value) == str(expected)
        # Bad voxels are found in the voxels alone.
        assert number == len(faults) - 1 or not list(tmp_path.glob(f"cache{number}/**/*.npy"))
    assert refused == len(faults)


def test_no_voxel_of_a_scan_is_held(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.nii.gz"
    write_nifti(path, Volume(np.zeros((256, 256, 400), dtype=np.int16), AFFINE))
    tracemalloc.start()
    open_nifti_channels(path, ArrayCache(tmp_path / "cache"))[0].array[:, :, 60].sum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 52 MB of voxels; reading small files of unknown size alone asks for 16 MiB at once.
    assert peak < 20_000_000


# --- DICOM ------------------------------------------------------------------------------------------------------------


def series(folder: Path, array: NDArray[np.int16]) -> Path:
    write_dicom_series(folder, Volume(array, np.diag([-0.7, -0.8, 2.0, 1.0])), description="made up")
    return folder


def test_slices_of_a_series_are_what_the_reader_reads(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", values((9, 7, 5), "int16").astype(np.int16))
    for slope, intercept in ((None, None), ("1", "-1024"), ("0.5", "3"), ("1", "40000")):
        if slope is not None:
            for path in folder.glob("*.dcm"):
                dataset = pydicom.dcmread(path)
                dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
                dataset.save_as(path)
        expected = read_dicom_series(folder)
        found = open_dicom_series(folder, ArrayCache(tmp_path / f"{slope} {intercept}"))
        assert found.modality == "CT"
        assert found.volume.dtype == expected.dtype
        np.testing.assert_array_equal(found.volume.array, expected.array)
        np.testing.assert_array_equal(found.volume.affine, expected.affine)
    # 40000 does not fit into int16.
    assert expected.dtype == np.float32
    assert [path.name for path in series_files(folder)] == [f"1-{number:03d}.dcm" for number in range(1, 6)]


def test_a_series_cut_short_is_refused_with_the_same_words(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", values((9, 7, 5), "int16").astype(np.int16))
    path = folder / "1-003.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError) as expected:
        read_dicom_series(folder)
    with pytest.raises(InputError) as met:
        open_dicom_series(folder, ArrayCache(tmp_path / "cache"))
    assert str(met.value) == str(expected.value)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_slices_are_kept_like_whole_volumes(tmp_path: Path) -> None:
    array = values((7, 5, 4), "float32")
    source = SliceSource((7, 5, 4), np.dtype(np.float32), AFFINE, True, lambda: (array[:, :, k] for k in range(4)))
    whole = ArrayCache(tmp_path / "a").keep("key", lambda: Volume(array, AFFINE))
    sliced = ArrayCache(tmp_path / "b").keep_slices("key", source)
    assert isinstance(whole, StoredVolume)
    assert isinstance(sliced, StoredVolume)
    assert whole.sha256 == sliced.sha256
    files = [sorted(path.read_bytes() for path in folder.rglob("*.npy")) for folder in (tmp_path / "a", tmp_path / "b")]
    assert files[0] == files[1]
    assert npy_sha256(next((tmp_path / "a").rglob("*.npy"))) == array_sha256(array)
    np.testing.assert_array_equal(ArrayCache(None).keep_slices("key", source).array, array)
    # Known by its key: not made again.
    empty = SliceSource((7, 5, 4), np.dtype(np.float32), AFFINE, True, lambda: iter(()))
    assert ArrayCache(tmp_path / "b").keep_slices("key", empty) == sliced


def test_an_error_while_slices_are_made_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def slices():  # type: ignore[no-untyped-def]
        yield np.zeros((3, 3), np.uint8)
        raise InputError("the scan ends here")

    source = SliceSource((3, 3, 2), np.dtype(np.uint8), AFFINE, True, slices)
    with pytest.raises(InputError, match="the scan ends here"):
        ArrayCache(tmp_path / "c").keep_slices("key", source)
    assert not [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
