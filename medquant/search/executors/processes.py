"""Trials in processes of their own, which stay from trial to trial: what one of them opened or captured serves all its trials."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from medquant.search.executors.base import Ended, Places, Watch
from medquant.search.trials import Outcome, Trial

_TRIAL, _STOP, _ANSWER, _EPOCH, _ENDED = "trial", "stop", "answer", "epoch", "ended"
_LOOK_S = 0.5
"""How often a stop request is looked for while nothing happens."""

_LAST_WORD_S = 10.0


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    trial: Trial | None = None
    told_to_stop: bool = False


class Processes:
    """See :class:`medquant.search.executors.base.Executor`.

    Args:
        places: where trials find and leave things.
        watch: told of each epoch where trials are watched.
        stop_requested: True stops what runs.
        slots: number of processes.
    """

    def __init__(self, places: Places, watch: Watch, stop_requested: Callable[[], bool], slots: int) -> None:
        self.slots = slots
        self._places, self._watch, self._stop_requested = places, watch, stop_requested
        # Spawned: a forked copy of a process that runs threads may wait for a lock nobody holds any more.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

    def submit(self, trial: Trial) -> None:
        """Hand a trial to a process that has none, started where there are fewer than slots."""
        free = next((worker for worker in self._workers if worker.trial is None), None)
        if free is None:
            free = self._start()
        free.trial = trial
        # One that has died meanwhile is found out by waiting for it.
        with contextlib.suppress(OSError):
            free.pipe.send((_TRIAL, trial.to_json()))

    def wait(self) -> Ended:
        """The next trial that ends."""
        while True:
            if self._stop_requested():
                self._tell_to_stop()
            busy = [worker for worker in self._workers if worker.trial is not None]
            ready = wait([worker.pipe for worker in busy], timeout=_LOOK_S)
            for worker in busy:
                if worker.pipe in ready and (ended := self._receive(worker)) is not None:
                    return ended

    def close(self) -> None:
        """End the processes; a trial under way is given up."""
        for worker in self._workers:
            if worker.trial is not None:
                worker.process.kill()
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(_LAST_WORD_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def _start(self) -> _Worker:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._places.to_json()), daemon=False)
        process.start()
        theirs.close()
        worker = _Worker(process, mine)
        self._workers.append(worker)
        return worker

    def _receive(self, worker: _Worker) -> Ended | None:
        trial = worker.trial
        if trial is None:
            return None
        try:
            kind, *values = worker.pipe.recv()
            if kind == _EPOCH:
                worker.pipe.send((_ANSWER, self._watch(trial.id, values[0], values[1])))
                return None
        except (EOFError, OSError):
            return self._bury(worker, trial)
        worker.trial = None
        return Ended(trial.id, Outcome.from_json(values[0]))

    def _bury(self, worker: _Worker, trial: Trial) -> Ended:
        worker.process.join(_LAST_WORD_S)
        code = worker.process.exitcode
        worker.pipe.close()
        self._workers.remove(worker)
        return Ended(trial.id, Outcome("lost", error=f"its process ended with {code}"))

    def _tell_to_stop(self) -> None:
        for worker in self._workers:
            if worker.trial is not None and not worker.told_to_stop:
                worker.told_to_stop = True
                with contextlib.suppress(OSError):
                    worker.pipe.send((_STOP, None))


def _work(pipe: Connection, places: dict[str, Any]) -> None:
    """What a process does: one trial after another, until the sweep closes the pipe or is gone."""
    # Ctrl-C goes to every process of a terminal; the sweep answers it and says so through the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from medquant.search.run_trial import run_trial

    messages = _Messages(pipe)
    where = Places(**places)
    report = messages.report if where.watched else None
    while (trial := messages.next_trial()) is not None:
        outcome = run_trial(Trial.from_json(trial), where, report, messages.stop_requested)
        pipe.send((_ENDED, outcome.to_json()))


class _Messages:
    """The worker's end of the pipe; a request to stop may come at any time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._stopped = pipe, False

    def next_trial(self) -> dict[str, Any] | None:
        """The next trial, None where the sweep is over."""
        try:
            trial: dict[str, Any] = self._await(_TRIAL)
            return trial
        except EOFError:
            return None

    def report(self, epoch: int, value: float) -> bool:
        """Tell the sweep of an epoch, and wait for its answer."""
        self._pipe.send((_EPOCH, epoch, value))
        return bool(self._await(_ANSWER))

    def stop_requested(self) -> bool:
        """Whether the sweep has asked to stop."""
        if not self._stopped and self._pipe.poll():
            self._stopped = self._pipe.recv()[0] == _STOP
        return self._stopped

    def _await(self, kind: str) -> Any:
        while True:
            found, value = self._pipe.recv()
            if found == kind:
                return value
            self._stopped = self._stopped or found == _STOP


def _end_with_parent() -> None:
    """A killed sweep starts anew and runs the trial again: nobody else may be writing its run folder then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
