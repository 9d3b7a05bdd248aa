"""Batches of an epoch, from any step on, so that a resumed epoch goes on with the samples that were left."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from medquant.config.schema import DataConfig
from medquant.data.patches import PatchDataset
from medquant.train.distributed import ALONE, Group

_PREFETCHED = 3
"""Batches a worker prepares ahead."""

_SHARED_MEMORY = Path("/dev/shm")


class EpochBatches:
    """Loads the training batches of one epoch after another; the same ones however many processes do it.

    Args:
        dataset: deterministic in (seed, epoch, index).
        data: batch size and worker count.
        device: where batches go.
        channels_last: memory layout of 2D images.
        group: processes that share every batch.
    """

    def __init__(self, dataset: PatchDataset, data: DataConfig, device: torch.device, channels_last: bool, group: Group = ALONE) -> None:
        self.device = device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self._plan = _EpochPlan(data.batch_size, group)
        workers = _workers(data, len(data.patch_size))
        # Workers stay from epoch to epoch: starting them costs as much as several steps. The loader gets a generator of its
        # own, because it draws a number even where nothing is random, and a resumed epoch makes one loader more.
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=_PREFETCHED if workers else None,
            worker_init_fn=_start_worker,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )
        if workers:
            atexit.register(self.close)

    def epoch(self, epoch: int, first_step: int, steps: int, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, C, H, W) float32 and labels (N, H, W) int64 of steps ``first_step`` to ``steps - 1`` of an epoch.

        Of each batch this process's part, or with ``whole`` all of it.
        """
        self._plan.choose(epoch, first_step, steps, whole)
        for images, labels in self._loader:
            moved = images.to(self.device, non_blocking=True)
            yield moved.contiguous(memory_format=self.layout), labels.to(self.device, non_blocking=True)

    def close(self) -> None:
        """End the workers. They ignore the signal Python ends them with, so it would wait for them for ever when it exits."""
        atexit.unregister(self.close)
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


KILLED = "a process that loads patches was killed, perhaps for want of memory; continue with --resume where more is free"


def worker_was_killed(error: RuntimeError) -> bool:
    """Whether this is torch's way of saying so: its signal handler raises it wherever the training process happens to be."""
    text = str(error)
    return text.startswith("DataLoader worker") and ("exited unexpectedly" in text or "killed by signal" in text)


def _start_worker(number: int) -> None:
    """Ctrl-C, and the end of a batch job, go to every process: the training process answers them, saves, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _EpochPlan(Sampler[list[tuple[int, int]]]):
    """Epoch and index of every sample, batch by batch: workers that stay need to be told the epoch with each sample."""

    def __init__(self, batch_size: int, group: Group = ALONE) -> None:
        self.batch_size, self._group = batch_size, group
        self.choose(0, 0, 0)

    def choose(self, epoch: int, first_step: int, steps: int, whole: bool = False) -> None:
        """Decide what the next pass yields."""
        self._epoch, self._steps, self._sharing = epoch, range(first_step, steps), ALONE if whole else self._group

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Bound now: the plan of the next epoch must not reach into this pass.
        epoch, steps, sharing = self._epoch, self._steps, self._sharing
        for step in steps:
            yield [(epoch, index) for index in sharing.share(range(step * self.batch_size, (step + 1) * self.batch_size))]

    def __len__(self) -> int:
        return len(self._steps)


def _workers(data: DataConfig, axes: int) -> int:
    """Processes beside this one: as asked for, else one where there is a second processor and room to hand batches over."""
    if data.workers is not None:
        return data.workers
    pixels = data.batch_size
    for side in data.patch_size[:axes]:
        pixels *= side
    # float32 images of a few channels and int64 labels, for every batch on its way; a container may have very little.
    needed = pixels * 32 * (_PREFETCHED + 2)
    room = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if processors > 1 and room > needed else 0
