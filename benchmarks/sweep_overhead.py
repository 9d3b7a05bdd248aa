"""What a trial of a sweep costs beside its training: a tiny network in the sweep against the bare training loop of the same steps.

    python benchmarks/sweep_overhead.py [--trials 15]

4 channels, depth 2, patches of 32×32, 20 optimiser steps in two stages, on the built-in phantom. Given are seconds of processor time of
one thread (a busy machine stretches the wall clock, not these), the median and the quartiles over trials of different seeds: the bare
loop (forward, loss, backward, optimiser in plain torch, batches at hand), and the trial with what it spends them on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from medquant.config.schema import Config
from medquant.models import build_model
from medquant.quant.network import QuantNetwork
from medquant.report.tables import Table
from medquant.search.executors.base import Places
from medquant.search.run_trial import run_trial
from medquant.search.sweep import list_sweep
from medquant.search.trials import Trial
from medquant.train import finish as finish_module
from medquant.train import session as session_module
from medquant.train.batches import EpochBatches
from medquant.train.losses import segmentation_loss
from medquant.train.stage import StageRunner

SWEEP = """
set:
  data.patch_size: [32, 32]
  data.batch_size: 4
  data.augmentation: none
  train.epochs: 2
  train.warm_fraction: 0.5
  train.steps_per_epoch: 10
  train.threads: 1
  train.device: cpu
  train.float_twin: false
  model.channels: 4
  model.depth: 2
grid: {train.seed: [%s]}
"""
PARTS = ("optimiser steps", "batches", "validation", "scoring", "calibration", "check of the integer program")


class Clock:
    """Processor time by part; time inside an inner part is not counted twice."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time()

    def enter(self, part: str) -> None:
        self._book()
        self._open.append(part)

    def leave(self) -> None:
        self._book()
        self._open.pop()

    def _book(self) -> None:
        now = time.process_time()
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run


def watch_parts(clock: Clock) -> None:
    """Every trial from now on is booked by part."""
    StageRunner._step = clock.timed("optimiser steps", StageRunner._step)  # type: ignore[method-assign]
    session_module.mean_dice = clock.timed("validation", session_module.mean_dice)  # type: ignore[attr-defined]
    finish_module.evaluate_cases = clock.timed("scoring", finish_module.evaluate_cases)  # type: ignore[attr-defined]
    QuantNetwork.calibrate = clock.timed("calibration", QuantNetwork.calibrate)  # type: ignore[method-assign]
    finish_module.check_agreement = clock.timed("check of the integer program", finish_module.check_agreement)  # type: ignore[attr-defined]
    load = EpochBatches.epoch

    def epoch(self: EpochBatches, *args: int, **kwargs: bool) -> Iterator[Any]:
        batches = load(self, *args, **kwargs)
        following = clock.timed("batches", lambda: next(batches, None))
        while (batch := following()) is not None:
            yield batch

    EpochBatches.epoch = epoch  # type: ignore[method-assign]


def bare_loop(config: Config, steps: int) -> float:
    """Seconds of the same steps of the same float network, without medquant's session."""
    model = config.model
    torch.manual_seed(config.train.seed)
    options = model.model_dump(exclude={"name", "arguments"})
    network = build_model(model.name, in_channels=1, out_channels=3, size=config.data.patch_size, **options)
    network = network.to(memory_format=torch.channels_last)
    images = torch.randn(config.data.batch_size, 1, *config.data.patch_size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (config.data.batch_size, *config.data.patch_size))
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.train.lr)
    started = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        segmentation_loss(network(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    return time.process_time() - started


def measure(trials: list[Trial], out: Path, clock: Clock) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for number, trial in enumerate(trials):
        config = Config.model_validate_json(json.dumps(dict(trial.config)))
        bare = bare_loop(config, config.train.epochs * config.train.steps_per_epoch)
        clock.spent.clear()
        started = time.process_time()
        outcome = run_trial(trial, Places(str(out)))
        whole = time.process_time() - started
        if outcome.status != "finished":
            raise SystemExit(f"{trial.name}: {outcome.error}")
        if number == 0:
            continue  # opens the dataset and captures the network: once a sweep
        found["bare loop"].append(bare)
        found["trial"].append(whole)
        for part in PARTS:
            found[f"  {part}"].append(clock.spent[part])
        found["  everything else"].append(whole - sum(clock.spent[part] for part in PARTS))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Processor time of a trial of a sweep, by part, beside the bare training loop.")
    parser.add_argument("--trials", type=int, default=15)
    count = parser.parse_args().trials
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "overhead.yaml"
        file.write_text(SWEEP % ", ".join(str(seed) for seed in range(count + 1)))
        trials = [trial for _, trial in list_sweep(file).trials]
        watch_parts(clock)
        found = measure(trials, Path(folder), clock)
    rows = []
    for part, seconds in found.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        rows.append((part, f"{1000 * middle:.0f}", f"{1000 * low:.0f}–{1000 * high:.0f}"))
    print(Table(("milliseconds of processor time", "median", "quartiles"), tuple(rows)).to_text())


if __name__ == "__main__":
    main()
