"""A sweep from its file to its table: every trial once, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medquant.config.sweep_source import Point, WrittenSweep, read_sweep
from medquant.data.bounded import read_bounded_json
from medquant.errors import CheckpointError, InterruptedRunError, UsageError
from medquant.search.executors.base import Executor, Places, Watch
from medquant.search.ledger import Ledger, check_other_shards, ledger_name, read_ledgers
from medquant.search.listing import Listing
from medquant.search.queue import Listed, Sampled, TrialQueue
from medquant.search.run_trial import shared
from medquant.search.trials import Outcome, Trial, digest
from medquant.train.checkpoint import has_checkpoint
from medquant.train.run_folder import write_json

SWEEP_NAME = "sweep.json"
_DIED_TWICE = "the process it ran in died twice, killed by the system perhaps for want of memory; lower --jobs or the size of the trial"

MakeExecutor = Callable[[Places, Watch, Callable[[], bool]], Executor]


@dataclass(frozen=True)
class SweepRequest:
    """What was asked for.

    Args:
        file: the sweep file.
        out: folder of the sweep; one that holds this sweep already goes on.
        shard: number, from 1, and count; None: all of it.
        retry_failed: run trials that failed once more.
        threads: processor threads of a trial that names no number, None for torch's own choice.
    """

    file: Path
    out: Path
    shard: tuple[int, int] | None = None
    retry_failed: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class ListedSweep:
    """A sweep whose configurations have been checked.

    Args:
        written: the file.
        listing: makes trials.
        points: rows × grid.
        trials: their trials; where a sampler makes them, one to try each point with.
    """

    written: WrittenSweep
    listing: Listing
    points: tuple[Point, ...]
    trials: tuple[tuple[Point, Trial], ...]

    def of_shard(self, shard: tuple[int, int] | None) -> list[Trial]:
        """The trials of a shard: dealt one by one; those that share a float network stay together."""
        if shard is None:
            return [trial for _, trial in self.trials]
        groups: dict[str, int] = {}
        places = [groups.setdefault(trial.float_id or trial.id, len(groups)) for _, trial in self.trials]
        return [trial for place, (_, trial) in zip(places, self.trials, strict=True) if place % shard[1] == shard[0] - 1]


def list_sweep(file: Path) -> ListedSweep:
    """Read a sweep file and check all it lists.

    Raises:
        ConfigError: mistakes in the file or in configurations, all in one message.
        InputError: data that cannot be read.
    """
    written = read_sweep(file)
    listing = Listing(written, shared())
    points = tuple(written.points())
    return ListedSweep(written, listing, points, tuple(listing.trials(points)))


@dataclass
class _State:
    running: dict[str, Trial] = field(default_factory=dict)
    ready: list[Trial] = field(default_factory=list)
    waiting: dict[str, list[Trial]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)


class Sweep:
    """Runs the trials of a sweep.

    Args:
        request: what was asked for.
        listed: the sweep, checked.
        say: told a line for each trial that ends.
        stop_requested: True ends the sweep; what runs is stopped and saved.

    Raises:
        UsageError: another process runs this sweep, or the folder cannot be used.
        CheckpointError: the folder holds another sweep, or a damaged ledger.
    """

    def __init__(self, request: SweepRequest, listed: ListedSweep, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
        self.request, self.listed, self._say, self._stop_requested = request, listed, say, stop_requested
        claim_folder(request.out, listed)
        sampled = listed.written.file.sample is not None
        self.ledger = Ledger(request.out / ledger_name(request.shard))
        try:
            check_other_shards(request.out, request.shard, sampled)
            self._before = read_ledgers(request.out).ended
        except BaseException:
            self.ledger.close()
            raise
        # Shards of a list never need one float network both; samplers may come to the same one at the same time.
        self._floats = "floats" if request.shard is None or not sampled else "floats-{}-of-{}".format(*request.shard)
        self._state = _State()
        if not sampled:
            self._queue: TrialQueue = Listed(listed.written, listed.of_shard(request.shard), self.ledger)
        else:
            self._queue = Sampled(listed.listing, listed.points, self.ledger, request.shard, request.retry_failed)
        self._retried: set[str] = set()

    def run(self, make_executor: MakeExecutor) -> None:
        """Run every trial that has not ended.

        Raises:
            InterruptedRunError: stopped on request; the ledger holds what has ended.
        """
        places = Places(str(self.request.out.resolve()), self.listed.written.file.prune is not None, self.request.threads, self._floats)
        executor = make_executor(places, self._watch, self._stop_requested)
        try:
            while True:
                self._fill(executor)
                if not self._state.running:
                    break
                ended = executor.wait()
                self._take(self._state.running.pop(ended.trial_id), ended.outcome)
        finally:
            executor.close()
        if self._stop_requested():
            raise InterruptedRunError("stopped; what has ended is in the ledger, the same command goes on")

    def close(self) -> None:
        """Let go of the ledger."""
        self.ledger.close()

    def _fill(self, executor: Executor) -> None:
        while len(self._state.running) < executor.slots and not self._stop_requested():
            trial = self._state.ready.pop() if self._state.ready else self._queue.next()
            if trial is None:
                return
            self._begin(trial, executor)

    def _begin(self, trial: Trial, executor: Executor) -> None:
        """Start a trial, unless it has ended, runs already, cannot run, or waits for its float network."""
        known = self._settled(trial)
        if known is not None:
            self._queue.tell(trial.id, known)
        elif trial.id in self._state.running:
            pass  # a sampler that asks twice is told of both when it ends
        elif trial.impossible:
            self._end(trial, Outcome("failed", error=trial.impossible))
        elif trial.float_id is not None and not self._float_is_there(trial, executor):
            pass
        else:
            self._submit(trial, executor)

    def _submit(self, trial: Trial, executor: Executor) -> None:
        self.ledger.started(trial.id, trial.name)
        self._retried.add(trial.id)
        self._state.running[trial.id] = trial
        executor.submit(trial)

    def _float_is_there(self, trial: Trial, executor: Executor) -> bool:
        """Whether the float network of a trial can be used; where it is still to be made, that comes first."""
        made = self.listed.listing.float_trial(trial)
        known = self._settled(made)
        if known is None:
            self._state.waiting.setdefault(made.id, []).append(trial)
            if made.id not in self._state.running:
                self._submit(made, executor)
            return False
        if known.status == "failed":
            self._end(trial, Outcome("failed", error=f"its float network failed: {known.error}"))
            return False
        return True

    def _settled(self, trial: Trial) -> Outcome | None:
        """How a trial ended, None where it is to be run."""
        outcome = self.ledger.history.ended.get(trial.id)
        if outcome is None and self.listed.written.file.sample is None:
            outcome = self._before.get(trial.id)  # in another shard
        if outcome is None or outcome.status in ("stopped", "lost"):
            return None
        if outcome.status == "failed" and self.request.retry_failed and trial.id not in self._retried:
            return None
        if trial.is_float and outcome.status == "finished" and not has_checkpoint(self.request.out / self._floats / trial.id / "best"):
            return None
        return outcome

    def _take(self, trial: Trial, outcome: Outcome) -> None:
        if outcome.status == "lost" and trial.id not in self._state.lost:
            self._state.lost.add(trial.id)
            self.ledger.ended(trial.id, trial.name, outcome)
            self._say(f"{trial.name}: the process it ran in died; once more")
            self._state.ready.append(trial)
            return
        self._end(trial, Outcome("failed", error=_DIED_TWICE) if outcome.status == "lost" else outcome)

    def _end(self, trial: Trial, outcome: Outcome) -> None:
        self.ledger.ended(trial.id, trial.name, outcome)
        self._say(_line(trial, outcome))
        if outcome.status != "stopped":
            self._queue.tell(trial.id, outcome)
            self._state.ready += reversed(self._state.waiting.pop(trial.id, []))

    def _watch(self, trial_id: str, epoch: int, value: float) -> bool:
        trial = self._state.running.get(trial_id)
        return trial is not None and not trial.is_float and self._queue.watch(trial_id, epoch, value)


def claim_folder(out: Path, listed: ListedSweep) -> None:
    """Make the folder of a sweep, or see that it holds this one.

    Raises:
        UsageError: it cannot be made, or holds other things.
        CheckpointError: it holds another sweep; the message says what differs.
    """
    mine = json.loads(json.dumps(listed.written.identity()))
    file = out / SWEEP_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if any(out.glob("ledger*.jsonl")):
                raise CheckpointError(f"{file} is missing beside a ledger; restore it, or choose another --out")
            trials = [{"id": trial.id, "name": trial.name, "varied": dict(trial.varied)} for _, trial in listed.trials]
            sampled = listed.written.file.sample is not None
            document = {"schema": 1, "digest": digest(mine), "sweep": mine, "trials": [] if sampled else trials}
            write_json(file, document)
            return
        stored: Any = read_bounded_json(file)
        theirs = stored["sweep"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out}: not a usable place for a sweep ({error}); choose another --out") from error
    differing = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
    if differing:
        raise CheckpointError(
            f"{out}: holds another sweep ({_differences(mine, theirs, differing)}); restore the file, or choose another --out"
        )


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], keys: list[str]) -> str:
    parts = []
    for key in keys:
        old, new = theirs.get(key), mine.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts += [
                f"{key}: {name} was {old.get(name)!r}, is {new.get(name)!r}" for name in {**old, **new} if old.get(name) != new.get(name)
            ]
        else:
            parts.append(f"{key} differs")
    return "; ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")


def _line(trial: Trial, outcome: Outcome) -> str:
    dice = outcome.document.get("dice", {})
    scored = " ".join(f"{name} {100 * value:.2f}" for name, value in dice.items() if value is not None)
    first = (outcome.error.splitlines() or [""])[0]
    return f"{trial.name}: {outcome.status}  {scored or first}  ({outcome.elapsed_s:.1f} s)"
