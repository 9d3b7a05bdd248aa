"""A network as a short list of typed operations, read from its torch.export graph.

Only what a convolutional segmentation network is made of has a type here. Anything else is refused by name, before any
work is done, because a quantized copy that silently drops an operation is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # Model files are read and run without torch; only networks in training hold its tensors.
    from torch import Tensor

UpsampleMode = Literal["nearest", "linear"]

TERNARY_TANH = "medquant.ternary_tanh.default"
"""The torch operator of a float operation that is a ternary tanh."""


@dataclass(frozen=True)
class ConvGeometry:
    """Everything about a convolution but its numbers. Tuples have one entry for each spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def spatial_axes(self) -> int:
        """2 or 3."""
        return len(self.stride)

    @property
    def channel_axis(self) -> int:
        """The weight's axis that runs over output channels (within a group, for a transposed convolution)."""
        return 1 if self.transposed else 0


@dataclass(frozen=True)
class Operation:
    """One operation: a unique name and the names of what it reads."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Input(Operation):
    """The image. ``channels`` is its number of channels."""

    channels: int


@dataclass(frozen=True)
class Convolution(Operation):
    """A convolution or transposed convolution with its parameters; ``relu`` where a rectifier follows at once."""

    weight: Tensor
    bias: Tensor | None
    geometry: ConvGeometry
    relu: bool = False

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        if self.geometry.transposed:
            return int(self.weight.shape[1]) * self.geometry.groups
        return int(self.weight.shape[0])


@dataclass(frozen=True)
class NormParameters:
    """What batch norm learns and keeps, for each channel: gain, offset, running mean and variance."""

    gain: Tensor
    offset: Tensor
    mean: Tensor
    variance: Tensor
    epsilon: float


@dataclass(frozen=True)
class BatchNorm(Operation):
    """``x * scale + shift`` for each channel: batch norm with its running statistics worked in; ``relu`` where a rectifier follows.

    ``parameters`` are what scale and shift were made from, for networks that keep it as a layer.
    """

    scale: Tensor
    shift: Tensor
    parameters: NormParameters
    relu: bool = False


@dataclass(frozen=True)
class Relu(Operation):
    """A rectifier that could not be joined to the operation before it."""


@dataclass(frozen=True)
class MaxPool(Operation):
    """Maximum over windows; padding never wins."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class AvgPool(Operation):
    """Mean over windows without padding; the window's voxel count must be a power of two to stay integer."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Upsample(Operation):
    """Nearest by any integer factor, or linear by 2 with half-voxel centres, along every spatial axis."""

    factor: int
    mode: UpsampleMode
    spatial_axes: int


@dataclass(frozen=True)
class Concat(Operation):
    """Join along the channel axis."""


@dataclass(frozen=True)
class Add(Operation):
    """Sum of two tensors; ``relu`` where a rectifier follows at once."""

    relu: bool = False


@dataclass(frozen=True)
class Linear(Operation):
    """A matrix product over the last axis: quantized weights, real values in and out."""

    weight: Tensor
    bias: Tensor | None

    @property
    def out_channels(self) -> int:
        """Number of output features."""
        return int(self.weight.shape[0])


@dataclass(frozen=True)
class ReadInput:
    """Stands for one of the tensors a float operation reads, by its place among them."""

    place: int


@dataclass(frozen=True)
class HeldTensor:
    """Stands for one of the tensors a float operation holds, by its place among them."""

    place: int


@dataclass(frozen=True)
class BatchMultiple:
    """Stands for a length that grows with the number of images: so many for each."""

    each: int


FloatArgument = object
"""A number, text, None, one of the three above, or a tuple of these."""


@dataclass(frozen=True)
class FloatOperation(Operation):
    """An operation without an integer form: it reads and writes real values, as torch computes them.

    Args:
        kind: what it is, for the plan.
        reason: why it is float, and what would make it exact, where something does.
        target: the torch operator, such as ``aten.softmax.int``.
        arguments: its arguments by place.
        keywords: its arguments by name.
        tensors: parameters and constants it holds.
        trainable: for each of them, whether it is a parameter.
        part: which of its results is meant, where it has several; None for the one it has.
        any_size: whether it means the same for images of every size; False where lengths of one size are written into it.
    """

    kind: str
    reason: str
    target: str
    arguments: tuple[FloatArgument, ...]
    keywords: tuple[tuple[str, FloatArgument], ...] = ()
    tensors: tuple[Tensor, ...] = ()
    trainable: tuple[bool, ...] = ()
    part: int | None = None
    any_size: bool = True

    @property
    def parameters(self) -> int:
        """Number of trained values it holds."""
        return sum(int(tensor.numel()) for tensor, learns in zip(self.tensors, self.trainable, strict=True) if learns)


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can run; the last result read by nobody is ``output``."""

    operations: tuple[Operation, ...]
    output: str

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __getitem__(self, name: str) -> Operation:
        for operation in self.operations:
            if operation.name == name:
                return operation
        raise KeyError(name)

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """All convolutions, in the order they run."""
        return tuple(operation for operation in self.operations if isinstance(operation, Convolution))

    def readers(self, name: str) -> list[Operation]:
        """The operations that read ``name``; the graph's own output is not among them."""
        return [operation for operation in self.operations if name in operation.inputs]

    def read_once(self, name: str) -> bool:
        """Whether exactly one operation reads ``name`` and the graph does not return it."""
        return len(self.readers(name)) == 1 and name != self.output

    def fused(self, second: Operation, joined: Operation) -> Graph:
        """The graph with ``joined`` in place of the operation of its name, and its only reader ``second`` taken out."""
        kept: list[Operation] = []
        for operation in self.operations:
            if operation.name == second.name:
                continue
            if operation.name == joined.name:
                kept.append(joined)
                continue
            renamed = tuple(joined.name if source == second.name else source for source in operation.inputs)
            kept.append(replace(operation, inputs=renamed))
        return Graph(tuple(kept), joined.name if self.output == second.name else self.output)

    def with_operation(self, new: Operation) -> Graph:
        """The graph with ``new`` in place of the operation of the same name."""
        return Graph(tuple(new if operation.name == new.name else operation for operation in self.operations), self.output)
