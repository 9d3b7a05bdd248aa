"""Rules and facts of a model file that no writer of medquant puts there are refused as it is opened. Expected: by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packed_files import METADATA, forged, refused, setter, tiny

from medquant.deploy.exporting import export_model
from medquant.deploy.packed import load_model, save_model
from medquant.errors import CheckpointError

COARSE = {"kind": "coarse", "margin_mm": 10.0, "minimum": [64, 64]}


@pytest.mark.parametrize(
    "scan",
    [
        {"modality": 5},
        {"modality": ""},
        {"modality": "M" * 17},
        {"modality": "CT\n"},
        {"spacing_mm": 0.8},
        {"spacing_mm": {"a": 1}},
        {"spacing_mm": [[0.8] * 3]},
        {"spacing_mm": [[0.8] * 2, [0.8] * 3]},
        {"spacing_mm": [[0.8] * 3, [0.8, 0.8, "1"]]},
        {"spacing_mm": [[0.8] * 3, [0.8, 0.8, True]]},
        {"spacing_mm": [[0.8] * 3, [0.7, 0.8, 0.8]]},
        {"spacing_mm": [[0] * 3, [0.8] * 3]},
        {"spacing_mm": [[-1.0] * 3, [0.8] * 3]},
        {"spacing_mm": [[0.8] * 3, [1e300] * 3]},
        {"spacing_mm": [[0.8] * 3, [0.8, 0.8, 10**400]]},
        {"spacing_mm": [[0.8] * 3, [None] * 3]},
        {"values": 3},
        {"values": [[3, 2]]},
        {"values": [[1]]},
        {"values": [["0", 1]]},
        {"values": [[None, 1]]},
        {"values": [[0, 10**400]]},
        {"values": [[0, 1], [0, 1]]},
        {"kilovolts": 120},
    ],
    ids=str,
)
def test_facts_that_are_of_no_scan_are_refused(scan: dict[str, Any], tiny_file: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", forged(tiny_file, setter("metadata", "scan", value=scan)), r"metadata(\.scan)?: .*found")


@pytest.mark.parametrize(
    "scan",
    [
        {},
        {"modality": None, "spacing_mm": None, "values": []},
        {"modality": "EM", "spacing_mm": [[4e-6, 4e-6, 5e-5], [4e-6, 4e-6, 5e-5]], "values": [[0, 255]]},
        {"modality": "CT", "spacing_mm": [[0.7, 0.7, 1], [0.9, 1, 3.0]], "values": [[-1024.0, 3071.0]]},
    ],
    ids=str,
)
def test_facts_of_scans_are_taken(scan: dict[str, Any], tiny_file: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.mq").write_bytes(forged(tiny_file, setter("metadata", "scan", value=scan)))
    assert load_model(tmp_path / "m.mq").metadata.scan == scan


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("preparation", "normalisation", "kind"), "zscore_body", "stored normalisation"),
        (("preparation", "normalisation", "low"), 1e9, "stored normalisation"),
        (("preparation", "grid", "spacing_mm"), [0.5, -0.5], "stored grid rule"),
        (("preparation",), {}, "stored preparation has the keys"),
        (("region",), {"kind": "truth"}, "stored region rule"),
        (("region",), {**COARSE, "margin_mm": -1}, "stored region rule"),
        (("region",), {**COARSE, "minimum": [64, "64"]}, "stored region rule"),
        (("region",), COARSE, "but there is none in the file"),
    ],
)
def test_rules_that_prepare_no_scan_are_refused_with_the_files_name(
    path: tuple[str, ...], value: object, message: str, tiny_file: bytes, tmp_path: Path
) -> None:
    data = forged(tiny_file, setter("metadata", *path, value=value))
    refused(tmp_path / "m.mq", data, message)
    with pytest.raises(CheckpointError, match=r"m\.mq: "):
        export_model(tmp_path / "m.mq", tmp_path / "out.mq")
    assert not (tmp_path / "out.mq").exists()


def test_rules_that_prepare_no_scan_are_not_written(tmp_path: Path) -> None:
    for changed in ({"preparation": {}}, {"region": COARSE}):
        with pytest.raises(CheckpointError, match=r"m\.mq: cannot be written: "):
            save_model(tmp_path / "m.mq", tiny(), METADATA.model_copy(update=changed))
    assert not (tmp_path / "m.mq").exists()
