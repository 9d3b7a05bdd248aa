"""A walk over a program's nodes with torch tensors that hold integers in float32 or float64."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medquant.deploy.engines.base import Engine
from medquant.errors import EngineMismatchError
from medquant.quant.convolution import convolve
from medquant.quant.formats import TensorFormat, float32_adds_exactly
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import (
    AddNode,
    AvgPoolNode,
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntegerProgram,
    MaxPoolNode,
    Node,
    ReluNode,
    UpsampleNode,
    last_readers,
)

_FARTHEST_GRIDS = 44
"""255 times the sum of 1 and two to this power is below 2**53."""
_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}


class TorchProgramEngine(Engine):
    """Walks the nodes with torch tensors; subclasses say in which arithmetic sums are formed and rounded.

    Between nodes a tensor holds ``q - zero_point``, so that padding with zeros is padding with real zero.
    """

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(program)
        _check_sums(program)
        self._last_reader = last_readers(program)

    @abstractmethod
    def parameters(self, node: ConvolutionNode) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution in the type its sums are formed in."""

    @abstractmethod
    def requantize(self, accumulators: Tensor, shift: Tensor, written: TensorFormat, relu: bool) -> Tensor:
        """``clamp(round_half_even(acc * 2**-shift))`` relative to real zero; ``shift`` is int64, (channels,) or scalar."""

    @abstractmethod
    def load(self, image: Tensor) -> Tensor:
        """The image (int64, relative to real zero) in the engine's own type."""

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        self.check_image(image)
        values: dict[str, Tensor] = {}
        with torch.inference_mode():
            for step in self.program:
                values[step.name] = self._run(step, image, values)
                for source in step.inputs:
                    if self._last_reader[source] == step.name:
                        values.pop(source, None)
            last = self.program.nodes[-1]
            result: NDArray[np.int32] = values[last.name].to(torch.int32).cpu().numpy()
        return result + np.int32(last.output.zero_point if last.output is not None else 0)

    def run_node(self, node: Node, image: NDArray[np.uint8], values: Mapping[str, Tensor]) -> Tensor:
        """What one node writes, (N, C, *S) relative to real zero, from what it reads in the same form."""
        return self._run(node, image, values)

    def _run(self, node: Node, image: NDArray[np.uint8], values: Mapping[str, Tensor]) -> Tensor:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, ConvolutionNode):
            return self._convolve(node, inputs[0])
        if isinstance(node, ImageNode):
            return self.load(torch.from_numpy(image).to(torch.int64) - self.program.format_of(node.name).zero_point)
        if isinstance(node, MaxPoolNode):
            return _MAX_POOL[len(node.kernel)](inputs[0], node.kernel, node.stride, node.padding)
        if isinstance(node, ConcatNode):
            return torch.cat(inputs, dim=1)
        if isinstance(node, ReluNode):
            return torch.relu(inputs[0])
        if isinstance(node, AddNode):
            return self._add(node, inputs[0], inputs[1])
        if isinstance(node, AvgPoolNode):
            return self._average(node, inputs[0])
        if isinstance(node, UpsampleNode):
            return self._upsample(node, inputs[0])
        raise EngineMismatchError(f"engine torch does not know the node {type(node).__name__} ({node.name})")

    def _convolve(self, node: ConvolutionNode, x: Tensor) -> Tensor:
        weight, bias = self.parameters(node)
        return self.finish(node, convolve(x.to(weight.dtype), weight, bias, node.geometry))

    def finish(self, node: ConvolutionNode, accumulators: Tensor) -> Tensor:
        """What a convolution writes, from its accumulators."""
        if node.output is None:
            return torch.relu(accumulators) if node.relu else accumulators
        shift = torch.from_numpy(node.weight_exponents) + (self.program.format_of(node.inputs[0]).exponent - node.output.exponent)
        return self.requantize(accumulators, shift, node.output, node.relu)

    def _add(self, node: AddNode, first: Tensor, second: Tensor) -> Tensor:
        a, b = (self.program.format_of(name).exponent for name in node.inputs)
        if first.dtype == torch.float32 and not float32_adds_exactly(a, b):
            first, second = first.double(), second.double()
        finer = max(a, b)
        total = first * 2 ** (finer - a) + second * 2 ** (finer - b)
        written = self._written(node)
        return self.requantize(total, torch.tensor(finer - written.exponent), written, node.relu)

    def _average(self, node: AvgPoolNode, x: Tensor) -> Tensor:
        # A sum over windows is a convolution of each channel with ones.
        ones = torch.ones((x.shape[1], 1, *node.kernel), dtype=x.dtype, device=x.device)
        zeros = (0,) * len(node.kernel)
        geometry = ConvGeometry(node.stride, zeros, (1,) * len(node.kernel), groups=x.shape[1])
        exponent = int(np.prod(node.kernel)).bit_length() - 1
        return self._rescale(node, convolve(x, ones, None, geometry), exponent)

    def _upsample(self, node: UpsampleNode, x: Tensor) -> Tensor:
        axes = range(2, 2 + node.spatial_axes)
        if node.mode == "nearest":
            for axis in axes:
                x = x.repeat_interleave(node.factor, dim=axis)
            return x
        for axis in axes:
            x = _double_linear(x, axis)
        return self._rescale(node, x, 2 * node.spatial_axes)

    def _rescale(self, node: Node, accumulators: Tensor, finer_by: int) -> Tensor:
        """Requantize sums whose step is ``2**-finer_by`` of the input's."""
        written = self._written(node)
        shift = self.program.format_of(node.inputs[0]).exponent + finer_by - written.exponent
        return self.requantize(accumulators, torch.tensor(shift), written, relu=False)

    def _written(self, node: Node) -> TensorFormat:
        return self.program.format_of(node.name)


def _check_sums(program: IntegerProgram) -> None:
    """Refuse an addition that not even float64 forms exactly.

    Raises:
        EngineMismatchError: it joins grids too far apart.
    """
    for node in program:
        if isinstance(node, AddNode):
            first, second = (program.format_of(name).exponent for name in node.inputs)
            if abs(first - second) > _FARTHEST_GRIDS:
                raise EngineMismatchError(
                    f"engine torch adds in float64, but {node.name} joins steps of 2**{-first} and 2**{-second}; use engine reference"
                )


def _double_linear(x: Tensor, axis: int) -> Tensor:
    """Linear up-sampling by 2 along one axis with half-voxel centres, times 4: weights 1 and 3, edges repeated."""
    length = x.shape[axis]
    index = torch.arange(length, device=x.device)
    before = x.index_select(axis, (index - 1).clamp_min(0))
    after = x.index_select(axis, (index + 1).clamp_max(length - 1))
    pairs = torch.stack((3 * x + before, 3 * x + after), dim=axis + 1)
    shape = list(x.shape)
    shape[axis] = 2 * length
    return pairs.reshape(shape)
