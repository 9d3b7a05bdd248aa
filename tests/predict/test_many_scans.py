"""Folders of scans: all are tried, what is broken is named, what is finished is known by its digests and nothing else is believed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_models import ct_values, model_file, oblique, unet

from medquant.data.dicom import write_dicom_series
from medquant.data.nifti import write_nifti
from medquant.data.tiff import write_tiff_stack
from medquant.data.volume import Volume
from medquant.errors import GeometryError, InputError, MedquantError, UsageError
from medquant.predict import many_scans as many_scans_module
from medquant.predict import one_scan as one_scan_module
from medquant.predict.many_scans import PredictReport, PredictRequest, predict
from medquant.predict.one_scan import PredictOptions
from medquant.predict.records import FILE_NAME

SHAPE = (33, 28, 5)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A NIfTI, a DICOM folder, a TIFF; and what is no scan."""
    folder = tmp_path / "scans"
    folder.mkdir()
    volume = Volume(ct_values(SHAPE), oblique())
    write_nifti(folder / "b.nii.gz", volume)
    write_dicom_series(folder / "series", volume, description="made up")
    write_tiff_stack(folder / "stack.tif", volume.array.astype(np.int16))
    (folder / "notes.txt").write_text("not a scan")
    (folder / ".hidden.nii.gz").write_text("not a scan")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path / "m.mq")


def run(model: Path, scans: Path, out: Path, **options: object) -> tuple[PredictReport, list[str]]:
    said: list[str] = []
    report = predict(PredictRequest(model, scans, out, "reference", **options), said.append)  # type: ignore[arg-type]
    return report, said


def statuses(report: PredictReport) -> dict[str, str]:
    return {str(result.to_json()["scan"]): str(result.to_json()["status"]) for result in report.results}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_kind_of_scan_in_a_folder(scans: Path, model: Path, tmp_path: Path) -> None:
    report, said = run(model, scans, tmp_path / "out")
    assert statuses(report) == {"b": "written", "series": "written", "stack": "written"}
    assert sorted(contents(tmp_path / "out")) == ["b.nii.gz", FILE_NAME, "series.dcm", "stack.tif"]
    assert report.error is None
    assert report.summary() == "3 of 3 masks written, 0 scans skipped"
    assert said == [f"{scans}: 2 files or folders that are no scan are left out"]
    document = json.loads((tmp_path / "out" / FILE_NAME).read_text())
    assert set(document["masks"]) == {"b.nii.gz", "series.dcm", "stack.tif"}
    report, _ = run(model, scans, tmp_path / "nifti", mask_format="nifti")
    assert sorted(contents(tmp_path / "nifti")) == ["b.nii.gz", FILE_NAME, "series.nii.gz", "stack.nii.gz"]
    masks = [np.asarray(nib.load(tmp_path / "nifti" / f"{name}.nii.gz").dataobj) for name in ("b", "series", "stack")]
    # One scan in three forms; the DICOM series starts at the other end of the slices, or it does not.
    assert len({int(np.count_nonzero(mask)) for mask in masks[:2]}) == 1


def test_a_broken_scan_is_named_and_the_others_are_written(scans: Path, model: Path, tmp_path: Path) -> None:
    damaged = scans / "a-cut.nii.gz"
    damaged.write_bytes((scans / "b.nii.gz").read_bytes()[:-500])
    slices = sorted((scans / "series").iterdir())
    slices[2].unlink()
    (scans / "zz").mkdir()
    (scans / "zz" / "1-001.dcm").write_bytes(b"no DICOM")
    report, said = run(model, scans, tmp_path / "out")
    assert statuses(report) == {"a-cut": "skipped", "b": "written", "series": "skipped", "stack": "written", "zz": "skipped"}
    assert sorted(contents(tmp_path / "out")) == ["b.nii.gz", FILE_NAME, "stack.tif"]
    assert isinstance(report.error, InputError)
    assert report.summary() == "2 of 5 masks written, 3 scans skipped"
    assert any(line.startswith("skipped a-cut: ") and "a-cut.nii.gz: cut short or damaged" in line for line in said)
    assert any(line.startswith("skipped series: series: slices 2 and 3 of 4") and "about 1 missing between them" in line for line in said)
    assert any(line.startswith("skipped zz: zz: ") and "lacks the DICOM preamble" in line for line in said)
    skipped = [result for result in report.results if result.error is not None]
    assert [result.to_json()["exit_code"] for result in skipped] == [4, 5, 4]
    assert isinstance(skipped[1].error, GeometryError)


def test_nothing_that_can_be_done_is_asked_twice(scans: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the scan itself"):
        run(model, scans, scans)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, expected a folder for the masks of 3 scans"):
        run(model, scans, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found no scan among 0 files and folders"):
        run(model, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="no such file or folder"):
        run(model, tmp_path / "nowhere", tmp_path / "out")
    shutil.copy(scans / "b.nii.gz", scans / "stack.nii.gz")
    with pytest.raises(UsageError, match=r"several scans would be written to stack\.nii\.gz"):
        run(model, scans, tmp_path / "out", mask_format="nifti")
    assert not (tmp_path / "out").exists()
    (scans / "stack.nii.gz").unlink()
    report, said = run(model, scans, tmp_path / "seg", mask_format="dicom-seg")
    assert statuses(report) == {"b": "skipped", "series": "written", "stack": "skipped"}
    assert sum("refers to the slices of a DICOM series, which this scan is not" in line for line in said) == 2


def test_channels_are_joined_to_cases(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", unet(2, channels=2))
    folder = tmp_path / "scans"
    folder.mkdir()
    for case, channels in (("one", 2), ("two", 2), ("lone", 1)):
        for number in range(channels):
            write_nifti(folder / f"{case}_000{number}.nii.gz", Volume(ct_values(SHAPE, number), oblique()))
    write_nifti(folder / "odd_0001.nii.gz", Volume(ct_values(SHAPE, 1), oblique()))
    report, said = run(model, folder, tmp_path / "out")
    assert statuses(report) == {"lone": "skipped", "odd": "skipped", "one": "written", "two": "written"}
    assert sorted(contents(tmp_path / "out")) == ["one.nii.gz", FILE_NAME, "two.nii.gz"]
    assert any("lone_0001.nii.gz: found nothing, expected a NIfTI file" in line or "lone_0001.nii.gz" in line for line in said)
    assert any("odd_0000.nii.gz" in line for line in said)


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_unless_told(scans: Path, model: Path, tmp_path: Path) -> None:
    run(model, scans, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="exists and is not empty; give --resume to go on, --overwrite to replace"):
        run(model, scans, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    report, _ = run(model, scans, tmp_path / "out", overwrite=True)
    assert set(statuses(report).values()) == {"written"}


def test_finished_masks_are_kept(scans: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(model, scans, tmp_path / "out")
    (tmp_path / "out" / "stack.tif").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    asked: list[str] = []
    predict_scan = many_scans_module.predict_scan
    monkeypatch.setattr(many_scans_module, "predict_scan", lambda *args: asked.append(args[1].name) or predict_scan(*args))
    report, _ = run(model, scans, tmp_path / "out", resume=True)
    assert statuses(report) == {"b": "kept", "series": "kept", "stack": "written"}
    assert asked == ["stack"]
    assert report.summary() == "1 of 3 masks written, 2 kept from before, 0 scans skipped"
    for path, time in before.items():
        assert path.name == FILE_NAME or path.stat().st_mtime_ns == time
    assert set(statuses(run(model, scans, tmp_path / "out", resume=True)[0]).values()) == {"kept"}


def test_masks_of_another_scan_model_or_option_are_made_again(scans: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, scans, out)
    write_nifti(scans / "b.nii.gz", Volume(ct_values(SHAPE, 9), oblique()))
    report, said = run(model, scans, out, resume=True)
    assert statuses(report) == {"b": "written", "series": "kept", "stack": "kept"}
    assert any("b.nii.gz: was made from another scan, model or options, made again" in line for line in said)
    other = model_file(tmp_path / "other.mq", unet(seed=3))
    assert set(statuses(run(other, scans, out, resume=True)[0]).values()) == {"written"}
    options = PredictOptions(max_memory_bytes=10**9)
    assert set(statuses(run(other, scans, out, resume=True, options=options)[0]).values()) == {"written"}


@pytest.mark.parametrize("fault", ["changed", "cut", "unknown", "no record", "damaged record", "foreign record"])
def test_masks_that_are_not_known_are_not_believed(fault: str, scans: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, scans, out)
    mask, record = out / "b.nii.gz", out / FILE_NAME
    if fault == "changed":
        mask.write_bytes(mask.read_bytes() + b"\0")
    elif fault == "cut":
        mask.write_bytes(mask.read_bytes()[:-20])
    elif fault == "unknown":
        document = json.loads(record.read_text())
        del document["masks"]["b.nii.gz"]
        record.write_text(json.dumps(document))
    elif fault == "no record":
        record.unlink()
    else:
        record.write_text("{" if fault == "damaged record" else json.dumps({"schema": 1, "masks": {"b.nii.gz": {"scan_sha256": 5}}}))
    held = mask.read_bytes()
    report, said = run(model, scans, out, resume=True)
    assert statuses(report)["b"] == "skipped"
    assert isinstance(report.error, UsageError)
    assert any("so it may be someone's work; move it elsewhere, or give --overwrite too" in line for line in said)
    assert mask.read_bytes() == held
    report, said = run(model, scans, out, resume=True, overwrite=True)
    assert statuses(report)["b"] == "written"
    assert any(f"not as {FILE_NAME} says, made again" in line for line in said)
    assert mask.read_bytes() != held or fault not in ("changed", "cut")


def test_a_run_that_ends_between_mask_and_record_leaves_no_mask(
    scans: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = many_scans_module.Records.note

    def killed(self: object, name: str, record: object) -> None:
        if name == "series.dcm":
            raise KeyboardInterrupt
        note(self, name, record)  # type: ignore[arg-type]

    monkeypatch.setattr(many_scans_module.Records, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        run(model, scans, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["b.nii.gz", FILE_NAME]
    monkeypatch.setattr(many_scans_module.Records, "note", note)
    assert statuses(run(model, scans, tmp_path / "out", resume=True)[0]) == {"b": "kept", "series": "written", "stack": "written"}


def test_errors_that_are_no_fault_of_a_scan_are_not_hidden(
    scans: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(many_scans_module, "predict_scan", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(model, scans, tmp_path / "out")
    with pytest.raises(MedquantError, match="expected a model file"):
        run(scans / "notes.txt", scans, tmp_path / "out2")


@pytest.mark.parametrize("name", ["masks.nii.gz", "masks.DCM", "masks.tif"])
def test_a_folder_of_masks_is_not_called_like_one_mask(name: str, scans: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="called like one mask"):
        run(model, scans, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_predicted(
    scans: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    # Permissions would not stop root.
    monkeypatch.setattr(many_scans_module.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(many_scans_module, "predict_scan", lambda *_: pytest.fail("predicted all the same"))
    for scan, out in ((scans, tmp_path / "out"), (scans / "b.nii.gz", tmp_path / "out.nii.gz")):
        with pytest.raises(UsageError, match=r"out.*: cannot be written \(Read-only file system\)"):
            run(model, scan, out)


def test_what_cannot_be_cleared_away_does_not_hide_the_error(
    scans: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that becomes read-only while a scan is predicted: the mask cannot be written, and nothing removed."""

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("the disk is read-only")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as changed:
        changed.setattr(one_scan_module, "write_mask", refuse)
        changed.setattr(Path, "unlink", read_only)
        report, _ = run(model, scans, tmp_path / "out", options=PredictOptions(preview=lambda *_: None))
    assert {str(result.error) for result in report.results} == {"the disk is read-only"}


def test_two_runs_do_not_write_to_one_folder_at_once(scans: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="out: another medquant predict is writing masks there; wait for it"):
        run(model, scans, out, resume=True, overwrite=True)
    os.close(descriptor)
    assert list(out.iterdir()) == []
    # A run that ended holds nothing.
    for _ in range(2):
        run(model, scans, out, resume=True)


def test_resume_and_overwrite_together_keep_what_is_known_and_replace_the_rest(scans: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, scans, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "b.nii.gz").write_bytes(b"someone's work")
    report, _ = run(model, scans, out, resume=True, overwrite=True)
    assert statuses(report) == {"b": "written", "series": "kept", "stack": "kept"}
    assert {name for name in ("series.dcm", "stack.tif") if (out / name).stat().st_mtime_ns == before[name]} == {"series.dcm", "stack.tif"}
