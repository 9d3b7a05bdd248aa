"""Run a float operation of a graph: torch's own operator on real values, or on shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import medquant.quant.ternary_tanh  # noqa: F401  # registers its operator with torch
from medquant.errors import ConfigError
from medquant.quant.graph import BatchMultiple, FloatOperation, HeldTensor, ReadInput

# A copy where a view is not possible: activations may be stored channels last here, which they were not when the network was read.
_INSTEAD = {"aten.view.default": "aten.reshape.default", "aten._unsafe_view.default": "aten.reshape.default"}


def run_float(operation: FloatOperation, inputs: Sequence[Tensor], tensors: Sequence[Tensor], images: int) -> Tensor:
    """The result of a float operation.

    Args:
        operation: what to compute.
        inputs: what it reads, in the order of ``operation.inputs``.
        tensors: what it holds, in the order of ``operation.tensors``.
        images: number of images computed together.

    Raises:
        ConfigError: the operation does not fit what it reads; mostly because the network was read for another size of image.
    """

    def filled(argument: Any) -> Any:
        if isinstance(argument, ReadInput):
            return inputs[argument.place]
        if isinstance(argument, HeldTensor):
            return tensors[argument.place]
        if isinstance(argument, BatchMultiple):
            return argument.each * images
        return [filled(item) for item in argument] if isinstance(argument, tuple) else argument

    keywords = {name: filled(value) for name, value in operation.keywords}
    try:
        result = operator(operation.target)(*(filled(argument) for argument in operation.arguments), **keywords)
    except (RuntimeError, IndexError) as error:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in inputs)
        raise ConfigError(
            f"{operation.name} ({operation.kind}) cannot compute with tensors of shape {shapes}: {str(error).splitlines()[0]}; "
            "give it images of the size the network was read for"
        ) from error
    chosen: Tensor = result if operation.part is None else result[operation.part]
    return chosen


def operator(target: str) -> Any:
    """torch's operator of a name such as ``aten.softmax.int``."""
    found: Any = torch.ops
    for part in _INSTEAD.get(target, target).split("."):
        found = getattr(found, part)
    return found


def float_shape(operation: FloatOperation, shapes: Sequence[tuple[int, ...]], images: int) -> tuple[int, ...]:
    """The shape a float operation writes, from those it reads; nothing is computed.

    Raises:
        ConfigError: as for :func:`run_float`.
    """
    reads = [torch.empty(shape, device="meta") for shape in shapes]
    held = [tensor.detach().to("meta") for tensor in operation.tensors]
    return tuple(int(length) for length in run_float(operation, reads, held, images).shape)
