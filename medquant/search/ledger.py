"""What has happened in a sweep, one JSON line an event, each on the disk before the next thing is done.

One process writes a ledger, held to by a lock the system lets go of however that process ends. A last line a power cut left torn is
cut off when the ledger is next written to; what it said is done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from medquant.errors import CheckpointError, UsageError
from medquant.search.trials import Outcome, Status

_ALL = "ledger*.jsonl"
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
    finished: dict[str, Outcome] = {}
    for path in sorted(folder.glob(_ALL)):
        for event in _parse(path, path.read_bytes())[0]:
            joined.add(event)
        finished.update({trial_id: outcome for trial_id, outcome in joined.ended.items() if outcome.status == "finished"})
    # One that failed in a ledger and was run again from another has ended well.
    joined.ended.update(finished)
    return joined


def check_other_shards(folder: Path, shard: tuple[int, int] | None, is_sampled: bool) -> None:
    """Refuse to share a folder with ledgers of another number of shards where trials would be run twice.

    Raises:
        UsageError: one of them is being written now, or trials are sampled, each number of shards asking for others.
    """
    mine = {ledger_name(shard)} if shard is None else {ledger_name((number, shard[1])) for number in range(1, shard[1] + 1)}
    for path in sorted(folder.glob(_ALL)):
        if path.name in mine or not (_is_held(path) or (is_sampled and path.stat().st_size)):
            continue
        what = "samplers are asked by another number of shards there" if is_sampled else "another process runs this sweep now"
        raise UsageError(f"{path}: {what}; keep to its --shard, or choose another --out")


def _is_held(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # it cannot be told there
    return False


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
        texts = [event[name] for name in known if name in ("group", "id", "name")]
        if not all(isinstance(text, str) for text in texts) or not isinstance(event.get("parameters", {}), dict):
            return None
        if event["event"] == ENDED and not _is_outcome(Outcome.from_json(event["outcome"])):
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    found: Mapping[str, Any] = event
    return found


def _is_outcome(outcome: Outcome) -> bool:
    """Whether it holds what tables and samplers compute with."""
    document = outcome.document
    if not isinstance(document, dict) or not isinstance(outcome.error, str) or not _is_figure(outcome.elapsed_s):
        return False
    scores = [document.get(name) or {} for name in ("dice", "dice_minus_twin")]
    curve = document.get("curve", [])
    return (
        outcome.status in get_args(Status)
        and all(isinstance(each, dict) and all(value is None or _is_figure(value) for value in each.values()) for each in scores)
        and (document.get("validation_dice") is None or _is_figure(document["validation_dice"]))
        and isinstance(document.get("memory", {}), dict)
        and isinstance(curve, list)
        and all(isinstance(point, list) and len(point) == 2 and _is_figure(point[0]) for point in curve)
        and all(value is None or _is_figure(value) for _, value in curve)
    )


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
