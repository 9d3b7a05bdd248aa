"""From normalised slices to masks by a float network in torch: the twin an integer program is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from medquant.data.volume import FloatArray, LabelArray
from medquant.errors import InputError
from medquant.predict.predictors import MaskPredictor
from medquant.quant.batch_norm import with_batch_statistics
from medquant.quant.ternary_tanh import hardened


@dataclass(frozen=True)
class Decision:
    """How a network that torch runs is evaluated, and its one output decided. The defaults are what every engine does.

    Args:
        threshold: probability above which a pixel is class 1.
        batch_statistics: batch norm takes the mean and variance of what it is shown, not those of training.
        hard_ternary: ternary tanhs are replaced by their limit.
    """

    threshold: float = 0.5
    batch_statistics: bool = False
    hard_ternary: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether every engine could do it."""
        return self == Decision()

    @property
    def level(self) -> float:
        """The output above which a pixel is class 1: 0 at a probability of one half."""
        return 0.0 if self.threshold == 0.5 else math.log(self.threshold / (1.0 - self.threshold))


PLAIN = Decision()


class FloatPredictor(MaskPredictor):
    """A torch network in evaluation mode, float32.

    Args:
        network: what predicts.
        size_multiple: as for :class:`MaskPredictor`.
        dimensions: as for :class:`MaskPredictor`.
        only_size: the one size of images the network takes, None where any multiple will do. Others are seen through windows of
            that size that overlap by half; each voxel is decided by the window whose middle is nearest.
        decision: how its output is decided.
    """

    name = "float"

    def __init__(
        self,
        network: nn.Module,
        size_multiple: int,
        dimensions: int = 2,
        only_size: Sequence[int] | None = None,
        decision: Decision = PLAIN,
    ) -> None:
        super().__init__(size_multiple, dimensions)
        self.network, self.only_size = network, None if only_size is None else tuple(only_size)
        self.decision = decision
        self.device = next(network.parameters()).device

    def _predict(self, images: FloatArray) -> LabelArray:
        logits = self._logits(images)
        if logits.shape[1] == 1:
            mask: NDArray[np.uint8] = (logits[:, 0] > self.decision.level).to(torch.uint8).cpu().numpy()
            return mask
        chosen: NDArray[np.uint8] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
        return chosen

    def _levels(self, images: FloatArray) -> FloatArray:
        levels: FloatArray = self._logits(images).cpu().numpy()
        return levels

    def _logits(self, images: FloatArray) -> torch.Tensor:
        was_training = self.network.training
        self.network.eval()
        with torch.inference_mode(), self._as_decided():
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            x = x.contiguous(memory_format=torch.channels_last) if self.dimensions == 2 else x
            logits: torch.Tensor = self.network(x) if self.only_size is None else _in_windows(self.network, x, self.only_size)
        self.network.train(was_training)
        return logits

    @contextmanager
    def _as_decided(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.decision.hard_ternary:
                stack.enter_context(hardened(self.network))
            if self.decision.batch_statistics:
                stack.enter_context(with_batch_statistics(self.network))
            yield


def _in_windows(network: nn.Module, images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The logits (N, O, *S) of images (N, C, *S), a window at a time; smaller images are continued by their edge."""
    lengths = images.shape[2:]
    missing = [max(0, wanted - length) for wanted, length in zip(size, lengths, strict=True)]
    if any(missing):
        around = [amount for wanted in reversed(missing) for amount in (0, wanted)]
        images = F.pad(images, around, mode="replicate")
    whole: torch.Tensor | None = None
    for places in product(*(_windows(length, wanted) for length, wanted in zip(images.shape[2:], size, strict=True))):
        seen = images[(slice(None), slice(None), *(slice(start, start + wanted) for (start, _), wanted in zip(places, size, strict=True)))]
        logits: torch.Tensor = network(seen)
        if whole is None:
            whole = logits.new_empty((*logits.shape[:2], *images.shape[2:]))
        kept = tuple(slice(keep.start, keep.stop) for _, keep in places)
        inside = tuple(slice(keep.start - start, keep.stop - start) for start, keep in places)
        whole[(slice(None), slice(None), *kept)] = logits[(slice(None), slice(None), *inside)]
    if whole is None:
        raise InputError(f"an image of {tuple(lengths)} voxels has nothing to predict")
    return whole[(slice(None), slice(None), *(slice(length) for length in lengths))]


def _windows(length: int, size: int) -> list[tuple[int, range]]:
    """First voxel of each window along an axis, and the voxels it decides."""
    starts = [*range(0, length - size, max(1, size // 2)), length - size]
    ends = [(first + size + second) // 2 for first, second in pairwise(starts)]
    return [(start, range(low, high)) for start, low, high in zip(starts, [0, *ends], [*ends, length], strict=True)]
