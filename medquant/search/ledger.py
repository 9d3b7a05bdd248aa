"""What has happened in a sweep, one JSON line an event, each on the disk before the next thing is done.

One process writes a ledger, held to by a lock the system lets go of however that process ends. A last line a power cut left torn is
cut off when the ledger is next written to; what it said is done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medquant.errors import CheckpointError, UsageError
from medquant.search.trials import Outcome

ASKED, STARTED, ENDED = "asked", "started", "ended"
_EVENTS = {ASKED: ("group", "number", "parameters", "id"), STARTED: ("id", "name"), ENDED: ("id", "name", "outcome")}


@dataclass(frozen=True)
class Asked:
    """Parameters a sampler gave, and the trial they make."""

    group: str
    number: int
    parameters: Mapping[str, Any]
    trial_id: str


@dataclass
class History:
    """What the events of a ledger come to.

    Args:
        asked: what samplers gave, in order.
        ended: trial id → how it ended last.
        names: trial id → its name.
        order: what samplers gave and what ended, in order, to teach a sampler again: a question or a trial id.
    """

    asked: list[Asked] = field(default_factory=list)
    ended: dict[str, Outcome] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    order: list[Asked | str] = field(default_factory=list)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event in."""
        if event["event"] == ASKED:
            asked = Asked(event["group"], event["number"], event["parameters"], event["id"])
            self.asked.append(asked)
            self.order.append(asked)
            return
        self.names[event["id"]] = event["name"]
        if event["event"] == ENDED:
            self.ended[event["id"]] = Outcome.from_json(event["outcome"])
            self.order.append(event["id"])


def ledger_name(shard: tuple[int, int] | None) -> str:
    """File of a ledger: each shard has its own."""
    return "ledger.jsonl" if shard is None else f"ledger-{shard[0]}-of-{shard[1]}.jsonl"


class Ledger:
    """A ledger open for writing.

    Args:
        path: the file, made where there is none.

    Raises:
        UsageError: another process writes it, or it cannot be written.
        CheckpointError: a line that is not the last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._not_written(error) from error
        try:
            self._lock()
            data = path.read_bytes()
            events, whole = _parse(path, data)
            if whole < len(data):
                os.ftruncate(self._descriptor, whole)
                os.fsync(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.history = History()
        for event in events:
            self.history.add(event)

    def asked(self, asked: Asked) -> None:
        """Note what a sampler gave, before it is run."""
        self._append(
            {"event": ASKED, "group": asked.group, "number": asked.number, "parameters": dict(asked.parameters), "id": asked.trial_id}
        )

    def started(self, trial_id: str, name: str) -> None:
        """Note that a trial begins."""
        self._append({"event": STARTED, "id": trial_id, "name": name})

    def ended(self, trial_id: str, name: str, outcome: Outcome) -> None:
        """Note what came of a trial."""
        self._append({"event": ENDED, "id": trial_id, "name": name, "outcome": outcome.to_json()})

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _append(self, event: Mapping[str, Any]) -> None:
        # A figure that is not finite has no place in JSON: it is null.
        line = (json.dumps(_finite(event), sort_keys=True, allow_nan=False) + "\n").encode()
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes")
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise CheckpointError(f"{self.path}: cannot be written ({error}); free some space and repeat the command") from error
        self.history.add(event)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{self.path}: another process runs this sweep; wait for it, or give this one another --shard") from error
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> UsageError:
        return UsageError(f"{self.path}: cannot be written ({error.strerror or error}); choose another --out")


def read_ledgers(folder: Path) -> History:
    """All ledgers of a sweep, those of its shards as well, joined; a torn last line is passed over.

    Raises:
        CheckpointError: a line that is not the last one is damaged.
    """
    joined = History()
    for path in sorted(folder.glob("ledger*.jsonl")):
        for event in _parse(path, path.read_bytes())[0]:
            joined.add(event)
    return joined


def _parse(path: Path, data: bytes) -> tuple[list[Mapping[str, Any]], int]:
    """The events of a ledger, and up to which byte it is whole."""
    events: list[Mapping[str, Any]] = []
    whole = 0
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        event = _event(line)
        if event is None:
            if number == len(lines) and not rest:
                break
            raise CheckpointError(
                f"{path}:{number}: no event of a sweep; expected one JSON line each, restore the file or give a new --out"
            )
        events.append(event)
        whole += len(line) + 1
    return events, whole


def _event(line: bytes) -> Mapping[str, Any] | None:
    try:
        event = json.loads(line)
        known: Sequence[str] | None = _EVENTS.get(event["event"])
        if known is None or not all(name in event for name in known):
            return None
        if event["event"] == ENDED:
            Outcome.from_json(event["outcome"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    found: Mapping[str, Any] = event
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
