"""From normalised slices to masks: what every predictor shares, and the one that runs an integer program. Knows no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import FloatArray, LabelArray
from medquant.deploy.decide import decide, quantize_image, real_outputs
from medquant.deploy.engines import open_engine
from medquant.errors import InputError
from medquant.quant.program import IntegerProgram

Number = TypeVar("Number", bound=np.generic)

_PIXELS_AT_ONCE = 512 * 512
"""Images are run together up to this many pixels; more brings no speed and takes memory."""


class MaskPredictor(ABC):
    """Predicts the class number of every pixel.

    Args:
        size_multiple: the network takes images whose sides are multiples of this; others are continued by their edge.
        dimensions: 2 where it takes slices (I, J), 3 where it takes volumes (I, J, K).
    """

    name: str

    def __init__(self, size_multiple: int, dimensions: int = 2) -> None:
        self.size_multiple, self.dimensions = size_multiple, dimensions

    @abstractmethod
    def _predict(self, images: FloatArray) -> LabelArray:
        """(N, C, *S) of fitting size to (N, *S)."""

    @abstractmethod
    def _levels(self, images: FloatArray) -> FloatArray:
        """(N, C, *S) of fitting size to the network's outputs (N, O, *S)."""

    def __call__(self, images: FloatArray) -> LabelArray:
        """Normalised images float32 (N, C, *S), any size, S of ``dimensions`` axes → class numbers uint8 (N, *S)."""
        return self._in_groups(images, self._predict)

    def levels(self, images: FloatArray) -> FloatArray:
        """Normalised images float32 (N, C, *S), any size → the one output before it is decided, (N, *S), above 0 for class 1.

        Raises:
            InputError: the network has several outputs.
        """
        return self._in_groups(images, self._only_output)

    def _only_output(self, images: FloatArray) -> FloatArray:
        outputs = self._levels(images)
        if outputs.shape[1] != 1:
            raise InputError(f"the network has {outputs.shape[1]} outputs, expected one: a threshold decides between two classes only")
        return outputs[:, 0]

    def _in_groups(self, images: FloatArray, run: Callable[[FloatArray], NDArray[Number]]) -> NDArray[Number]:
        size = images.shape[2:]
        padded = np.pad(images, [(0, 0), (0, 0), *((0, -length % self.size_multiple) for length in size)], mode="edge")
        at_once = max(1, _PIXELS_AT_ONCE // math.prod(padded.shape[2:]))
        results = [run(padded[start : start + at_once]) for start in range(0, len(padded), at_once)]
        return np.concatenate(results)[(slice(None), *(slice(length) for length in size))]


class ProgramPredictor(MaskPredictor):
    """An integer program on one of the engines."""

    def __init__(self, program: IntegerProgram, size_multiple: int, engine: str = "auto") -> None:
        super().__init__(size_multiple, program.dimensions)
        self.program = program
        self.engine = open_engine(engine, program)
        self.name = self.engine.info.name

    def _predict(self, images: FloatArray) -> LabelArray:
        quantized = quantize_image(images, self.program.format_of(self.program.image.name))
        return decide(self.engine.run(quantized), self.program)

    def _levels(self, images: FloatArray) -> FloatArray:
        quantized = quantize_image(images, self.program.format_of(self.program.image.name))
        return real_outputs(self.engine.run(quantized), self.program)
