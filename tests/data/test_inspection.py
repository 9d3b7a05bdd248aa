"""What inspection says. Expected: arrays written here by nibabel and Pillow, and the table of odd files that comes with the real data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medquant.data.inspection import inspect_path
from medquant.data.nifti_check import read_nifti_fully
from medquant.data.prepare.phantoms import PhantomRequest, prepare_phantom
from medquant.errors import InputError

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]], dtype=float)


def _write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(values, AFFINE if affine is None else affine), path)


def _inspect(path: Path) -> dict[str, object]:
    report = inspect_path(path)
    assert json.loads(json.dumps(report, allow_nan=False)) is not None
    return report


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_nifti(tmp_path: Path, name: str, dtype: str) -> None:
    values = np.arange(4 * 3 * 2, dtype=dtype).reshape(4, 3, 2)
    _write_nifti(tmp_path / name, values)
    report = _inspect(tmp_path / name)
    assert (report["kind"], report["shape"], report["dtype"]) == ("NIfTI image", [4, 3, 2], dtype)
    assert (report["spacing_mm"], report["orientation"]) == ([0.5, 0.5, 3.0], "LAS")
    # 0 to 23: mean 11.5.
    assert (report["minimum"], report["maximum"], report["mean"]) == (0.0, 23.0, 11.5)
    assert "labels" not in report
    assert "refused" not in report
    np.testing.assert_array_equal(read_nifti_fully(tmp_path / name).values, values)


def test_nifti_scaling_and_labels(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.array([[[0, 1], [1, 2]]], dtype=np.int16), AFFINE)
    image.header.set_slope_inter(2.0, -1.0)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    np.testing.assert_allclose(read_nifti_fully(tmp_path / "a.nii.gz").values, expected)
    _write_nifti(tmp_path / "mask.nii", np.array([[[0, 1], [1, 2]]], dtype=np.uint8))
    assert _inspect(tmp_path / "mask.nii")["labels"] == {"0": 1, "1": 2, "2": 1}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_nifti_is_refused(tmp_path: Path, name: str) -> None:
    whole = tmp_path / name
    _write_nifti(whole, np.random.default_rng(0).integers(0, 99, (9, 8, 7)).astype(np.int16))
    content = whole.read_bytes()
    for keep in np.linspace(0, len(content) - 1, 50).astype(int):
        whole.write_bytes(content[:keep])
        assert "refused" in _inspect(whole)


def test_flipped_bits_in_gzip_are_refused(tmp_path: Path) -> None:
    # Everything behind the ten bytes of the gzip header is under its checksum or length; the header's time and system are not data.
    values = np.random.default_rng(0).integers(0, 99, (9, 8, 7)).astype(np.int16)
    _write_nifti(tmp_path / "plain.nii", values)
    content = gzip.compress((tmp_path / "plain.nii").read_bytes(), mtime=0)
    random = np.random.default_rng(1)
    path = tmp_path / "a.nii.gz"
    for position in random.integers(10 * 8, len(content) * 8, 80):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(InputError):
            read_nifti_fully(path)


def test_small_file_that_grows_is_refused(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 1024))
    header.set_data_dtype(np.float32)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    assert "needs 4096 MiB" in str(_inspect(path)["refused"])
    # The header is modest, the stream is not.
    _write_nifti(tmp_path / "b.nii", np.zeros((4, 4, 4), np.uint8))
    path.write_bytes(gzip.compress((tmp_path / "b.nii").read_bytes() + bytes(8_000_000)))
    assert "more data than its shape" in str(_inspect(path)["refused"])


def test_odd_nifti(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    _write_nifti(path, np.zeros((3, 3, 3, 5), np.float32))
    assert "4 axes" in str(_inspect(path)["refused"])
    values = np.zeros((3, 3, 3), np.float32)
    values[0, 0, 0], values[1, 1, 1] = np.nan, 4.0
    _write_nifti(path, values)
    report = _inspect(path)
    assert "1 NaN of 27 voxels" in str(report["refused"])
    assert report["maximum"] == 4.0
    path.write_bytes(b"x" * 400)
    assert "no NIfTI header" in str(_inspect(path)["refused"])


def test_tiff_png_and_unknown(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((2, 3, 4), 7, np.uint8), photometric="minisblack")
    report = _inspect(tmp_path / "a.tif")
    assert (report["kind"], report["shape"], report["labels"], report["spacing_mm"]) == ("TIFF stack", [4, 3, 2], {"7": 24}, None)
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000).save(tmp_path / "a.png")
    report = _inspect(tmp_path / "a.png")
    assert (report["kind"], report["shape"], report["dtype"], report["maximum"]) == ("PNG image", [4, 3, 1], "uint16", 11000.0)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    assert "mode RGB" in str(_inspect(tmp_path / "rgb.png")["refused"])
    (tmp_path / "a.xyz").write_bytes(b"?")
    assert "unknown kind" in str(_inspect(tmp_path / "a.xyz")["refused"])
    with pytest.raises(InputError, match="no such file"):
        inspect_path(tmp_path / "none")


def test_damaged_png_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 8), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    for keep in range(len(content)):
        whole.write_bytes(content[:keep])
        assert "refused" in _inspect(whole)
    for position in range(0, len(content) * 8, 3):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        whole.write_bytes(bytes(damaged))
        assert "refused" in _inspect(whole)


def test_folders_and_dicom(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    assert "is empty" in str(_inspect(tmp_path / "series")["refused"])
    (tmp_path / "series" / "IM1").write_bytes(bytes(128) + b"DICM" + bytes(20))
    for path, kind in ((tmp_path / "series", "DICOM folder"), (tmp_path / "series" / "IM1", "DICOM file")):
        report = _inspect(path)
        assert report["kind"] == kind
        # A preamble and 20 zeros: the header behind it tells nothing.
        assert "names no transfer syntax" in str(report["refused"])
    assert "no known dataset" in str(_inspect(tmp_path)["refused"])


def test_nothing_of_a_patient(tmp_path: Path) -> None:
    secret = "DOE^JANE-19501231"
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), AFFINE)
    for key in ("descrip", "db_name", "intent_name", "aux_file"):
        if key in image.header:
            image.header[key] = secret[: image.header[key].dtype.itemsize].encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret.encode()))
    nib.save(image, tmp_path / "a.nii.gz")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 2), np.uint8), photometric="minisblack", description=secret)
    notes = PngInfo()
    notes.add_text("Description", secret)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png", pnginfo=notes)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / f"{secret}.dcm").write_bytes(bytes(128) + b"DICM" + secret.encode())
    (tmp_path / f"{secret}.pdf").touch()
    for path in (tmp_path, tmp_path / "a.nii.gz", tmp_path / "a.tif", tmp_path / "a.png", tmp_path / "series"):
        text = json.dumps(_inspect(path))
        assert "DOE" not in text
        assert "1950" not in text


def test_real_em_folder(shared_data: Path) -> None:
    report = _inspect(shared_data / "isbi_em")
    found = report["dataset"]
    assert isinstance(found, dict)
    assert (found["name"], found["cases"], found["shapes"]) == ("isbi_em", 30, [(512, 512, 1)])
    assert found["classes"] == pytest.approx({"membrane": 0.22, "cell": 0.78}, abs=5e-4)


def test_real_nifti_against_nibabel(shared_data: Path) -> None:
    read = 0
    for path in sorted((shared_data / "odd_inputs" / "nifti").glob("*.nii*")):
        report = _inspect(path)
        if path.name == "rgb_test_file.nii.gz":
            assert "plain numbers" in str(report["refused"])
            continue
        image = nib.load(path)
        assert report["shape"] == list(image.shape)
        if report.get("orientation"):
            assert report["orientation"] == "".join(nib.aff2axcodes(image.affine))
        expected = np.asarray(image.dataobj)
        np.testing.assert_allclose(read_nifti_fully(path).values, expected, rtol=1e-6)
        assert ("refused" in report) == bool(expected.ndim > 3 or not np.isfinite(expected).all()), path.name
        read += 1
    assert read >= 14


def test_real_spinal_and_dicom(shared_data: Path) -> None:
    report = _inspect(shared_data / "spinal_gm" / "small" / "site9-sc01-mask-r1.nii.gz")
    # Counts and shape from the README of the data.
    assert report["shape"] == [40, 40, 5]
    assert report["labels"] == {"0": 8000 - 99 - 422, "1": 99, "2": 422}
    assert report["orientation"] == "LAS"


def test_real_dicom_against_pydicom(shared_data: Path) -> None:
    path = shared_data / "odd_inputs" / "dicom" / "CT_small.dcm"
    header = pydicom.dcmread(path)
    report = _inspect(path)
    assert (report["kind"], report["modality"], report["slices"]) == ("DICOM file", "CT", 1)
    assert report["shape"] == [header.Columns, header.Rows, 1]
    values = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
    assert (report["minimum"], report["maximum"]) == (values.min(), values.max())
    assert str(header.PatientID) not in json.dumps({**report, "path": ""})
    # The data's README: 20 slices of 512×512, 0.9766 mm, slices 2 mm apart although their thickness is 3.
    report = _inspect(shared_data / "pancreas_ct" / "totalseg_dicom" / "CT")
    assert (report["kind"], report["modality"], report["shape"], report["orientation"]) == ("DICOM folder", "CT", [512, 512, 20], "LPS")
    assert report["spacing_mm"] == [0.976562, 0.976562, 2.0]
    assert "refused" not in report
    report = _inspect(shared_data / "odd_inputs" / "dicom" / "tiny_ct_series")
    assert "missing between them" in str(report["refused"])
    assert "RT Dose" in str(_inspect(shared_data / "odd_inputs" / "dicom" / "rtdose.dcm")["refused"])


def test_real_dataset_folders(shared_data: Path) -> None:
    # Counts from the data's README.
    for folder, name, cases in (("pancreas_ct/Pancreas-CT", "pancreas_ct", 2), ("spinal_gm", "spinal_gm", 5)):
        report = _inspect(shared_data / folder)
        found = report["dataset"]
        assert isinstance(found, dict)
        assert (report["kind"], found["name"], found["labelled_cases"]) == ("dataset folder", name, cases)


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_prepared_folders_are_recognised(tmp_path: Path, layout: str) -> None:
    request = PhantomRequest("isbi_em", layout="nnunet" if layout == "nnunet" else "msd", size=32, slices=3)
    prepare_phantom(request, tmp_path / "out", lambda what: None)
    report = _inspect(tmp_path / "out")
    found = report["dataset"]
    assert isinstance(found, dict)
    assert (report["kind"], found["cases"], found["shapes"]) == ("dataset folder", 3, [(32, 32, 1)])
