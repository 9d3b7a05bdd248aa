"""Batches of an epoch, from any step on, so that a resumed epoch goes on with the samples that were left."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from medquant.config.schema import DataConfig
from medquant.data.patches import PatchDataset


class EpochBatches:
    """Loads the training batches of one epoch after another.

    Args:
        dataset: deterministic in (seed, epoch, index).
        data: batch size and worker count.
        device: where batches go.
        channels_last: memory layout of 2D images.
    """

    def __init__(self, dataset: PatchDataset, data: DataConfig, device: torch.device, channels_last: bool) -> None:
        self.dataset, self.data, self.device = dataset, data, device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def epoch(self, epoch: int, first_step: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, 1, H, W) float32 and labels (N, H, W) int64 of steps ``first_step`` to ``steps - 1`` of an epoch."""
        self.dataset.set_epoch(epoch)
        size = self.data.batch_size
        part = Subset(self.dataset, range(first_step * size, steps * size))
        # A fresh loader each epoch: workers copy the dataset's epoch number when they start. It gets a generator of its own,
        # because it draws a number even where nothing is random, and a resumed epoch makes one loader more.
        loader = DataLoader(
            part,
            batch_size=size,
            num_workers=self.data.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        for images, labels in loader:
            moved = images.to(self.device, non_blocking=True)
            yield moved.contiguous(memory_format=self.layout), labels.to(self.device, non_blocking=True)
