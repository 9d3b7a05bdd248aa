"""From normalised slices to masks, by a float network or by an integer program; both pad and cut the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medquant.data.volume import FloatArray, LabelArray
from medquant.deploy.decide import decide, quantize_image
from medquant.deploy.engines import get_engine
from medquant.quant.program import IntegerProgram

_PIXELS_AT_ONCE = 512 * 512
"""Slices are run together up to this many pixels; more brings no speed and takes memory."""


class MaskPredictor(ABC):
    """Predicts the class number of every pixel.

    Args:
        size_multiple: the network takes images whose sides are multiples of this; others are continued by their edge.
    """

    name: str

    def __init__(self, size_multiple: int) -> None:
        self.size_multiple = size_multiple

    @abstractmethod
    def _predict(self, images: FloatArray) -> LabelArray:
        """(N, C, I, J) of fitting size to (N, I, J)."""

    def __call__(self, images: FloatArray) -> LabelArray:
        """Normalised images float32 (N, C, I, J), any size → class numbers uint8 (N, I, J)."""
        rows, columns = images.shape[2:]
        padding = [(0, 0), (0, 0), (0, -rows % self.size_multiple), (0, -columns % self.size_multiple)]
        padded = np.pad(images, padding, mode="edge")
        at_once = max(1, _PIXELS_AT_ONCE // (padded.shape[2] * padded.shape[3]))
        masks = [self._predict(padded[start : start + at_once]) for start in range(0, len(padded), at_once)]
        return np.concatenate(masks)[:, :rows, :columns]


class FloatPredictor(MaskPredictor):
    """A torch network in evaluation mode, float32."""

    name = "float"

    def __init__(self, network: nn.Module, size_multiple: int) -> None:
        super().__init__(size_multiple)
        self.network = network
        self.device = next(network.parameters()).device

    def _predict(self, images: FloatArray) -> LabelArray:
        was_training = self.network.training
        self.network.eval()
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            logits = self.network(x.contiguous(memory_format=torch.channels_last))
        self.network.train(was_training)
        if logits.shape[1] == 1:
            mask: NDArray[np.uint8] = (logits[:, 0] > 0).to(torch.uint8).cpu().numpy()
            return mask
        chosen: NDArray[np.uint8] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
        return chosen


class ProgramPredictor(MaskPredictor):
    """An integer program on one of the engines."""

    def __init__(self, program: IntegerProgram, size_multiple: int, engine: str = "auto") -> None:
        super().__init__(size_multiple)
        self.program = program
        self.engine = get_engine(engine)(program)
        self.name = self.engine.info.name

    def _predict(self, images: FloatArray) -> LabelArray:
        quantized = quantize_image(images, self.program.format_of(self.program.image.name))
        return decide(self.engine.run(quantized), self.program)
