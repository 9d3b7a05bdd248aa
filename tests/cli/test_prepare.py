"""``medquant prepare`` as people type it: results, messages, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import em_folder, only_document, typed

SMALL_EM = ("--size", 48, "--slices", 7)


def test_phantom_then_dataset_folder_then_inspect(tmp_path: Path) -> None:
    result = typed("prepare", "phantom", "isbi-em", tmp_path / "raw", *SMALL_EM)
    assert result.exit_code == 0, result.stderr
    assert "7 labelled cases written" in result.stdout
    assert result.stderr == ""
    result = typed("prepare", "isbi-em", tmp_path / "raw", tmp_path / "Dataset001_EM", "--json")
    assert result.exit_code == 0, result.stderr
    document = only_document(result)
    assert (document["schema"], document["dataset"], document["layout"], document["cases"]) == (1, "isbi_em", "nnunet", 7)
    assert document["out"] == str(tmp_path / "Dataset001_EM")
    assert json.loads((tmp_path / "Dataset001_EM" / "dataset.json").read_text())["numTraining"] == 7
    assert typed("inspect", tmp_path / "Dataset001_EM").exit_code == 0


def test_pancreas_phantom_with_a_planted_fault(tmp_path: Path) -> None:
    options = ("--subjects", 1, "--size", 64, "--slices", 30, "--layout", "older", "--label-fault", "mirrored")
    assert typed("prepare", "phantom", "pancreas-ct", tmp_path / "raw", *options).exit_code == 0
    result = typed("prepare", "pancreas-ct", tmp_path / "raw", tmp_path / "out", "--layout", "msd")
    assert result.exit_code == 0, result.stderr
    assert "CHECK PANCREAS_0001" in result.stdout


def test_spinal_phantom_and_staple(tmp_path: Path) -> None:
    options = ("--subjects", 1, "--sites", 2, "--slices", 2, "--raters", 3)
    assert typed("prepare", "phantom", "spinal-gm", tmp_path / "raw", *options).exit_code == 0
    assert len(list((tmp_path / "raw").rglob("*-mask-r*.nii.gz"))) == 6
    result = typed("prepare", "spinal-gm", tmp_path / "raw", tmp_path / "out", "--raters", "staple", "--verbose")
    assert result.exit_code == 0, result.stderr
    assert "site2-sc01" in result.stderr
    assert typed("prepare", "spinal-gm", tmp_path / "raw", tmp_path / "out2", "--raters", "each").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("isbi", "RAW", "OUT"), "unknown dataset 'isbi' (did you mean 'isbi-em'"),
        (("phantom", "isbi", "OUT"), "unknown phantom 'isbi' (did you mean 'isbi-em'"),
        (("isbi-em", "RAW", "OUT", "--layout", "nnunt"), "unknown layout 'nnunt' (did you mean 'nnunet'"),
        (("isbi-em", "RAW", "OUT", "--layout", "older"), "unknown layout 'older'"),
        (("isbi-em", "RAW", "OUT", "--slices", "3", "--spacing-mm", "1"), "--slices, --spacing-mm only goes with phantom"),
        (("isbi-em", "RAW", "OUT", "--raters", "majority"), "for spinal-gm only"),
        (("phantom", "isbi-em", "OUT", "--subjects", "3"), "has no subjects"),
        (("phantom", "spinal-gm", "OUT", "--raters", "all"), "expected a number of raters"),
        (("phantom", "pancreas-ct", "OUT", "--label-fault", "wrong"), "unknown label fault 'wrong'"),
        (("isbi-em", "RAW", "RAW"), "is there and not empty"),
    ],
)
def test_usage_errors(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    em_folder(tmp_path / "RAW")
    result = typed("prepare", *(tmp_path / part if part in ("RAW", "OUT") else part for part in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["RAW"]


def test_bad_input_and_field_too_small(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    result = typed("prepare", "isbi-em", tmp_path / "raw", tmp_path / "out")
    assert (result.exit_code, "is empty" in result.stderr) == (4, True)
    assert typed("prepare", "pancreas-ct", tmp_path / "none", tmp_path / "out").exit_code == 4
    assert typed("prepare", "phantom", "spinal-gm", tmp_path / "out", "--size", 16).exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_help_has_an_example() -> None:
    result = typed("prepare", "--help")
    assert result.exit_code == 0
    assert "Example: medquant prepare" in result.stdout
