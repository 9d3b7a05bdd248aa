"""The typed operation of each torch operator that has an integer form, and which of its options have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from medquant.errors import ConfigError
from medquant.quant.capture_float import NoIntegerFormError
from medquant.quant.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    ConvGeometry,
    Convolution,
    Linear,
    MaxPool,
    NormParameters,
    Operation,
    Relu,
    Upsample,
    UpsampleMode,
)


class Reader(Protocol):
    """What reading a network has found so far, as the operations need it."""

    names: dict[str, str]
    floating: set[str]
    parameter_nodes: set[str]

    def name(self, node: Any, suffix: str = "") -> str:
        """A unique name for a node's operation."""

    def source(self, argument: Any) -> str:
        """The operation that computes an argument."""

    def parameter(self, argument: Any) -> Tensor:
        """A copy of the parameter or buffer an argument stands for."""

    def use_once(self, key: str, name: str) -> None:
        """Note who reads a parameter."""


def module_path(node: Any) -> str:
    """The path of the module a node belongs to, "" at the top."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def where(node: Any) -> str:
    """The place of a node, for messages."""
    return module_path(node) or "the network"


def argument(node: Any, index: int, name: str, default: Any) -> Any:
    """An argument by its place or its name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    values = [int(value)] * axes if isinstance(value, int) else [int(item) for item in value]
    return tuple(values * axes if len(values) == 1 else values)


def _times(lengths: Sequence[Any]) -> str:
    return "×".join(str(length) for length in lengths)


def _spatial_axes(node: Any) -> int:
    return int(node.meta["val"].dim()) - 2


def _convolution(translator: Reader, node: Any) -> Convolution:
    weight = translator.parameter(node.args[1])
    axes = weight.dim() - 2
    key = node.args[1].name
    name = translator.name(node)
    translator.use_once(key, name)
    bias_node = argument(node, 2, "bias", None)
    transposed = "transpose" in str(node.target)
    padding = argument(node, 4, "padding", 0)
    stride = _per_axis(argument(node, 3, "stride", 1), axes)
    if transposed:
        output_padding = _per_axis(argument(node, 5, "output_padding", 0), axes)
        groups, dilation = argument(node, 6, "groups", 1), _per_axis(argument(node, 7, "dilation", 1), axes)
    else:
        output_padding = ()
        dilation, groups = _per_axis(argument(node, 5, "dilation", 1), axes), argument(node, 6, "groups", 1)
    if isinstance(padding, str):
        padding = _same_padding(padding, weight, dilation, name)
    geometry = ConvGeometry(stride, _per_axis(padding, axes), dilation, int(groups), transposed, output_padding)
    bias = None if bias_node is None else translator.parameter(bias_node)
    return Convolution(name, (translator.source(node.args[0]),), weight, bias, geometry)


def _same_padding(padding: str, weight: Tensor, dilation: Sequence[int], name: str) -> tuple[int, ...]:
    if padding == "valid":
        return tuple(0 for _ in dilation)
    reach = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    if any(value % 2 for value in reach):
        raise ConfigError(f"{name}: 'same' padding of an even kernel is uneven; write the padding as numbers")
    return tuple(value // 2 for value in reach)


def _batch_norm(translator: Reader, node: Any) -> BatchNorm:
    source, weight, bias, mean, variance, uses_batch = node.args[:6]
    if uses_batch or mean is None or variance is None:
        raise ConfigError(f"{where(node)}: batch norm without running statistics depends on the batch and cannot be folded")
    running_mean, running_variance, epsilon = translator.parameter(mean), translator.parameter(variance), float(node.args[7])
    gain = torch.ones_like(running_mean) if weight is None else translator.parameter(weight)
    offset = torch.zeros_like(running_mean) if bias is None else translator.parameter(bias)
    scale = gain.double() / torch.sqrt(running_variance.double() + epsilon)
    shift = offset.double() - running_mean.double() * scale
    parameters = NormParameters(gain, offset, running_mean, running_variance, epsilon)
    return BatchNorm(translator.name(node), (translator.source(source),), scale, shift, parameters)


def _max_pool(translator: Reader, node: Any) -> MaxPool:
    axes = _spatial_axes(node)
    kernel = _per_axis(node.args[1], axes)
    stride = _per_axis(argument(node, 2, "stride", []) or kernel, axes)
    dilation = _per_axis(argument(node, 4, "dilation", 1), axes)
    if any(step != 1 for step in dilation) or argument(node, 5, "ceil_mode", False):
        raise NoIntegerFormError("float: dilated or ceil-mode max pooling")
    padding = _per_axis(argument(node, 3, "padding", 0), axes)
    return MaxPool(translator.name(node), (translator.source(node.args[0]),), kernel, stride, padding)


def _avg_pool(translator: Reader, node: Any) -> AvgPool:
    axes = _spatial_axes(node)
    kernel = _per_axis(node.args[1], axes)
    stride = _per_axis(argument(node, 2, "stride", []) or kernel, axes)
    if any(_per_axis(argument(node, 3, "padding", 0), axes)) or argument(node, 4, "ceil_mode", False):
        raise NoIntegerFormError("float: padded or ceil-mode average pooling")
    voxels = 1
    for size in kernel:
        voxels *= size
    if voxels & (voxels - 1):
        raise NoIntegerFormError(f"float: a mean over {voxels} voxels; over a power of two it is exact")
    if argument(node, 6, "divisor_override", None) not in (None, voxels):
        raise NoIntegerFormError("float: average pooling with a divisor of its own")
    return AvgPool(translator.name(node), (translator.source(node.args[0]),), kernel, stride)


def _upsample(translator: Reader, node: Any) -> Upsample:
    before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    mode: UpsampleMode = "nearest" if "nearest" in str(node.target) else "linear"
    factors = {int(b) // int(a) for a, b in zip(before, after, strict=True)}
    exact = all(int(b) % int(a) == 0 for a, b in zip(before, after, strict=True))
    align_corners = mode == "linear" and argument(node, 2, "align_corners", False)
    if len(factors) != 1 or not exact or align_corners or (mode == "linear" and factors != {2}):
        raise NoIntegerFormError(
            f"float: up-sampling {_times(before)} to {_times(after)}{' with aligned corners' if align_corners else ''}; "
            "exact are nearest by one whole factor and linear by 2 without align_corners"
        )
    return Upsample(translator.name(node), (translator.source(node.args[0]),), factors.pop(), mode, len(before))


def _concat(translator: Reader, node: Any) -> Concat:
    axis = argument(node, 1, "dim", 0)
    if axis not in (1, 1 - node.meta["val"].dim()):
        raise NoIntegerFormError(f"float: joins along axis {axis}; along the channels it is exact")
    if not all(item.name in translator.names for item in node.args[0]):
        raise NoIntegerFormError("float: joins a constant or a parameter")
    sources = tuple(translator.source(item) for item in node.args[0])
    if any(source in translator.floating for source in sources):
        raise NoIntegerFormError("float: joins real values")
    return Concat(translator.name(node, "concat"), sources)


def _add(translator: Reader, node: Any) -> Add:
    operands = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1:
        raise NoIntegerFormError("float: a scaled addition")
    if not all(isinstance(each, torch.fx.Node) and each.name in translator.names for each in operands):
        raise NoIntegerFormError("float: adds a constant or a parameter")
    if len({tuple(map(str, each.meta["val"].shape)) for each in operands}) > 1:
        raise NoIntegerFormError("float: adds tensors of different shapes")
    first, second = (translator.source(each) for each in operands)
    if first in translator.floating and second in translator.floating:
        raise NoIntegerFormError("float: both it adds are real values")
    return Add(translator.name(node, "add"), (first, second))


def _linear(translator: Reader, node: Any) -> Linear:
    weight, bias = node.args[1], argument(node, 2, "bias", None)
    if any(each is not None and each.name not in translator.parameter_nodes for each in (weight, bias)):
        raise NoIntegerFormError
    name = translator.name(node, "" if module_path(node).rsplit(".", 1)[-1] else "linear")
    translator.use_once(weight.name, name)
    held = None if bias is None else translator.parameter(bias)
    return Linear(name, (translator.source(node.args[0]),), translator.parameter(weight), held)


def _relu(translator: Reader, node: Any) -> Relu:
    return Relu(translator.name(node), (translator.source(node.args[0]),))


_RELU = ("aten.relu.default", "aten.relu_.default")

BUILDERS: dict[str, Callable[[Reader, Any], Operation]] = {
    "aten.conv2d.default": _convolution,
    "aten.conv3d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.conv3d.padding": _convolution,
    "aten.conv_transpose2d.input": _convolution,
    "aten.conv_transpose3d.input": _convolution,
    "aten.batch_norm.default": _batch_norm,
    "aten.max_pool2d.default": _max_pool,
    "aten.max_pool3d.default": _max_pool,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.avg_pool3d.default": _avg_pool,
    "aten.upsample_nearest2d.vec": _upsample,
    "aten.upsample_nearest3d.vec": _upsample,
    "aten.upsample_bilinear2d.vec": _upsample,
    "aten.upsample_trilinear3d.vec": _upsample,
    "aten.cat.default": _concat,
    "aten.concat.default": _concat,
    "aten.concatenate.default": _concat,
    "aten.linear.default": _linear,
    "aten.add.Tensor": _add,
    "aten.add_.Tensor": _add,
    **dict.fromkeys(_RELU, _relu),
}
