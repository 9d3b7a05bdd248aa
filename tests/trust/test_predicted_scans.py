"""Scans through ``medquant predict`` as a whole: masks where the scans are, and nothing of a patient anywhere.

The network gives back what it sees: class 1 where the image lies above the middle of its range. Expected: the affine and the marks
the scan was made with, as nibabel, SimpleITK and pydicom read them.
"""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from planted_patients import FREE_NAME, PLANTED, SECRETS
from small_models import ct_values, model_file, oblique
from test_identity_geometry import ORIENTATIONS, THRESHOLD, affines, check_place, marked
from typer.testing import CliRunner

from medquant.cli.main import app
from medquant.data.dicom import write_dicom_series
from medquant.data.nifti import write_nifti
from medquant.data.normalise import Normalisation
from medquant.data.prepared_grid import GridRule
from medquant.data.volume import Volume
from medquant.predict.many_scans import PredictRequest, predict
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram

SLICE = 10


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    # Thousands of small files; what a crash would leave of them is tested elsewhere.
    monkeypatch.setattr(os, "fsync", lambda _: None)


def identity_model(path: Path, rule: GridRule) -> Path:
    """One convolution of one tap, whose sign says whether the normalised value is above one half."""
    image = TensorFormat(8, 0, 7)
    one = np.ones((1, 1, 1, 1), dtype=np.int64)
    head = ConvolutionNode(
        "head", ("image",), None, one, np.array([-64]), np.zeros(1, np.int64), 2, ConvGeometry((1, 1), (0, 0), (1, 1)), relu=False
    )
    program = IntegerProgram((ImageNode("image", (), image, 1), head), (7,))
    return model_file(path, program, Normalisation("range", 0, 200), rule, size_multiple=1)


def predicted(model: Path, scan: Path, out: Path) -> Path:
    (result,) = predict(PredictRequest(model, scan, out, "reference", overwrite=True), lambda _: None).results
    assert result.predicted is not None
    return out


def check_nifti(folder: Path, orientations: list[int], repeats: int) -> int:
    model = identity_model(folder / "m.mq", GridRule("axial"))
    count = 0
    for _, affine, random in affines(orientations, repeats):
        values = marked(random)
        scan = folder / ("scan.nii.gz" if values.size % 2 else "scan.nii")
        write_nifti(scan, Volume(values, affine))
        check_place(predicted(model, scan, folder / "mask.nii.gz"), affine, (values > THRESHOLD).astype(np.uint8))
        count += 1
    return count


def test_masks_of_48_orientations_come_back_to_their_scans(tmp_path: Path) -> None:
    assert check_nifti(tmp_path, list(range(48)), 1) == 48


@pytest.mark.slow
def test_960_masks_come_back_to_their_scans_through_the_command(tmp_path: Path) -> None:
    assert check_nifti(tmp_path, list(range(48)), 20) == 960


def check_segmentations(folder: Path, orientations: list[int]) -> int:
    model = identity_model(folder / "m.mq", GridRule("axial"))
    for number, affine, random in affines(orientations, 1):
        # The affines' axes stay at right angles, which DICOM asks for.
        values = marked(random)
        series = folder / f"series {number}"
        write_dicom_series(series, Volume(values, affine), description="made up")
        found = world_of_segmentation(predicted(model, series, folder / "mask.dcm"))
        index = np.argwhere(values > THRESHOLD)
        expected = index @ affine[:3, :3].T + affine[:3, 3]
        assert found.shape == expected.shape, number
        apart = np.abs(found[np.lexsort(np.round(found, 2).T)] - expected[np.lexsort(np.round(expected, 2).T)])
        assert apart.max() < 1e-3, number
    return len(orientations)


def world_of_segmentation(path: Path) -> NDArray[np.float64]:
    """RAS millimetres of every voxel of a segment, from the plain fields of the object: pydicom alone."""
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    spacing = [float(each) for each in shared.PixelMeasuresSequence[0].PixelSpacing]
    cosines = np.array([float(each) for each in shared.PlaneOrientationSequence[0].ImageOrientationPatient])
    places = []
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array([float(each) for each in group.PlanePositionSequence[0].ImagePositionPatient])
        rows, columns = np.nonzero(frame)
        # PS3.3 C.7.6.2.1.1: the first three cosines lead along a row, the last three down a column.
        places.append(position + np.outer(columns * spacing[1], cosines[:3]) + np.outer(rows * spacing[0], cosines[3:]))
    return np.concatenate(places) * (-1, -1, 1)


def test_segmentations_of_some_orientations_lie_on_their_scans(tmp_path: Path) -> None:
    assert check_segmentations(tmp_path, list(range(0, 48, 5))) == SLICE


@pytest.mark.slow
def test_segmentations_of_48_orientations_lie_on_their_scans(tmp_path: Path) -> None:
    assert check_segmentations(tmp_path, list(range(len(ORIENTATIONS)))) == 48


def test_nothing_of_a_patient_is_said_or_written(tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "scans" / "one", Volume(ct_values((30, 26, 6)), oblique()), description="made up")
    for number, path in enumerate(sorted((tmp_path / "scans" / "one").iterdir())):
        dataset = pydicom.dcmread(path)
        for keyword, value in PLANTED.items():
            if not keyword.endswith("UID"):
                setattr(dataset, keyword, value)
        dataset.save_as(path.with_name(f"{FREE_NAME}_{number}.dcm"))
        path.unlink()
    scan = nib.Nifti1Image(ct_values((30, 26, 6)), oblique())
    scan.header["descrip"], scan.header["db_name"] = FREE_NAME.encode(), FREE_NAME[:18].encode()
    nib.save(scan, tmp_path / "scans" / "two.nii.gz")
    model = model_file(tmp_path / "m.mq")

    def typed(*arguments: object) -> list[str]:
        result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["predict", *map(str, arguments)])
        codes.append(result.exit_code)
        return [result.stdout, result.stderr]

    codes: list[int] = []
    said = []
    for kind in ("nifti", "tiff"):
        said += typed(model, tmp_path / "scans", tmp_path / kind, "--format", kind, "--preview", "--json", "--engine", "reference")
    next((tmp_path / "scans" / "one").glob("*_3.dcm")).unlink()
    said += typed(model, tmp_path / "scans", tmp_path / "broken", "--verbose", "--engine", "reference")
    # One slice is missing: geometry.
    assert codes == [0, 0, 5]
    for path in [path for folder in ("nifti", "tiff", "broken") for path in (tmp_path / folder).iterdir()]:
        raw = path.read_bytes()
        said += [path.name, nib.load(path).header.binaryblock.decode("latin-1") if path.name.endswith(".gz") else raw.decode("latin-1")]
    for secret in (*SECRETS, FREE_NAME, FREE_NAME[:18]):
        assert not [text for text in said if secret in text], secret
