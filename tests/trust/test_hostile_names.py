"""Names of classes, metrics and files that mean something to a spreadsheet, a browser or a terminal, in what is printed and written."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from medquant.cli.output import Voice
from medquant.errors import CheckpointError
from medquant.report.tables import Table
from medquant.train.run_folder import RunFolder

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)")


def test_a_spreadsheet_computes_nothing() -> None:
    table = Table(("network", *FORMULAS), (("W4A6", "+0.25", "-0.50", "-3", "95.34 ± 0.2"),))
    rows = list(csv.reader(io.StringIO(table.to_csv())))
    assert rows[0] == ["network", *(f"'{name}" for name in FORMULAS)]
    assert rows[1] == ["W4A6", "+0.25", "-0.50", "-3", "95.34 ± 0.2"]  # numbers stay numbers


def test_a_browser_runs_nothing() -> None:
    text = Table(("<script>alert(1)</script>", "a&lt;b"), (("x|y", "<img src=x onerror=alert(1)>"),)).to_markdown()
    assert "<" not in text
    assert "&lt;script>" in text
    assert "a&amp;lt;b" in text
    assert "x\\|y" in text


@pytest.mark.parametrize("name", ["\x1b[2J", "\x9b31m", "\u202egnp.exe", "a\rb", "\x07"])
def test_a_terminal_obeys_nothing(capsys: pytest.CaptureFixture[str], name: str) -> None:
    voice = Voice()
    voice.say(f"reading {name}\tück", "next")
    voice.result(f"read {name}", {})
    said = capsys.readouterr()
    assert name not in said.out + said.err
    assert name.encode("unicode_escape").decode() in said.err
    assert "\tück\nnext" in said.err


def test_scores_of_unprintable_classes_are_refused(tmp_path: Path) -> None:
    document = {
        "dice": {"a": {"mean": 0.5}},
        "metrics": {},
        "memory": {"parameter_bytes": 5},
        "bits": {"weights": 4, "activations": 6},
        "data": {"content_sha256": "0"},
        "split": {"cases": ["c1"]},
    }
    (tmp_path / "run.json").write_text('{"schema": 1}')
    run = RunFolder.open(tmp_path)
    (tmp_path / "eval.json").write_text(json.dumps(document))
    assert run.evaluation == document
    for change in (
        {"dice": {"\x1b[2J": {"mean": 0.5}}},
        {"dice": {"a": {"mean": "high"}}},
        {"bits": {"weights": 4}},
        {"bits": {"weights": True, "activations": 6}},
        {"memory": 7},
        {"memory": {"layers": [{"name": ["a"]}]}},
        {"cases": [{"id": "c1", "dice": {"a": 10**400}}]},
        {"baseline": {"all_a": {"a": [[1]]}}},
    ):
        (tmp_path / "eval.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(CheckpointError, match="not an evaluation") as refused:
            _ = run.evaluation
        assert "\x1b" not in str(refused.value)


def test_links_within_a_run_are_followed_and_those_out_of_it_refused(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / "run.json").write_text('{"schema": 1}')
    (run / "kept").mkdir()
    (run / "best").symlink_to("kept", target_is_directory=True)
    RunFolder.open(run)
    # The folder itself may well be a link: the user named it.
    (tmp_path / "link").symlink_to("run", target_is_directory=True)
    RunFolder.open(tmp_path / "link")
    (run / "last").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(CheckpointError, match="last is a link that leads out"):
        RunFolder.open(run)
    shutil.rmtree(elsewhere)
    with pytest.raises(CheckpointError, match="last is a link that leads out"):
        RunFolder.open(run)
