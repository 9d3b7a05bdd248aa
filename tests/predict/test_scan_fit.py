"""Scans a model was not made for. Expected: refusals that name what was found, by hand from the facts of the training scans."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_runs import run, scan_file
from small_models import ct_values, model_file, oblique, unet

from medquant.data.dicom import write_dicom_series
from medquant.data.nifti import write_nifti
from medquant.data.prepared_grid import GridRule
from medquant.data.tiff import write_tiff_stack
from medquant.data.volume import Volume
from medquant.errors import GeometryError, InputError

SCAN = {"modality": "CT", "spacing_mm": [[0.7, 0.7, 1.0], [0.9, 1.0, 3.0]], "values": [[-1024, 3071]]}


@pytest.mark.parametrize(
    ("spacing", "fits"),
    [
        ((0.8, 0.9, 2.5), True),
        ((0.36, 0.5, 0.55), True),
        ((1.79, 1.99, 5.9), True),
        ((0.34, 0.9, 2.5), False),
        ((0.8, 2.1, 2.5), False),
        ((0.8, 0.9, 6.1), False),
        ((0.8, 0.9, 0.4), False),
    ],
)
def test_voxels_far_from_those_of_the_training_are_refused(spacing: tuple[float, float, float], fits: bool, tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", scan=SCAN)
    scan_file(tmp_path / "a.nii.gz", affine=oblique(spacing))
    if fits:
        assert run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")[1] == []
        return
    with pytest.raises(GeometryError, match=r"a\.nii\.gz: found voxels of .* mm, the model was trained on \(0\.7 to 0\.9\)×\(0\.7 to 1\)×"):
        run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")
    _, said = run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz", allow_other_scans=True)
    assert any("found voxels of" in line and line.endswith("; allowed") for line in said)


def test_spacing_is_compared_along_the_axes_of_the_body(tmp_path: Path) -> None:
    # Stored (head, right, front): permuted, the same voxels fit.
    model = model_file(tmp_path / "m.mq", scan=SCAN)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 2.5, 0.8, 0.9, 1
    scan_file(tmp_path / "a.nii.gz", (7, 45, 38), affine)
    assert run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")[1] == []
    with pytest.raises(GeometryError):
        run(model_file(tmp_path / "s.mq", scan=SCAN, grid=GridRule("stored")), tmp_path / "a.nii.gz", tmp_path / "out2.nii.gz")


def test_other_kinds_of_scans_are_refused(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", scan=SCAN)
    volume = Volume(ct_values((30, 26, 8)), oblique())
    write_dicom_series(tmp_path / "mr", volume, description="made up", modality="MR")
    write_tiff_stack(tmp_path / "a.tif", volume.array.astype(np.int16))
    write_nifti(tmp_path / "dark.nii.gz", Volume(np.full((30, 26, 8), -900, np.int16), oblique()))
    write_nifti(tmp_path / "small.nii.gz", Volume(ct_values((3, 26, 8)), oblique()))
    nib.save(nib.Nifti1Image(np.zeros((30, 26, 8, 5), np.int16) + volume.array[..., None], oblique()), tmp_path / "four.nii")
    holed = volume.array.astype(np.float32)
    holed[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(holed, oblique()), tmp_path / "holed.nii.gz")
    cases: list[tuple[str, type[Exception], str, bool]] = [
        ("mr", InputError, "found MR, the model was trained on CT", True),
        ("a.tif", GeometryError, "says nothing about its spacing", True),
        ("dark.nii.gz", InputError, "found values from -900 to -900, the model looks at -200 to 300", True),
        ("small.nii.gz", InputError, "slices of 3×26 pixels on the model's grid, expected at least 4×4", False),
        ("four.nii", InputError, "found 5 channels, the model takes 1 channel", False),
        ("holed.nii.gz", InputError, "found 1 NaN of 6240 voxels, expected finite numbers", False),
    ]
    for name, error, words, can_be_allowed in cases:
        with pytest.raises(error, match=words):
            run(model, tmp_path / name, tmp_path / "out.nii.gz")
        assert not (tmp_path / "out.nii.gz").exists()
        if can_be_allowed:
            run(model, tmp_path / name, tmp_path / f"{name}-out.nii.gz", allow_other_scans=True)
        else:
            with pytest.raises(error, match=words):
                run(model, tmp_path / name, tmp_path / "out.nii.gz", allow_other_scans=True)


def test_missing_channels_are_named(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", unet(channels=3))
    for number in (0, 1):
        scan_file(tmp_path / f"case_000{number}.nii.gz")
    with pytest.raises(InputError, match=r"case_0000\.nii\.gz: the model takes 3 channels, but case_0002\.nii\.gz is not there"):
        run(model, tmp_path / "case_0000.nii.gz", tmp_path / "out.nii.gz")


def test_channels_elsewhere_in_the_world_are_refused(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", unet(channels=2))
    scan_file(tmp_path / "case_0000.nii.gz")
    scan_file(tmp_path / "case_0001.nii.gz", affine=oblique() + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3))
    with pytest.raises(GeometryError, match=r"case_0001\.nii\.gz"):
        run(model, tmp_path / "case_0000.nii.gz", tmp_path / "out.nii.gz")
