"""The last layer run apart, strip by strip, where it writes more than it reads: then memory does not grow with the class count."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import LabelArray
from medquant.deploy.engines import open_engine
from medquant.errors import EngineMismatchError
from medquant.predict.receptive import find_reach
from medquant.predict.tiles import TilePlan, run_tiles
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram

_OUTPUTS_AT_ONCE = 2**18
"""Output values of a strip."""


class SplitProgram:
    """A program cut before its last convolution; the decision is that of the whole, voxel for voxel.

    Args:
        body: all nodes but the last.
        head: the last convolution.
        engine: name of the engine.

    Raises:
        EngineMismatchError: the engine takes the whole, but not a part.
    """

    def __init__(self, body: IntegerProgram, head: IntegerProgram, engine: str) -> None:
        self.body, self.head = open_engine(engine, body), open_engine(engine, head)
        self._outputs = len(head.output_exponents)
        self._reach = find_reach(head, 1)

    def classes(self, image: NDArray[np.uint8]) -> LabelArray:
        """Quantized images (N, C, *S) → class numbers (N, *S)."""
        # Integers of one format, which is the image's of the head.
        features = self.body.run_bytes(image)
        return run_tiles(self._plan(features.shape), features, self.head.run_decided)

    def _plan(self, shape: tuple[int, ...]) -> TilePlan:
        row = shape[0] * self._outputs * math.prod(shape[3:])
        rows = min(shape[2], max(1, _OUTPUTS_AT_ONCE // row))
        return TilePlan((rows, *shape[3:]), self._reach.margin, shape[0])


def split_program(program: IntegerProgram, engine: str) -> SplitProgram | None:
    """The program cut before its last convolution, None where that is not possible or saves nothing."""
    last = program.nodes[-1]
    if not isinstance(last, ConvolutionNode) or last.output is not None or len(program.nodes) < 3:
        return None
    before = program.nodes[-2]
    geometry = last.geometry
    reads = int(last.weight.shape[1]) * geometry.groups
    if last.inputs != (before.name,) or before.output is None or geometry.transposed or set(geometry.stride) != {1}:
        return None
    if len(program.output_exponents) <= reads or not isinstance(before, ConvolutionNode):
        return None
    body = IntegerProgram(program.nodes[:-1], (before.output.exponent,) * reads)
    head = IntegerProgram((ImageNode(before.name, (), before.output, reads), last), program.output_exponents)
    try:
        return SplitProgram(body, head, engine)
    except EngineMismatchError:
        return None
