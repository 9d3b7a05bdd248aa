"""The record of a run: lines that count are kept, half-written ones passed over, a full disk told apart."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from medquant.errors import CheckpointError
from medquant.train.recorder import METRICS_NAME, Recorder, read_records


def _record(stage: str, epoch: int) -> dict[str, object]:
    return {"stage": stage, "epoch": epoch, "train_loss": 1.5, "lr": 0.1, "val_dice": {"cell": 0.5}}


def test_epochs_to_be_run_again_lose_their_line(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for epoch in range(3):
        recorder.append(_record("warm", epoch), epoch)
    recorder.close()
    with (tmp_path / METRICS_NAME).open("a") as stream:
        stream.write('{"stage": "warm", "epo')
    again = Recorder(tmp_path, {("warm", 0), ("warm", 1)})
    again.append(_record("warm", 2), 3)
    again.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines == read_records(tmp_path / METRICS_NAME)


def test_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).write_text('[]\n3\n{"stage": "warm"}\n\n{"stage": "warm", "epoch": 0}\n')
    assert read_records(tmp_path / METRICS_NAME) == [{"stage": "warm", "epoch": 0}]
    assert read_records(tmp_path / "none") == []


@pytest.mark.parametrize("place", ["fsync", "add_scalar", "close"])
def test_a_full_disk_is_a_checkpoint_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """TensorBoard's files lie on the same disk: its complaint must not look like a fault of medquant."""
    recorder = Recorder(tmp_path)
    events = recorder._events

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os if place == "fsync" else events, place, full)
        if place == "close":
            recorder.append(_record("warm", 0), 0)
            recorder.close()
        else:
            with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
                recorder.append(_record("warm", 0), 0)
    recorder.close()
