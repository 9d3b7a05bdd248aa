"""Random integer programs of every node type, formats of every width and zero point, odd sizes: for the contract of an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medquant.errors import ConfigError
from medquant.quant.formats import TensorFormat, weight_range
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
)
from medquant.quant.shapes import Shape, infer_shapes

KINDS = ("convolution", "convolution", "convolution", "max", "average", "nearest", "linear", "rectifier", "concat", "add", "residual")
_LARGEST_TENSOR = 60_000


@dataclass(frozen=True)
class Drawn:
    """A program, and an image of integers for it, (2, C, *S)."""

    program: IntegerProgram
    image: np.ndarray


def draw(seed: int, nodes: int = 4) -> Drawn:
    """A random program with about so many nodes; the last is a convolution that writes accumulators in three of five."""
    drawing = _Drawing(seed)
    while len(drawing.nodes) <= nodes:
        drawing.grow()
    if drawing.random.random() < 0.6 or not any(isinstance(node, ConvolutionNode) for node in drawing.nodes):
        while not drawing.keep(drawing.convolution(drawing.nodes[-1].name, ends=True)):
            pass
    return drawing.finish()


class _Drawing:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.axes = int(self.random.choice([2, 2, 3]))
        self.size = tuple(int(n) for n in self.random.integers(3, 13 if self.axes == 2 else 8, self.axes))
        self.channels = int(self.random.integers(1, 5))
        self.nodes: list[Node] = [ImageNode("image", (), self.format(), self.channels)]
        self.drawn = 0

    def format(self) -> TensorFormat:
        bits = int(self.random.choice([6, 8])) if self.random.random() < 0.4 else int(self.random.integers(1, 9))
        zero_point = 0 if self.random.random() < 0.55 else int(self.random.integers(0, 2**bits))
        return TensorFormat(bits, zero_point, int(self.random.integers(0, 6)))

    def format_of(self, name: str) -> TensorFormat:
        return IntegerProgram(tuple(self.nodes), ()).format_of(name)

    def near(self, read: TensorFormat) -> TensorFormat:
        return replace(self.format(), exponent=read.exponent + int(self.random.integers(-3, 4)))

    def shapes(self) -> dict[str, Shape]:
        return infer_shapes(IntegerProgram(tuple(self.nodes), ()), (2, self.channels, *self.size))

    def name(self) -> str:
        self.drawn += 1
        return f"n{self.drawn}"

    def keep(self, node: Node) -> bool:
        """Whether the node fits; a node that does not is left out."""
        self.nodes.append(node)
        try:
            fits = np.prod(self.shapes()[node.name]) < _LARGEST_TENSOR
        except ConfigError:
            fits = False
        if not fits:
            self.nodes.pop()
        return bool(fits)

    def spatial(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.random.integers(low, high, self.axes))

    def convolution(self, source: str, outputs: int | None = None, ends: bool = False) -> ConvolutionNode:
        """Any geometry; with ``outputs`` one that keeps the size."""
        random, read, inputs = self.random, self.format_of(source), self.shapes()[source][1]
        groups, transposed, extra = 1, False, ()
        if outputs is not None:
            kernel = tuple(int(n) for n in random.choice([1, 3], self.axes))
            stride = dilation = (1,) * self.axes
            padding = tuple(n // 2 for n in kernel)
        else:
            kernel, stride, dilation = self.spatial(1, 5), self.spatial(1, 3), tuple(int(n) for n in random.choice([1, 1, 2], self.axes))
            padding = tuple(int(random.integers(0, (k - 1) * d // 2 + 1)) for k, d in zip(kernel, dilation, strict=True))
            outputs = int(random.choice([1, 2, 3, 4, 8, 16, 17]))
            if random.random() < 0.25:
                groups = int(random.choice([n for n in range(1, inputs + 1) if inputs % n == 0]))
                outputs = groups * int(random.integers(1, 4))
            if random.random() < 0.25:
                transposed, extra = True, tuple(int(random.integers(0, s)) for s in stride)
        bits = int(random.integers(1, 9))
        low, high = weight_range(bits)
        shape = (inputs, outputs // groups, *kernel) if transposed else (outputs, inputs // groups, *kernel)
        weight = random.choice([-1, 1], shape) if bits == 1 else random.integers(low, high + 1, shape)
        # Sums spread over the format they go to, now and then far below or above it.
        spread = max(1.0, np.sqrt(np.prod(shape[1:])) * high * read.highest * 0.3)
        bias = np.rint(random.normal(0, spread / 2, outputs)).astype(np.int64) * int(random.random() < 0.9)
        written = None if ends else self.format()
        exponents = random.integers(0, 6, outputs)
        if written is not None:
            shift = int(np.round(np.log2(spread / (written.highest / 3 + 0.3)))) + random.integers(-2, 3, outputs)
            if random.random() < 0.05:
                shift = shift + random.choice([-12, 20, 30, 40], outputs)
            exponents = shift - read.exponent + written.exponent
        geometry = ConvGeometry(stride, padding, dilation, groups, transposed, extra)
        rectified = bool(random.random() < 0.5)
        return ConvolutionNode(self.name(), (source,), written, weight.astype(np.int64), bias, exponents, bits, geometry, rectified)

    def grow(self) -> bool:
        source = str(self.random.choice([node.name for node in self.nodes[-4:]]))
        read, kind = self.format_of(source), str(self.random.choice(KINDS))
        if kind == "convolution":
            return self.keep(self.convolution(source))
        if kind == "max":
            kernel = self.spatial(1, 4)
            padding = tuple(int(self.random.integers(0, n // 2 + 1)) for n in kernel)
            return self.keep(MaxPoolNode(self.name(), (source,), read, kernel, self.spatial(1, 3), padding))
        if kind == "average":
            kernel = tuple(int(n) for n in self.random.choice([1, 2, 2, 4], self.axes))
            return self.keep(AvgPoolNode(self.name(), (source,), self.near(read), kernel, self.spatial(1, 3)))
        if kind == "nearest":
            return self.keep(UpsampleNode(self.name(), (source,), read, int(self.random.choice([2, 2, 3])), "nearest", self.axes))
        if kind == "linear":
            return self.keep(UpsampleNode(self.name(), (source,), self.near(read), 2, "linear", self.axes))
        if kind == "rectifier":
            return self.keep(ReluNode(self.name(), (source,), read))
        return self.join(kind, source, read)

    def join(self, kind: str, source: str, read: TensorFormat) -> bool:
        """Two tensors met: with one computed from the other, two branches, or what happens to fit."""
        names = [source, source]
        branches = 2 if kind == "residual" and self.random.random() < 0.5 else int(kind == "residual" or self.random.random() < 0.5)
        for place in range(branches):
            branch = self.convolution(source, outputs=self.shapes()[source][1])
            if kind == "concat":
                bits = int(self.random.integers(max(1, read.zero_point.bit_length()), 9))
                branch = replace(branch, output=TensorFormat(bits, read.zero_point, read.exponent))
            if not self.keep(branch):
                return False
            names[1 - place] = branch.name
        self.random.shuffle(names)
        if kind == "concat":
            widest = max(self.format_of(name).bits for name in names)
            return self.keep(ConcatNode(self.name(), tuple(names), replace(read, bits=widest)))
        return self.keep(AddNode(self.name(), tuple(names), self.near(self.format_of(names[0])), bool(self.random.random() < 0.5)))

    def finish(self) -> Drawn:
        """Only what the last node needs."""
        needed = {"image", self.nodes[-1].name}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = tuple(node for node in self.nodes if node.name in needed)
        last = nodes[-1]
        exponents: tuple[int, ...] = () if last.output is None else (last.output.exponent,)
        if isinstance(last, ConvolutionNode) and last.output is None:
            exponents = tuple(int(e) + self.format_of(last.inputs[0]).exponent for e in last.weight_exponents)
        image = self.random.integers(0, self.format_of("image").highest + 1, (2, self.channels, *self.size))
        return Drawn(IntegerProgram(nodes, exponents), image.astype(np.uint8))
