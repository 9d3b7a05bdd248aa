"""A ledger tells the same story wherever it was cut off: expected states are those of the events before the cut, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from medquant.errors import CheckpointError, UsageError
from medquant.search.ledger import Asked, Ledger, read_ledgers
from medquant.search.trials import Outcome


def write_story(path: Path) -> None:
    """Two trials: one that ends well, one that fails and then ends well; four events, then two."""
    ledger = Ledger(path)
    ledger.asked(Asked("study", 0, {"train.lr": 0.1}, "a"))
    ledger.started("a", "first")
    ledger.ended("a", "first", Outcome("finished", {"dice": {"organ": 0.25}}))
    ledger.started("b", "second")
    ledger.ended("b", "second", Outcome("failed", error="no memory"))
    ledger.ended("b", "second", Outcome("finished"))
    ledger.close()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_story(path)
    history = read_ledgers(tmp_path)
    assert [asked.trial_id for asked in history.asked] == ["a"]
    assert {trial: outcome.status for trial, outcome in history.ended.items()} == {"a": "finished", "b": "finished"}
    assert history.ended["a"].document == {"dice": {"organ": 0.25}}
    assert history.names == {"a": "first", "b": "second"}


def test_cut_anywhere_it_holds_the_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_story(path)
    whole = path.read_bytes()
    statuses = [{}, {}, {}, {"a": "finished"}, {"a": "finished"}, {"a": "finished", "b": "failed"}, {"a": "finished", "b": "finished"}]
    ends = [end for end in range(len(whole)) if whole[end : end + 1] == b"\n"]
    for length in sorted({*range(0, len(whole), 23), *ends, *(end + 1 for end in ends)}):
        path.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        ledger = Ledger(path)
        assert {trial: outcome.status for trial, outcome in ledger.history.ended.items()} == statuses[lines]
        ledger.started("c", "third")
        ledger.close()
        # The torn line is gone, and what was appended stands on a line of its own.
        assert path.read_bytes().count(b"\n") == lines + 1
        assert read_ledgers(tmp_path).names.get("c") == "third"


def test_zeros_after_a_power_cut_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_story(path)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100))
    Ledger(path).close()
    assert path.read_bytes() == whole


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_story(path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"{broken", *lines[2:]]))
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl:2: no event of a sweep"):
        Ledger(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"id": "a"', '"id": ["a"]'),
        ('"group": "study"', '"group": {}'),
        ('"parameters": {"train.lr": 0.1}', '"parameters": 3'),
        ('"status": "finished"', '"status": "won"'),
        ('"document": {"dice": {"organ": 0.25}}', '"document": []'),
        ('"organ": 0.25', '"organ": "much"'),
        ('"organ": 0.25', '"organ": NaN'),
        ('{"organ": 0.25}', '{}, "curve": [[null, 0.5]]'),
    ],
)
def test_events_changed_by_hand_are_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "ledger.jsonl"
    write_story(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CheckpointError, match="no event of a sweep"):
        Ledger(path)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    with pytest.raises(UsageError, match="another process runs this sweep"):
        Ledger(path)
    first.close()
    Ledger(path).close()


def test_figures_that_are_not_finite_become_null(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.ended("a", "first", Outcome("finished", {"dice": {"organ": float("nan")}, "curve": [[0, float("inf")]]}))
    ledger.close()
    assert read_ledgers(tmp_path).ended["a"].document == {"dice": {"organ": None}, "curve": [[0, None]]}
