"""The program in torch's 8-bit operators: every tensor is bytes, every convolution one operator, wherever that is exact.

Which node runs in bytes is decided node by node when the engine opens; the others run in :class:`FloatTorchProgram`, with a
conversion before and after.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medquant.deploy.channels import channels_of
from medquant.deploy.engines import torch_bytes, torch_onednn
from medquant.deploy.engines.base import Engine
from medquant.deploy.engines.torch_bytes import MEMORY_FORMAT, Slot
from medquant.deploy.engines.torch_float import FloatTorchProgram
from medquant.deploy.engines.torch_memory import keep_freed_memory
from medquant.deploy.engines.torch_onednn import ByteConvolution
from medquant.deploy.engines.torch_rewrite import average_as_convolution, linear_phases, transposed_as_plain
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

_SHAPES_KEPT = 2
"""Weights are packed for one input shape; those of so many image shapes are kept."""


class Int8TorchProgram(Engine):
    """Runs a program in bytes on the CPU; between nodes a tensor holds ``q`` as uint8, (N, C, *S), channels last."""

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(program)
        self._last_reader = last_readers(program)
        self._channels = channels_of(program)
        self._plain = {node.name: self._as_convolutions(node) for node in program}
        self._homes = self._homes_in_concatenations()
        self._in_float = FloatTorchProgram(program, torch.device("cpu"))
        self._packed: OrderedDict[tuple[int, ...], dict[str, list[ByteConvolution]]] = OrderedDict()
        keep_freed_memory()

    @staticmethod
    def helps(program: IntegerProgram) -> bool:
        """Whether bytes are worth it for this program, on this processor and with this torch."""
        axes = {node.weight.ndim - 2 for node in program.convolutions}
        return len(axes) == 1 and axes <= {2, 3} and torch_onednn.byte_convolutions_work(axes.pop())

    @property
    def nodes_in_float(self) -> list[str]:
        """Names of the nodes that sum and are not exact in bytes, or no faster, so that they run in float."""
        summing = [node for node in self.program if isinstance(node, ConvolutionNode | AvgPoolNode) or _is_linear(node)]
        return [node.name for node in summing if not self._plain[node.name]]

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        self.check_image(image)
        packed = self._packed_for(image.shape)
        values: dict[str, Tensor] = {}
        with torch.inference_mode():
            for step in self.program:
                values[step.name] = self._run(step, image, values, packed)
                for source in step.inputs:
                    if self._last_reader[source] == step.name:
                        values.pop(source, None)
            last = values.pop(self.program.nodes[-1].name)
            result = np.empty(tuple(last.shape), np.int32)
            torch.from_numpy(result).copy_(last)
        return result

    def _packed_for(self, shape: tuple[int, ...]) -> dict[str, list[ByteConvolution]]:
        """The packed weights for this image shape, empty at first; those of the shape not seen for longest are let go."""
        packed = self._packed.pop(shape, {})
        while len(self._packed) >= _SHAPES_KEPT:
            self._packed.popitem(last=False)
        self._packed[shape] = packed
        return packed

    def _as_convolutions(self, node: Node) -> list[ConvolutionNode]:
        """The plain convolutions a node is made of; empty where it has none, or where bytes are not exact or no faster."""
        plain: list[ConvolutionNode] = []
        if isinstance(node, ConvolutionNode):
            rewritten = transposed_as_plain(node) if node.geometry.transposed else node
            plain = [] if rewritten is None else [rewritten]
        elif isinstance(node, AvgPoolNode):
            plain = [average_as_convolution(node, self._channels[node.name])]
        elif isinstance(node, UpsampleNode) and node.mode == "linear":
            plain = linear_phases(node, self._channels[node.name])
        in_bytes = all(torch_onednn.is_exact(part, self.program.format_of(part.inputs[0])) and torch_onednn.is_fast(part) for part in plain)
        return plain if in_bytes else []

    def _homes_in_concatenations(self) -> dict[str, tuple[str, int]]:
        """For tensors that are written in pieces and read by one concatenation only: where in it they are written at once."""
        readers = [source for node in self.program for source in node.inputs]
        homes = {}
        for node in self.program:
            starts = np.cumsum([0, *(self._channels[source] for source in node.inputs)])
            for source, start in zip(node.inputs, starts[:-1], strict=True):
                if isinstance(node, ConcatNode) and readers.count(source) == 1 and self._writes_pieces(self.program[source]):
                    homes[source] = (node.name, int(start))
        return homes

    def _writes_pieces(self, node: Node) -> bool:
        if isinstance(node, ConvolutionNode):
            return node.geometry.transposed and bool(self._plain[node.name])
        return isinstance(node, UpsampleNode) and (not _is_linear(node) or bool(self._plain[node.name]))

    def _run(self, node: Node, image: NDArray[np.uint8], values: dict[str, Tensor], packed: dict[str, list[ByteConvolution]]) -> Tensor:
        if isinstance(node, ImageNode):
            return torch.from_numpy(np.array(image)).contiguous(memory_format=MEMORY_FORMAT[image.ndim - 2])
        if isinstance(node, ConcatNode):
            return self._concatenate(node, values)
        x = values[node.inputs[0]]
        if isinstance(node, MaxPoolNode):
            return torch_bytes.max_pool(node, x)
        if isinstance(node, ReluNode):
            return x.clamp_min(self.program.format_of(node.name).zero_point)
        if isinstance(node, UpsampleNode) and node.mode == "nearest":
            target = self._room(node, x.shape[0], [n * node.factor for n in x.shape[2:]], values)
            return torch_bytes.repeat(x, node.factor, target)
        if self._plain[node.name]:
            return self._convolve(node, x, values, packed)
        if isinstance(node, AddNode):
            first, second, written = (self.program.format_of(name) for name in (*node.inputs, node.name))
            return torch_bytes.add(node, x, values[node.inputs[1]], (first, second), written)
        return self._walk_in_float(node, image, values)

    def _convolve(self, node: Node, x: Tensor, values: dict[str, Tensor], packed: dict[str, list[ByteConvolution]]) -> Tensor:
        size = tuple(x.shape[2:])
        if isinstance(node, UpsampleNode):
            x = torch_bytes.repeat_edges(x)
        if node.name not in packed:
            reads = self.program.format_of(node.inputs[0])
            packed[node.name] = [torch_onednn.pack(part, reads, tuple(x.shape)) for part in self._plain[node.name]]
        if isinstance(node, UpsampleNode):
            target = self._room(node, x.shape[0], [2 * n for n in size], values)
            for phase, convolution in zip(product((0, 1), repeat=len(size)), packed[node.name], strict=True):
                slots = [Slot(side, n, side, 2) for side, n in zip(phase, size, strict=True)]
                torch_bytes.place(convolution(x), slots, target)
            return target
        result = packed[node.name][0](x)
        if isinstance(node, ConvolutionNode) and node.output is None and node.relu:
            result.clamp_(min=0)
        if isinstance(node, ConvolutionNode) and node.geometry.transposed:
            output_size = torch_bytes.transposed_size(node, size)
            target = self._room(node, x.shape[0], output_size, values, result.dtype)
            torch_bytes.interleave(node, result, target)
            return target
        return result

    def _room(
        self, node: Node, batch: int, size: list[int] | tuple[int, ...], values: dict[str, Tensor], dtype: torch.dtype = torch.uint8
    ) -> Tensor:
        """Room for what a node writes in pieces: its part of a concatenation where it has a home there."""
        if node.name not in self._homes:
            return torch_bytes.empty((batch, self._channels[node.name], *size), dtype)
        joined, start = self._homes[node.name]
        if joined not in values:
            values[joined] = torch_bytes.empty((batch, self._channels[joined], *size))
        return values[joined].narrow(1, start, self._channels[node.name])

    def _concatenate(self, node: ConcatNode, values: dict[str, Tensor]) -> Tensor:
        first = values[node.inputs[0]]
        joined = (
            values[node.name] if node.name in values else torch_bytes.empty((first.shape[0], self._channels[node.name], *first.shape[2:]))
        )
        start = 0
        for source in node.inputs:
            if source not in self._homes:
                torch_bytes.move(joined.narrow(1, start, self._channels[source]), values[source])
            start += self._channels[source]
        return joined

    def _walk_in_float(self, node: Node, image: NDArray[np.uint8], values: dict[str, Tensor]) -> Tensor:
        centred = {name: values[name].to(torch.float32) - self.program.format_of(name).zero_point for name in node.inputs}
        result = self._in_float.run_node(node, image, centred)
        if node.output is None:
            return result
        stored = result.add_(node.output.zero_point).to(torch.uint8)
        return stored.contiguous(memory_format=MEMORY_FORMAT[stored.dim() - 2])


def _is_linear(node: Node) -> bool:
    return isinstance(node, UpsampleNode) and node.mode == "linear"
