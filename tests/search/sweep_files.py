"""Sweeps small enough to be run many times inside one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medquant.search.executors.base import Ended, Places, Watch
from medquant.search.executors.here import Here
from medquant.search.ledger import History, read_ledgers
from medquant.search.run_trial import shared
from medquant.search.sweep import Sweep, SweepRequest, list_sweep
from medquant.search.trials import Outcome, Trial

SMALL_SET = """
set:
  data.patch_size: [32, 32]
  data.batch_size: 2
  data.augmentation: none
  train.epochs: 2
  train.warm_fraction: 0.5
  train.steps_per_epoch: 2
  train.threads: 1
  train.device: cpu
  model.channels: 2
  model.depth: 2
"""


def write_sweep(folder: Path, text: str) -> Path:
    """A sweep file of small runs; ``text`` comes after what they have in common."""
    file = folder / "small.yaml"
    file.write_text(SMALL_SET + text)
    return file


class Scripted:
    """An executor that trains nothing: what comes of a trial, a function of it says."""

    def __init__(self, answer: Callable[[Trial], Outcome], slots: int = 1) -> None:
        self.slots, self.answer = slots, answer
        self.submitted: list[Trial] = []
        self._under_way: list[Trial] = []
        self.watch: Watch = lambda trial_id, epoch, value: False

    def __call__(self, places: Places, watch: Watch, stop_requested: Callable[[], bool]) -> Scripted:
        self.watch = watch
        return self

    def submit(self, trial: Trial) -> None:
        self.submitted.append(trial)
        self._under_way.append(trial)

    def wait(self) -> Ended:
        trial = self._under_way.pop(0)
        return Ended(trial.id, self.answer(trial))

    def close(self) -> None:
        self._under_way.clear()


def finished(dice: float = 0.5) -> Outcome:
    """What a trial that went well comes to."""
    return Outcome("finished", {"dice": {"organ": dice}, "validation_dice": dice, "memory": {"parameter_bytes": 100}, "curve": [[0, dice]]})


def run_scripted(file: Path, out: Path, executor: Scripted, **request: object) -> History:
    """Run a sweep with a scripted executor; what its ledgers say."""
    sweep = Sweep(SweepRequest(file, out, **request), list_sweep(file), lambda line: None, lambda: False)  # type: ignore[arg-type]
    try:
        sweep.run(executor)
    finally:
        sweep.close()
    return read_ledgers(out)


def run_here(file: Path, out: Path, stop_requested: Callable[[], bool] = lambda: False) -> History:
    """Run a sweep for real, in this process."""
    sweep = Sweep(SweepRequest(file, out), list_sweep(file), lambda line: None, stop_requested)
    try:
        sweep.run(Here)
    finally:
        sweep.close()
    return read_ledgers(out)


def forget_shared() -> None:
    """What an earlier test opened is not what this one opens."""
    shared.cache_clear()
