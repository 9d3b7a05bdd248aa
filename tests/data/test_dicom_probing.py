"""What ``medquant inspect`` is told about DICOM."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_builder import ENHANCED_CT, random_series, write

from medquant.data.probing import dicom_summary, is_dicom
from medquant.errors import InputError


def test_dicom_is_known_by_its_preamble(tmp_path: Path) -> None:
    paths = write(tmp_path / "scan", random_series(np.random.default_rng(0)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.dcm").write_text("DICM")
    assert is_dicom(paths[0])
    assert is_dicom(tmp_path / "scan")
    assert not any(is_dicom(tmp_path / name) for name in ("empty", "text.dcm", "absent"))


def test_a_series_is_described(tmp_path: Path) -> None:
    write(tmp_path, random_series(np.random.default_rng(1)))
    (tmp_path / "notes.txt").write_text("x")
    summary = dicom_summary(tmp_path)
    assert json.loads(json.dumps(summary)) == summary
    assert summary == {
        "kind": "DICOM folder",
        "series_count": 1,
        "ignored_files": 1,
        "other_objects": {},
        "modality": "CT",
        "slices": 8,
        "shape": [5, 6, 8],
        "spacing_mm": [0.7, 0.9, 2.5],
        "orientation": "LPS",  # axial: columns grow to the left, rows to the back, slices upwards
        "affine": [[-0.7, 0, 0, 10.25], [0, -0.9, 0, -20.5], [0, 0, 2.5, 30.75], [0, 0, 0, 1]],
        "has_geometry": True,
    }
    single = dicom_summary(tmp_path / "1-003.dcm")
    assert (single["kind"], single["slices"], single["shape"]) == ("DICOM file", 1, [5, 6, 1])


def test_several_series_are_listed_and_can_be_chosen(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    write(tmp_path, random_series(rng, count=4, uid="1.2.1"))
    write(tmp_path, random_series(rng, count=3, uid="1.2.2", sop_class="1.2.840.10008.5.1.4.1.1.4"), ["2-1.dcm", "2-2.dcm", "2-3.dcm"])
    write(tmp_path, random_series(rng, count=1, uid="1.2.3", sop_class=ENHANCED_CT), ["3-1.dcm"])
    summary = dicom_summary(tmp_path)
    listed = ["CT, 4 slices of 5×6", "MR, 3 slices of 5×6", "multi-frame CT or MR, 1 slice of 5×6"]
    assert summary["series"] == listed
    assert "found 3 series" in str(summary["refused"])
    chosen = dicom_summary(tmp_path, series=2)
    assert (chosen["modality"], chosen["slices"], "refused" in chosen) == ("MR", 3, False)
    assert "multi-frame" in str(dicom_summary(tmp_path, series=3)["refused"])


def test_a_refusal_is_part_of_the_description(tmp_path: Path) -> None:
    write(tmp_path, random_series(np.random.default_rng(3)))[3].unlink()
    summary = dicom_summary(tmp_path)
    assert "missing between them" in str(summary["refused"])
    assert (summary["slices"], summary["modality"]) == (7, "CT")
    with pytest.raises(InputError, match="found nothing"):
        dicom_summary(tmp_path / "absent")
