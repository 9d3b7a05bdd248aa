"""The same batches come out whoever makes them, and from whichever step on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from medquant.config.schema import DataConfig
from medquant.data.augment import Augmenter
from medquant.data.normalise import Normalisation
from medquant.data.patches import PatchDataset
from medquant.data.prepared import Preparation, prepare_case
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
from medquant.train import batches as batches_module
from medquant.train.batches import EpochBatches

SIZE, STEPS = (16, 16), 3


def _loader(workers: int | None) -> EpochBatches:
    random = np.random.default_rng(0)
    image, mask = random.normal(size=(24, 20, 5)).astype(np.float32), (random.random((24, 20, 5)) > 0.8).astype(np.uint8)
    case = Case("a", "a", "", Volume(image, np.eye(4)), Volume(mask, np.eye(4)), "made")
    prepared = prepare_case(case, Preparation(Normalisation("zscore_slice")), ArrayCache(None))
    dataset = PatchDataset([prepared], SIZE, Augmenter("mr", SIZE), 2 * STEPS, seed=3)
    return EpochBatches(dataset, DataConfig(batch_size=2, patch_size=SIZE, workers=workers), torch.device("cpu"), channels_last=True)


def _all(loader: EpochBatches, first_step: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [batch for epoch in (0, 1) for batch in loader.epoch(epoch, first_step, STEPS)]


def test_workers_do_not_change_the_batches() -> None:
    expected = _all(_loader(0))
    assert len(expected) == 2 * STEPS
    assert not torch.equal(expected[0][0], expected[STEPS][0])  # another epoch, other patches
    for workers in (1, 2):
        loader = _loader(workers)
        for (image, label), (wanted, target) in zip(_all(loader), expected, strict=True):
            assert torch.equal(image, wanted)
            assert torch.equal(label, target)
        loader.close()


def test_an_epoch_goes_on_in_its_middle() -> None:
    whole, rest = _all(_loader(0)), _all(_loader(0), first_step=2)
    for (image, _), (wanted, _) in zip(rest, (whole[2], whole[STEPS + 2]), strict=True):
        assert torch.equal(image, wanted)
    # A pass that was given up leaves nothing for the next one.
    loader = _loader(1)
    next(loader.epoch(0, 0, STEPS))
    assert torch.equal(next(loader.epoch(1, 1, STEPS))[0], whole[STEPS + 1][0])
    loader.close()


def _run_in_a_process(code: str) -> str:
    """What the code prints, run in a process of its own with this module as ``t``."""
    path = os.pathsep.join(entry for entry in [str(Path(__file__).parent), *sys.path] if entry)
    child = subprocess.run(
        [sys.executable, "-c", f"import test_batches as t\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    return child.stdout.strip() or child.stderr


def test_a_killed_worker_is_recognised() -> None:
    # In a process of its own: torch raises from a signal handler, wherever the process happens to be.
    code = """
import os, signal, time
loader = t._loader(1)
batches = loader.epoch(0, 0, t.STEPS)
next(batches)
try:
    os.kill(loader._loader._iterator._workers[0].pid, signal.SIGKILL)
    time.sleep(60)
except RuntimeError as error:
    print(t.batches_module.worker_was_killed(error), t.batches_module.worker_was_killed(RuntimeError("out of cheese")))
loader.close()
"""
    assert _run_in_a_process(code) == "True False"


def test_workers_leave_signals_to_the_training_process() -> None:
    loader = _loader(1)
    batches = loader.epoch(0, 0, STEPS)
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(loader._loader._iterator._workers[0].pid, number)
    assert len(list(batches)) == STEPS - 1
    workers = list(loader._loader._iterator._workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_python_exits_although_nobody_closed_the_loader() -> None:
    # It would wait for its workers, which ignore the signal that is to end them.
    assert _run_in_a_process("loader = t._loader(1); batches = loader.epoch(0, 0, 3); next(batches); print('done')") == "done"


def test_a_second_processor_gets_a_worker_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    data = DataConfig(batch_size=4, patch_size=(256, 256))
    # 4 × 256 × 256 pixels × 32 bytes × 5 batches on their way = 40 MiB.
    for free, processors, expected in ((41 * 2**20, 2, 1), (39 * 2**20, 2, 0), (41 * 2**20, 1, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(free))
        monkeypatch.setattr(batches_module.os, "sched_getaffinity", lambda _, count=processors: set(range(count)), raising=False)
        assert batches_module._workers(data, 2) == expected
    assert batches_module._workers(data.model_copy(update={"workers": 5}), 2) == 5
