"""The record of a run as it goes: one JSON line an epoch, and the same in TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from torch.utils.tensorboard import SummaryWriter

from medquant.data.atomic import write_atomically
from medquant.errors import CheckpointError, UsageError

METRICS_NAME = "metrics.jsonl"


class Recorder:
    """Appends to ``metrics.jsonl`` and to TensorBoard's event files.

    Args:
        folder: the run folder.
        kept: (stage, epoch) pairs that count; lines of epochs that are to be run again are dropped.
        events: write for TensorBoard as well.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """

    def __init__(self, folder: Path, kept: set[tuple[str, int]] | None = None, events: bool = True) -> None:
        self.path = folder / METRICS_NAME
        self.records = [record for record in read_records(self.path) if kept is None or (record["stage"], record["epoch"]) in kept]
        text = "".join(_line(record) for record in self.records).encode()
        try:
            write_atomically(self.path, lambda stream: _write_all(stream, text))
            self._events = SummaryWriter(log_dir=str(folder / "tensorboard")) if events else None
        except (OSError, UsageError) as error:
            raise self._not_written(error) from error

    def append(self, record: Mapping[str, object], step: int) -> None:
        """Add one epoch; ``step`` is its place on TensorBoard's axis.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        self.records.append(dict(record))
        try:
            with self.path.open("ab") as stream:
                stream.write(_line(record).encode())
                stream.flush()
                os.fsync(stream.fileno())
            self._add_scalars(record, step)
        except OSError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Flush and close the event files."""
        # Every figure is in metrics.jsonl already; an error here would hide the one that ended the run.
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()

    def _add_scalars(self, record: Mapping[str, object], step: int) -> None:
        if self._events is None:
            return
        stage = record["stage"]
        self._events.add_scalar(f"{stage}/train_loss", record["train_loss"], step)
        self._events.add_scalar(f"{stage}/learning_rate", record["lr"], step)
        scores = record["val_dice"]
        if isinstance(scores, Mapping):
            for name, score in scores.items():
                if score is None:
                    continue
                self._events.add_scalar(f"{stage}/validation_dice_{name}", score, step)

    def _not_written(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.path.parent}: the record of the run cannot be written ({error}); free some space and resume")


def read_records(path: Path) -> list[dict[str, object]]:
    """The lines of a metrics file; a last line that a killed process left half-written is passed over."""
    records: list[dict[str, object]] = []
    if not path.is_file():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("stage"), str) and isinstance(record.get("epoch"), int):
            records.append(record)
    return records


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(record, sort_keys=True) + "\n"


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
