"""Trials in the process of the sweep itself, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from medquant.search.executors.base import Ended, Places, Watch
from medquant.search.run_trial import run_trial
from medquant.search.trials import Trial


class Here:
    """See :class:`medquant.search.executors.base.Executor`."""

    def __init__(self, places: Places, watch: Watch, stop_requested: Callable[[], bool]) -> None:
        self.slots = 1
        self._places, self._watch, self._stop_requested = places, watch, stop_requested
        self._waiting: list[Trial] = []

    def submit(self, trial: Trial) -> None:
        """Note a trial; it runs when its end is waited for."""
        self._waiting.append(trial)

    def wait(self) -> Ended:
        """Run the next trial."""
        trial = self._waiting.pop(0)
        report = (lambda epoch, value: self._watch(trial.id, epoch, value)) if self._places.watched else None
        return Ended(trial.id, run_trial(trial, self._places, report, self._stop_requested))

    def close(self) -> None:
        """Forget what has not run."""
        self._waiting.clear()
