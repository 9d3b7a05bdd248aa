"""Names that would break a line, and names too long to read, in what commands say. Expected: counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import typed
from small_models import ct_values, model_file, oblique, unet

from medquant.cli.output import Voice, guarded
from medquant.data.nifti import write_nifti
from medquant.data.volume import Volume
from medquant.errors import ConfigError, InputError, shortened


@pytest.mark.parametrize("where", ["scan", "folder", "mask", "model"])
def test_a_line_break_in_a_name_breaks_no_line(where: str, tmp_path: Path) -> None:
    odd = "a\nmedquant: done\x1b[2K\r"
    scans = tmp_path / "scans"
    scans.mkdir()
    model = model_file(tmp_path / (f"{odd}.mq" if where == "model" else "m.mq"))
    scan = scans / (f"{odd}.nii.gz" if where in ("scan", "folder") else "a.nii.gz")
    write_nifti(scan, Volume(ct_values((33, 28, 5)), oblique()))
    if where == "folder":
        scan.write_bytes(scan.read_bytes()[:-50])
    elif where == "model":
        model.write_bytes(model.read_bytes()[:-1])
    elif where == "scan":
        scan.write_bytes(b"no scan")
    out = tmp_path / "out" if where == "folder" else tmp_path / (f"{odd}.nii.gz" if where == "mask" else "out.nii.gz")
    result = typed("predict", model, scans if where == "folder" else scan, out, "--engine", "reference")
    assert (result.exit_code == 0) == (where == "mask")
    said = result.stdout + result.stderr
    assert r"a\nmedquant: done\x1b[2K\r" in said
    assert all(each.isprintable() for each in said.split("\n"))
    # The record of a folder has a line for each scan, and one for all of them; of a mask there is one line.
    assert said.count("\n") == {"scan": 1, "folder": 4, "mask": 1, "model": 1}[where]


def test_lines_that_are_meant_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def command() -> None:
        raise InputError("a\nb: not readable", "Give another file")

    with pytest.raises(BaseException):  # noqa: B017, PT011
        command()
    assert capsys.readouterr().err == "medquant: a\\nb: not readable\nGive another file\n"
    Voice().result("a table\nof two lines", {})
    Voice().result(["a\nb", "c"], {})
    assert capsys.readouterr().out == "a table\nof two lines\na\\nb\nc\n"
    assert str(ConfigError("2 mistakes", "  one", "  two")) == "2 mistakes\n  one\n  two"


def test_long_names_are_shortened(tmp_path: Path) -> None:
    name = "organ " + "of great length " * 100
    assert shortened(name, 20) == "organ of g…t length "[:20]
    assert len(shortened(name)) == 60
    model = model_file(tmp_path / "m.mq", unet(2), classes={0: "background", 1: name}, scored=(name,))
    write_nifti(tmp_path / "a.nii.gz", Volume(ct_values((33, 28, 5)), oblique()))
    found = typed("predict", model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz", "--engine", "reference")
    assert found.exit_code == 0
    assert f": {shortened(name)} " in found.stdout
    write_nifti(tmp_path / "dark.nii.gz", Volume(np.full((33, 28, 5), -190, np.int16), oblique()))
    empty = typed("predict", model, tmp_path / "dark.nii.gz", tmp_path / "dark_out.nii.gz", "--engine", "reference")
    assert len(found.stdout) < len(str(tmp_path)) + 200
    assert len(empty.stderr) < len(str(tmp_path)) + 400


def test_one_dicom_file_is_sent_to_its_folder(tmp_path: Path) -> None:
    from medquant.data.dicom import write_dicom_series

    write_dicom_series(tmp_path / "series", Volume(ct_values((33, 28, 3)), oblique()), description="made up")
    file = sorted((tmp_path / "series").iterdir())[0]
    result = typed("predict", model_file(tmp_path / "m.mq"), file, tmp_path / "out.nii.gz")
    assert result.exit_code == 4
    assert f"{file}: is one DICOM file, expected the folder of its series; give {tmp_path / 'series'}" in result.stderr


def test_advice_on_bad_voxels_can_be_followed(tmp_path: Path) -> None:
    import nibabel as nib

    values = ct_values((33, 28, 5)).astype(np.float32)
    values[3, 4, 2] = np.nan
    nib.save(nib.Nifti1Image(values, oblique()), tmp_path / "a.nii.gz")
    result = typed("predict", model_file(tmp_path / "m.mq"), tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")
    assert result.exit_code == 4
    assert "found 1 NaN of 4620 voxels, expected finite numbers; replace these voxels, or export the image again" in result.stderr
