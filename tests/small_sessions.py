"""Training runs small enough to be made many times inside one process, and what they have to leave as they found it."""

from __future__ import annotations

import functools
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from medquant.data.datasets import phantom
from medquant.data.volume import Dataset
from medquant.train import finish as finish_module
from medquant.train import rescore as rescore_module
from medquant.train.finish import Finished, finish
from medquant.train.reporting import SilentReporter
from medquant.train.session import TrainingSession
from medquant.train.start import TrainRequest, start_training

SMALL = (
    "train.epochs=3",
    "train.warm_fraction=0.34",
    "train.steps_per_epoch=2",
    "train.threads=1",
    "train.device=cpu",
    "data.batch_size=2",
    "data.workers=0",
    "data.patch_size=[32,32]",
    "model.channels=2",
    "model.depth=3",
)
"""One warm epoch, two float and two quantized ones, of two steps each; quantized to W4A6."""

STEPS = 10
"""Optimiser steps of all stages of such a run: 2 warm, 4 float, 4 quantized."""

SLICE_SIDE = 45
"""Pixels along the sides of a slice: no multiple of 4, so that scoring pads and cuts."""

PROCESS_PEAK_BYTES = 1_234_567
"""What the measured memory of a process is replaced by: measuring it starts a child each time."""

_make_phantom = phantom.make_phantom


def small_phantom(seed: int = 0) -> Dataset:
    """Three subjects of one site (one for each part), two slices each."""
    return _make_phantom(seed, subjects_per_site=3, sites=1, slices=2, size=SLICE_SIDE, spacing_mm=1.0)


@contextmanager
def small_world() -> Iterator[pytest.MonkeyPatch]:
    """The built-in phantom is the small one, no process is measured; torch settings, generators and signal handlers are put back."""
    cudnn = torch.backends.cudnn
    settings = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "make_phantom", small_phantom)
        for module in (finish_module, rescore_module):
            patch.setattr(module, "measure_process_peak", lambda *_: PROCESS_PEAK_BYTES)
        try:
            yield patch
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            random.setstate(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002
            torch.set_rng_state(generators[2])
            torch.set_num_threads(settings[0])
            cudnn.benchmark, cudnn.deterministic = settings[1:]


def after_steps(count: int) -> Callable[[], bool]:
    """A stop request that comes with the ``count``-th optimiser step."""
    asked = iter(range(1, 10**9))
    return lambda: next(asked) >= count


def start_small(out: Path, *overrides: str, stop_requested: Callable[[], bool] = lambda: False) -> TrainingSession:
    """A new small run; ``overrides`` come after those of ``SMALL``."""
    return start_training(TrainRequest(overrides=(*SMALL, *overrides), out=out), SilentReporter(), stop_requested)


def resume_small(out: Path) -> TrainingSession:
    """An existing run, reopened."""
    return start_training(TrainRequest(out=out, resume=True), SilentReporter(), lambda: False)


def train_small(out: Path, *overrides: str, pictures: bool = False) -> Finished:
    """Train, export and score a small run."""
    session = start_small(out, *overrides)
    session.run()
    return finish_small(session, pictures)


def finish_small(session: TrainingSession, pictures: bool = False) -> Finished:
    """Export and score; drawing takes longer than all the rest, so it is left out unless asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(finish_module, "draw_pictures", lambda *_: None)
        return finish(session)


@functools.cache
def finished_run(base: Path) -> Path:
    """A finished small run with everything in it, made once; not to be changed."""
    with small_world():
        train_small(base / "finished-run", pictures=True)
    return base / "finished-run"


def trained_bits(run: Path) -> dict[str, object]:
    """Every file of the checkpoints, and the records without their times."""
    found: dict[str, object] = {
        str(file.relative_to(run)): file.read_bytes() for folder in ("best", "float", "warm", "last") for file in run.glob(f"{folder}/*")
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{key: value for key, value in record.items() if not key.endswith("_s")} for record in records]
    return found


def half_written(folder: Path) -> list[str]:
    """Temporary files that were left behind anywhere below a folder."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.part"))
