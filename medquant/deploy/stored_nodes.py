"""A program's nodes as they stand in the header of a packed model file, schema version 1.

Every field is checked on reading: an unknown kind of node or an unknown field is refused, never skipped.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from medquant.errors import CheckpointError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry, UpsampleMode
from medquant.quant.program import (
    AddNode,
    AvgPoolNode,
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntArray,
    MaxPoolNode,
    Node,
    ReluNode,
    UpsampleNode,
)

_Name = Annotated[str, Field(min_length=1, max_length=1000)]
_OneInput = Annotated[tuple[_Name, ...], Field(min_length=1, max_length=1)]
_Size = Annotated[int, Field(ge=1, le=2**20)]
_Sizes = Annotated[tuple[_Size, ...], Field(min_length=2, max_length=3)]
_Offsets = Annotated[tuple[Annotated[int, Field(ge=0, le=2**20)], ...], Field(max_length=3)]
_Bits = Annotated[int, Field(ge=1, le=8)]
_Int8 = Annotated[int, Field(ge=-128, le=127)]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class StoredFormat(_Stored):
    """A :class:`~medquant.quant.formats.TensorFormat`: three bytes in the ledger."""

    bits: _Bits
    zero_point: Annotated[int, Field(ge=0, le=255)]
    exponent: _Int8

    @model_validator(mode="after")
    def _within_bits(self) -> StoredFormat:
        if self.zero_point >= 2**self.bits:
            raise ValueError(f"zero point {self.zero_point} does not fit {self.bits} bits")
        return self


class StoredGeometry(_Stored):
    """A :class:`~medquant.quant.graph.ConvGeometry`; a field that has its default is left out of the JSON."""

    stride: _Sizes
    padding: _Offsets
    dilation: _Sizes
    groups: _Size = 1
    transposed: bool = False
    output_padding: _Offsets = ()

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields = type(self).model_fields
        at_default = {name for name, field in fields.items() if not field.is_required() and getattr(self, name) == field.default}
        return {name: value for name, value in serialize(self).items() if name not in at_default}

    @model_validator(mode="after")
    def _same_axes(self) -> StoredGeometry:
        axes = len(self.stride)
        if {len(self.padding), len(self.dilation)} != {axes} or len(self.output_padding) != (axes if self.transposed else 0):
            raise ValueError(f"padding, dilation and output_padding do not fit {axes} strides")
        return self


class _StoredNode(_Stored):
    name: _Name
    inputs: _OneInput
    output: StoredFormat | None

    def written(self) -> TensorFormat | None:
        """The format of the node's output."""
        return None if self.output is None else TensorFormat(self.output.bits, self.output.zero_point, self.output.exponent)


class StoredImage(_StoredNode):
    """An :class:`~medquant.quant.program.ImageNode`."""

    kind: Literal["image"] = "image"
    inputs: Annotated[tuple[_Name, ...], Field(max_length=0)]
    channels: _Size

    def restore(self) -> Node:
        """The program's node."""
        return ImageNode(self.name, self.inputs, self.written(), self.channels)


class StoredConvolution(_StoredNode):
    """A :class:`~medquant.quant.program.ConvolutionNode`; its three arrays are tensors of the file."""

    kind: Literal["convolution"] = "convolution"
    weight_bits: _Bits
    geometry: StoredGeometry
    relu: bool

    def restore(self, weight: IntArray, bias: IntArray, exponents: IntArray) -> Node:
        """The program's node."""
        stored = self.geometry
        geometry = ConvGeometry(stored.stride, stored.padding, stored.dilation, stored.groups, stored.transposed, stored.output_padding)
        return ConvolutionNode(self.name, self.inputs, self.written(), weight, bias, exponents, self.weight_bits, geometry, self.relu)


class StoredMaxPool(_StoredNode):
    """A :class:`~medquant.quant.program.MaxPoolNode`."""

    kind: Literal["max_pool"] = "max_pool"
    kernel: _Sizes
    stride: _Sizes
    padding: _Offsets

    @model_validator(mode="after")
    def _padding_below_window(self) -> StoredMaxPool:
        fits = len(self.kernel) == len(self.stride) == len(self.padding)
        if not fits or any(2 * pad > size for pad, size in zip(self.padding, self.kernel, strict=True)):
            raise ValueError("kernel, stride and padding differ in length, or a window may lie in the padding alone")
        return self

    def restore(self) -> Node:
        """The program's node."""
        return MaxPoolNode(self.name, self.inputs, self.written(), self.kernel, self.stride, self.padding)


class StoredAvgPool(_StoredNode):
    """An :class:`~medquant.quant.program.AvgPoolNode`."""

    kind: Literal["avg_pool"] = "avg_pool"
    kernel: _Sizes
    stride: _Sizes

    @model_validator(mode="after")
    def _power_of_two(self) -> StoredAvgPool:
        voxels = math.prod(self.kernel)
        if len(self.kernel) != len(self.stride) or voxels & (voxels - 1):
            raise ValueError("kernel and stride differ in length, or the window's voxel count is no power of two")
        return self

    def restore(self) -> Node:
        """The program's node."""
        return AvgPoolNode(self.name, self.inputs, self.written(), self.kernel, self.stride)


class StoredUpsample(_StoredNode):
    """An :class:`~medquant.quant.program.UpsampleNode`."""

    kind: Literal["upsample"] = "upsample"
    factor: Annotated[int, Field(ge=1, le=64)]
    mode: UpsampleMode
    spatial_axes: Annotated[int, Field(ge=2, le=3)]

    @model_validator(mode="after")
    def _linear_by_two(self) -> StoredUpsample:
        if self.mode == "linear" and self.factor != 2:
            raise ValueError(f"linear up-sampling goes by 2, not by {self.factor}")
        return self

    def restore(self) -> Node:
        """The program's node."""
        return UpsampleNode(self.name, self.inputs, self.written(), self.factor, self.mode, self.spatial_axes)


class StoredRelu(_StoredNode):
    """A :class:`~medquant.quant.program.ReluNode`."""

    kind: Literal["relu"] = "relu"

    def restore(self) -> Node:
        """The program's node."""
        return ReluNode(self.name, self.inputs, self.written())


class StoredConcat(_StoredNode):
    """A :class:`~medquant.quant.program.ConcatNode`."""

    kind: Literal["concat"] = "concat"
    inputs: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=1000)]

    def restore(self) -> Node:
        """The program's node."""
        return ConcatNode(self.name, self.inputs, self.written())


class StoredAdd(_StoredNode):
    """An :class:`~medquant.quant.program.AddNode`."""

    kind: Literal["add"] = "add"
    inputs: Annotated[tuple[_Name, ...], Field(min_length=2, max_length=2)]
    relu: bool

    def restore(self) -> Node:
        """The program's node."""
        return AddNode(self.name, self.inputs, self.written(), self.relu)


_AnyStored = StoredImage | StoredConvolution | StoredMaxPool | StoredAvgPool | StoredUpsample | StoredRelu | StoredConcat | StoredAdd
StoredNode = Annotated[_AnyStored, Field(discriminator="kind")]

_STORED: dict[type[Node], type[_AnyStored]] = {
    ImageNode: StoredImage,
    ConvolutionNode: StoredConvolution,
    MaxPoolNode: StoredMaxPool,
    AvgPoolNode: StoredAvgPool,
    UpsampleNode: StoredUpsample,
    ReluNode: StoredRelu,
    ConcatNode: StoredConcat,
    AddNode: StoredAdd,
}


def store_node(node: Node) -> _AnyStored:
    """A node as the header holds it, without its arrays.

    Raises:
        CheckpointError: the kind of node, or a value of it, has no place in this schema.
    """
    stored = _STORED.get(type(node))
    if stored is None:
        raise CheckpointError(
            f"{node.name}: {type(node).__name__} cannot be stored in a model file; known: {', '.join(kind.__name__ for kind in _STORED)}"
        )
    try:
        return stored.model_validate(node)
    except ValidationError as error:
        raise CheckpointError(f"{node.name}: {error.errors()[0]['msg']}; this network cannot be stored in a model file") from error
