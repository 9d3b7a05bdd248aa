"""Folders in memory: what a kill left is removed, what is in use or set as a trap is not waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medquant.search import shared
from medquant.search.shared import Scratch


def test_abandoned_folders_go_and_those_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_MEMORY", tmp_path)
    in_use = Scratch()
    abandoned = tmp_path / "medquant-sweep-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    Scratch().close()
    assert list(tmp_path.iterdir()) == [in_use.path]
    in_use.close()
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_MEMORY", tmp_path)
    trap = tmp_path / "medquant-sweep-trap"
    trap.mkdir()
    os.mkfifo(trap / "lock")
    Scratch().close()
    assert [path for path in tmp_path.iterdir() if path != trap] == []
