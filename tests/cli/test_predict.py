"""``medquant predict`` typed: documents, exit codes, what is said and what is not."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import only_document, typed
from small_models import ct_values, model_file, oblique, unet

from medquant.data.nifti import write_nifti
from medquant.data.volume import Volume
from medquant.predict import one_scan


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path / "m.mq", unet(3, seed=1))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_nifti(tmp_path / "a.nii.gz", Volume(ct_values((33, 28, 5)), oblique()))
    return tmp_path / "a.nii.gz"


def test_one_scan(model: Path, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    result = typed("predict", model, scan, out, "--engine", "reference", "--preview", "--json")
    assert result.exit_code == 0, result.stderr
    document = only_document(result)
    (found,) = document["scans"]  # type: ignore[misc]
    mask = np.asarray(nib.load(out).dataobj)
    assert (document["schema"], document["written"], document["kept"], document["skipped"]) == (1, 1, 0, 0)
    assert (found["scan"], found["status"], found["output"], found["engine"]) == ("a", "written", str(out), "reference")
    assert found["shape"] == [33, 28, 5]
    for name, each in found["classes"].items():
        assert each["voxels"] == np.count_nonzero(mask == each["number"]), name
        assert each["ml"] == pytest.approx(each["voxels"] * 0.8 * 0.9 * 2.5 / 1000, abs=1e-6)
    assert found["seconds"] > 0
    assert found["warnings"] == []
    assert found["preview"] == str(tmp_path / "out_preview.png")
    assert (tmp_path / "out_preview.png").read_bytes().startswith(b"\x89PNG")
    plain = typed("predict", model, scan, tmp_path / "again.nii.gz", "--engine", "reference")
    assert plain.stdout.startswith(f"{tmp_path / 'again.nii.gz'}: organ 1 ")
    assert (tmp_path / "again.nii.gz").read_bytes() == out.read_bytes()


def test_a_folder_with_a_broken_scan_ends_with_its_exit_code(model: Path, scan: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "good.nii.gz").write_bytes(scan.read_bytes())
    (scans / "cut.nii.gz").write_bytes(scan.read_bytes()[:-50])
    (scans / "far.nii.gz").write_bytes(b"")
    result = typed("predict", model, scans, tmp_path / "out", "--engine", "reference", "--json")
    assert result.exit_code == 4
    document = only_document(result)
    assert [each["status"] for each in document["scans"]] == ["skipped", "skipped", "written"]  # type: ignore[attr-defined]
    assert [each.get("exit_code") for each in document["scans"]] == [4, 4, None]  # type: ignore[attr-defined]
    assert "medquant: 1 of 3 masks written, 2 scans skipped; the first: " in result.stderr
    (scans / "cut.nii.gz").unlink()
    (scans / "far.nii.gz").unlink()
    again = typed("predict", model, scans, tmp_path / "out", "--engine", "reference", "--resume")
    assert again.exit_code == 0, again.stderr
    assert again.stdout == f"{tmp_path / 'out' / 'good.nii.gz'}: kept\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{m}", "{a}", "{t}/there.nii.gz"], 2, "exists; give --overwrite"),
        (["{m}", "{a}", "{t}/o.nii.gz", "--engine", "tpu"], 2, "unknown engine 'tpu'"),
        (["{m}", "{a}", "{t}/o.nii.gz", "--max-memory", "lots"], 2, "'lots' is no size of memory"),
        (["{m}", "{a}", "{t}/o.nii.gz", "--max-memory", "40MB"], 2, "--max-memory 40MB is too little: this model needs at least "),
        (["{m}", "{a}", "{t}/o.nii.gz", "--format", "nrrd"], 2, "unknown format 'nrrd'"),
        (["{m}", "{a}", "{t}/o.dcm"], 2, "refers to the slices of a DICOM series"),
        (["{m}", "{t}/nothing.nii", "{t}/o.nii.gz"], 4, "no such file or folder"),
        (["{m}", "{t}/notes.txt", "{t}/o.nii.gz"], 4, "expected .nii, .nii.gz"),
        (["{m}", "{t}/cut.nii.gz", "{t}/o.nii.gz"], 4, "cut short or damaged"),
        (["{m}", "{t}/four.nii", "{t}/o.nii.gz"], 4, "found 2 channels, the model takes 1 channel"),
        (["{f}", "{a}", "{t}/o.nii.gz"], 5, "found voxels of 0.8×0.9×2.5 mm, the model was trained on 5×5×5 mm"),
        (["{t}/notes.txt", "{a}", "{t}/o.nii.gz"], 6, "expected a model file"),
        (["{t}/nothing.mq", "{a}", "{t}/o.nii.gz"], 6, "found nothing, expected a model file"),
    ],
)
def test_what_cannot_be_done_has_its_exit_code(
    arguments: list[str], code: int, words: str, model: Path, scan: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.nii.gz").write_bytes(b"work")
    (tmp_path / "notes.txt").write_text("no model, no scan")
    (tmp_path / "cut.nii.gz").write_bytes(scan.read_bytes()[:-50])
    nib.save(nib.Nifti1Image(np.zeros((33, 28, 5, 2), np.int16), oblique()), tmp_path / "four.nii")
    far = model_file(tmp_path / "far.mq", scan={"modality": None, "spacing_mm": [[5.0] * 3] * 2, "values": []})
    places = {"m": model, "a": scan, "t": tmp_path, "f": far}
    before = sorted(path.name for path in tmp_path.iterdir())
    result = typed("predict", *(text.format(**places) for text in arguments))
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert words in result.stderr
    assert result.stderr.startswith("medquant: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.nii.gz").read_bytes() == b"work"


def test_scans_of_another_kind_are_predicted_where_they_are_allowed(scan: Path, tmp_path: Path) -> None:
    far = model_file(tmp_path / "far.mq", scan={"modality": None, "spacing_mm": [[5.0] * 3] * 2, "values": []})
    result = typed("predict", far, scan, tmp_path / "o.nii.gz", "--engine", "reference", "--allow-other-scans", "--quiet", "--json")
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "; allowed" in result.stderr
    ((warning, *_),) = [each["warnings"] for each in only_document(result)["scans"]]  # type: ignore[attr-defined]
    assert "found voxels of 0.8×0.9×2.5 mm" in warning


def test_the_record_is_plain(model: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(scan.read_bytes())
    assert typed("predict", model, tmp_path / "scans", tmp_path / "out", "--engine", "reference").exit_code == 0
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["schema"] == 1
    (fields,) = record["masks"].values()
    assert set(fields) == {"scan_sha256", "model_sha256", "options", "output_sha256"}


def test_a_job_that_is_told_to_end_leaves_nothing_behind(model: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the middle of a scan, as ``docker stop`` sends it: exit code 130, no decoded scan in TMPDIR, no mask, no traceback."""
    decoded: list[bool] = []

    def told(*_: object) -> None:
        decoded.append(any((tmp_path / "scratch").rglob("*.npy")))
        os.kill(os.getpid(), signal.SIGTERM)
        # The interpreter serves the signal before long.
        time.sleep(5)

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(one_scan, "predict_mask", told)
    # Without our handler the tests themselves would end here.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        result = typed("predict", model, scan, tmp_path / "out.nii.gz", "--engine", "reference")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert (result.exit_code, result.stderr) == (130, "medquant: stopped\n")
    assert decoded == [True]
    assert not any((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "out.nii.gz").exists()
