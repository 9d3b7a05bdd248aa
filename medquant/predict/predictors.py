"""From normalised slices to masks: what every predictor shares, and the one that runs an integer program. Knows no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import FloatArray, LabelArray
from medquant.deploy.decide import quantize_image, real_outputs
from medquant.deploy.engines import open_engine
from medquant.errors import InputError
from medquant.predict.heads import split_program
from medquant.predict.tiles import TilePlan, plan_tiles, run_tiles
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
            raise several_outputs(outputs.shape[1])
        return outputs[:, 0]

    def _at_once(self, size: tuple[int, ...]) -> int:
        """How many images of these spatial axes are run together."""
        return max(1, _PIXELS_AT_ONCE // math.prod(size))

    def _in_groups(self, images: FloatArray, run: Callable[[FloatArray], NDArray[Number]]) -> NDArray[Number]:
        size = images.shape[2:]
        padding = [(0, 0), (0, 0), *((0, -length % self.size_multiple) for length in size)]
        padded = np.pad(images, padding, mode="edge") if np.any(padding) else images
        at_once = self._at_once(padded.shape[2:])
        results = [run(padded[start : start + at_once]) for start in range(0, len(padded), at_once)]
        return np.concatenate(results)[(slice(None), *(slice(length) for length in size))]


def several_outputs(count: int) -> InputError:
    """The refusal of levels where there is more than one output."""
    return InputError(f"the network has {count} outputs, expected one: a threshold decides between two classes only")


class ProgramPredictor(MaskPredictor):
    """An integer program on one of the engines.

    Args:
        program: the network.
        size_multiple: as for :class:`MaskPredictor`.
        engine: name of an engine, or ``auto``.
        notify: told why ``auto`` passes an engine over.
    """

    def __init__(
        self, program: IntegerProgram, size_multiple: int, engine: str = "auto", notify: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(size_multiple, program.dimensions)
        self.engine = open_engine(engine, program, notify=notify)
        # The engine's: one with weights of its own has let go of those of the file.
        self.program = self.engine.program
        self.name = self.engine.info.name
        self._split = split_program(program, self.name)
        if self._split is not None:
            # The whole is not run then, and its copy of the weights is not needed.
            self.engine = self._split.body
        self._room_bytes: int | None = None
        self._is_asked = False
        self._besides_bytes = 0
        self._plans: dict[tuple[int, ...], TilePlan] = {}

    def bound(self, room_bytes: int, is_asked: bool = False, besides_bytes: int = 0) -> None:
        """From now on, run images in tiles where the network would take more memory than this; the masks stay what they are.

        Args:
            room_bytes: what running the network may take.
            is_asked: keep to it by all means: with margins below the receptive field where nothing else fits (then masks differ,
                and ``is_exact`` says so), or not at all. Otherwise the smallest exact tiles are taken, whatever they need.
            besides_bytes: what other things than running the network take of the amount the user gave.
        """
        self._room_bytes, self._is_asked, self._besides_bytes = room_bytes, is_asked, besides_bytes
        self._plans = {}

    @property
    def is_exact(self) -> bool:
        """Whether every image so far was decided as it would have been in one piece."""
        return all(plan.exact for plan in self._plans.values())

    def plan(self, size: tuple[int, ...]) -> TilePlan:
        """How images of these spatial axes, multiples of ``size_multiple``, are run.

        Raises:
            UsageError: not even the smallest tile fits into the memory allowed.
        """
        if size not in self._plans:
            together = max(1, _PIXELS_AT_ONCE // math.prod(size))
            self._plans[size] = (
                TilePlan(size, (0,) * len(size), together)
                if self._room_bytes is None
                else plan_tiles(
                    self.program, self.size_multiple, size, self.name, self._room_bytes, together, self._is_asked, self._besides_bytes
                )
            )
        return self._plans[size]

    def _at_once(self, size: tuple[int, ...]) -> int:
        return self.plan(size).at_once

    def _predict(self, images: FloatArray) -> LabelArray:
        return run_tiles(self.plan(images.shape[2:]), images, self._classes)

    def _levels(self, images: FloatArray) -> FloatArray:
        if self._split is not None:
            raise several_outputs(len(self.program.output_exponents))
        return run_tiles(self.plan(images.shape[2:]), images, lambda tile: real_outputs(self._run(tile), self.program))

    def _classes(self, images: FloatArray) -> LabelArray:
        return (self.engine.run_decided if self._split is None else self._split.classes)(self._quantize(images))

    def _run(self, images: FloatArray) -> NDArray[np.int32]:
        return self.engine.run(self._quantize(images))

    def _quantize(self, images: FloatArray) -> NDArray[np.uint8]:
        return quantize_image(images, self.program.format_of(self.program.image.name))
