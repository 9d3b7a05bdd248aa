"""The folder of decoded scans, and what killed processes left of theirs. Expected: by hand, processes that are really killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from medquant.errors import UsageError
from medquant.predict import scratch
from medquant.predict.scratch import scratch_folder

_KEPT_OPEN = """
import sys, time
from medquant.predict.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "voxels.npy").write_bytes(b"a decoded scan")
    print(folder, flush=True)
    time.sleep(100)
"""
_NO_PROCESS = 999_999_999
"""Above the largest process id that Linux gives."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def running(temporary: Path, repository: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process in the middle of a scan, and its folder."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", _KEPT_OPEN], cwd=repository, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child, Path(child.stdout.readline().strip())
        finally:
            child.kill()


def left_behind(temporary: Path, pid: int = _NO_PROCESS) -> Path:
    folder = temporary / f"medquant-scan-{pid}-abc123"
    folder.mkdir()
    (folder / "voxels.npy").write_bytes(b"a decoded scan")
    return folder


def test_a_folder_of_ones_own_that_is_gone_afterwards(temporary: Path) -> None:
    with scratch_folder() as first, scratch_folder() as second:
        assert first != second
        assert all(each.name.startswith(f"medquant-scan-{os.getpid()}-") for each in (first, second))
        assert first.stat().st_mode & 0o077 == 0
        (first / "voxels.npy").write_bytes(b"a decoded scan")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_living_one_is_left_alone(
    running: tuple[subprocess.Popen[str], Path], temporary: Path
) -> None:
    child, folder = running
    with scratch_folder():
        assert (folder / "voxels.npy").exists()
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=20)
    assert (folder / "voxels.npy").exists()
    with scratch_folder():
        assert not folder.exists()
    assert list(temporary.iterdir()) == []


def test_what_another_container_is_using_stays(temporary: Path) -> None:
    # There the process lives under an id that no process has here, or that is our own.
    for pid in (_NO_PROCESS, os.getpid()):
        folder = left_behind(temporary, pid)
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with scratch_folder():
            assert (folder / "voxels.npy").exists()
        os.close(descriptor)
        with scratch_folder():
            assert not folder.exists()


def test_links_files_other_names_and_other_users_stay(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "work"
    target.mkdir()
    (target / "thesis.txt").write_text("years")
    (temporary / f"medquant-scan-{_NO_PROCESS}-link").symlink_to(target)
    (temporary / f"medquant-scan-{_NO_PROCESS}-file").write_text("no folder")
    for name in ("medquant-scan-abc", "medquant-scan-12-", f"my-medquant-scan-{_NO_PROCESS}-abc", "medquant-scan--1-abc"):
        (temporary / name).mkdir()
    before = sorted(temporary.iterdir())
    with scratch_folder():
        pass
    assert sorted(temporary.iterdir()) == before
    assert (target / "thesis.txt").read_text() == "years"
    theirs = left_behind(temporary)
    uid = os.getuid()
    with monkeypatch.context() as patch:
        patch.setattr(scratch.os, "getuid", lambda: uid + 1)
        with scratch_folder():
            assert theirs.exists()


def test_links_inside_a_leftover_are_removed_and_not_followed(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    folder = left_behind(temporary)
    (folder / "link").symlink_to(tmp_path)
    with scratch_folder():
        assert not folder.exists()
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_no_place_for_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere: no folder for decoded scans can be made .*; set TMPDIR"), scratch_folder():
        pass
