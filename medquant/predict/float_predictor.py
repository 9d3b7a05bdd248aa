"""From normalised slices to masks by a float network in torch: the twin an integer program is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medquant.data.volume import FloatArray, LabelArray
from medquant.predict.predictors import MaskPredictor


class FloatPredictor(MaskPredictor):
    """A torch network in evaluation mode, float32."""

    name = "float"

    def __init__(self, network: nn.Module, size_multiple: int, dimensions: int = 2) -> None:
        super().__init__(size_multiple, dimensions)
        self.network = network
        self.device = next(network.parameters()).device

    def _predict(self, images: FloatArray) -> LabelArray:
        logits = self._logits(images)
        if logits.shape[1] == 1:
            mask: NDArray[np.uint8] = (logits[:, 0] > 0).to(torch.uint8).cpu().numpy()
            return mask
        chosen: NDArray[np.uint8] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
        return chosen

    def _levels(self, images: FloatArray) -> FloatArray:
        levels: FloatArray = self._logits(images).cpu().numpy()
        return levels

    def _logits(self, images: FloatArray) -> torch.Tensor:
        was_training = self.network.training
        self.network.eval()
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            logits: torch.Tensor = self.network(x.contiguous(memory_format=torch.channels_last) if self.dimensions == 2 else x)
        self.network.train(was_training)
        return logits
