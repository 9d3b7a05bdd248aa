"""Read a torch network into a :class:`~medquant.quant.graph.Graph` through torch.export.

The network itself is left as it is: it is exported in evaluation mode from an example input, and its parameters are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medquant.errors import ConfigError
from medquant.quant.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    ConvGeometry,
    Convolution,
    Graph,
    Input,
    MaxPool,
    NormParameters,
    Operation,
    Relu,
    Upsample,
    UpsampleMode,
)

# Operations that change nothing at inference: the tensor goes through as it is.
_TRANSPARENT = {
    "aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default", "aten.feature_dropout_.default",
    "aten.contiguous.default", "aten.clone.default", "aten.alias.default", "aten.detach.default",
}  # fmt: skip
_RELU = {"aten.relu.default", "aten.relu_.default"}


def capture(model: nn.Module, example: Tensor) -> Graph:
    """Export ``model`` and translate every operation.

    Args:
        model: a network of convolutions, transposed convolutions, batch norm, rectifiers, pooling, up-sampling,
            concatenation and addition, with one image in and one logit map out.
        example: shape (N, C, *S), 2 or 3 spatial axes, of a size the network accepts.

    Returns:
        The graph as the network computes it in evaluation mode; no operation is folded or fused yet.

    Raises:
        ConfigError: the network cannot be exported, or holds an operation that has no integer form here.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), strict=False)
    except Exception as error:  # torch.export raises many kinds; each means the same to the user
        raise ConfigError(f"this network cannot be read as a graph: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    finally:
        model.train(was_training)
    return _Translator(program, int(example.shape[1])).graph()


class _Translator:
    """Walks an exported program once and builds the operations."""

    def __init__(self, program: torch.export.ExportedProgram, channels: int) -> None:
        self.program = program
        self.channels = channels
        self.tensors = _bound_tensors(program)
        self.images = set(program.graph_signature.user_inputs)
        self.names: dict[str, str] = {}  # torch node → operation name
        self.operations: list[Operation] = []
        self.parameters_used: dict[str, str] = {}

    def graph(self) -> Graph:
        result = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.images:
                self._append(node, Input("input", (), self.channels))
            elif node.op == "call_function":
                self._translate(node)
            elif node.op == "output":
                outputs = node.args[0]
                if len(outputs) != 1:
                    raise ConfigError(f"the network returns {len(outputs)} tensors; expected one logit map")
                result = self.names[outputs[0].name]
        if result is None:
            raise ConfigError("the network returns nothing; expected one logit map")
        return Graph(tuple(self._needed(result)), result)

    def _needed(self, output: str) -> list[Operation]:
        """The operations the output depends on, in order: what a network computes and throws away has no place in its copy."""
        needed = {output}
        for operation in reversed(self.operations):
            if operation.name in needed:
                needed.update(operation.inputs)
        return [operation for operation in self.operations if operation.name in needed]

    def _append(self, node: Any, operation: Operation) -> None:
        self.names[node.name] = operation.name
        self.operations.append(operation)

    def _translate(self, node: Any) -> None:
        target = str(node.target)
        if target in _TRANSPARENT:
            if "dropout" in target and _argument(node, 2, "train", False):
                raise ConfigError(f"{_where(node)}: dropout stays on in evaluation mode; use nn.Dropout, or pass training=self.training")
            self.names[node.name] = self.names[node.args[0].name]
            return
        build = _BUILDERS.get(target)
        if build is None:
            raise ConfigError(f"{_where(node)}: operation {target} has no integer form here; known: {', '.join(sorted(_BUILDERS))}")
        self._append(node, build(self, node))

    def name(self, node: Any, suffix: str = "") -> str:
        """A unique name: the module's path and the suffix; torch's name of the operation where there is neither."""
        base = ".".join(part for part in (_module_path(node), suffix) if part) or str(node.target).split(".")[1].rstrip("_")
        taken = {operation.name for operation in self.operations}
        name, count = base, 2
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        return name

    def source(self, argument: Any) -> str:
        """The operation that computes an argument."""
        if not isinstance(argument, torch.fx.Node) or argument.name not in self.names:
            raise ConfigError(f"an operation reads {argument}, which is no activation; constants in the graph are not supported")
        return self.names[argument.name]

    def parameter(self, argument: Any) -> Tensor:
        """A copy of the parameter or buffer an argument stands for."""
        if argument.name not in self.tensors:
            raise ConfigError(f"{argument.name} is computed, not a parameter; convolutions need fixed weights")
        return self.tensors[argument.name].detach().clone()


def _bound_tensors(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    signature = program.graph_signature
    bound = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state = {**program.state_dict, **program.constants}
    return {placeholder: state[target] for placeholder, target in bound.items()}


def _module_path(node: Any) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _where(node: Any) -> str:
    return _module_path(node) or "the network"


def _argument(node: Any, index: int, name: str, default: Any) -> Any:
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    values = [int(value)] * axes if isinstance(value, int) else [int(item) for item in value]
    return tuple(values * axes if len(values) == 1 else values)


def _spatial_axes(node: Any) -> int:
    return int(node.meta["val"].dim()) - 2


def _convolution(translator: _Translator, node: Any) -> Convolution:
    weight = translator.parameter(node.args[1])
    axes = weight.dim() - 2
    key = node.args[1].name
    name = translator.name(node)
    if key in translator.parameters_used:
        raise ConfigError(f"{name} shares its weight with {translator.parameters_used[key]}; shared weights are not supported")
    translator.parameters_used[key] = name
    bias_node = _argument(node, 2, "bias", None)
    transposed = "transpose" in str(node.target)
    padding = _argument(node, 4, "padding", 0)
    stride = _per_axis(_argument(node, 3, "stride", 1), axes)
    if transposed:
        output_padding = _per_axis(_argument(node, 5, "output_padding", 0), axes)
        groups, dilation = _argument(node, 6, "groups", 1), _per_axis(_argument(node, 7, "dilation", 1), axes)
    else:
        output_padding = ()
        dilation, groups = _per_axis(_argument(node, 5, "dilation", 1), axes), _argument(node, 6, "groups", 1)
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


def _batch_norm(translator: _Translator, node: Any) -> BatchNorm:
    source, weight, bias, mean, variance, uses_batch = node.args[:6]
    if uses_batch or mean is None or variance is None:
        raise ConfigError(f"{_where(node)}: batch norm without running statistics depends on the batch and cannot be folded")
    running_mean, running_variance, epsilon = translator.parameter(mean), translator.parameter(variance), float(node.args[7])
    gain = torch.ones_like(running_mean) if weight is None else translator.parameter(weight)
    offset = torch.zeros_like(running_mean) if bias is None else translator.parameter(bias)
    scale = gain.double() / torch.sqrt(running_variance.double() + epsilon)
    shift = offset.double() - running_mean.double() * scale
    parameters = NormParameters(gain, offset, running_mean, running_variance, epsilon)
    return BatchNorm(translator.name(node), (translator.source(source),), scale, shift, parameters)


def _max_pool(translator: _Translator, node: Any) -> MaxPool:
    axes = _spatial_axes(node)
    kernel = _per_axis(node.args[1], axes)
    stride = _per_axis(_argument(node, 2, "stride", []) or kernel, axes)
    dilation = _per_axis(_argument(node, 4, "dilation", 1), axes)
    if any(step != 1 for step in dilation) or _argument(node, 5, "ceil_mode", False):
        raise ConfigError(f"{_where(node)}: dilated or ceil-mode max pooling is not supported")
    padding = _per_axis(_argument(node, 3, "padding", 0), axes)
    return MaxPool(translator.name(node), (translator.source(node.args[0]),), kernel, stride, padding)


def _avg_pool(translator: _Translator, node: Any) -> AvgPool:
    axes = _spatial_axes(node)
    kernel = _per_axis(node.args[1], axes)
    stride = _per_axis(_argument(node, 2, "stride", []) or kernel, axes)
    if any(_per_axis(_argument(node, 3, "padding", 0), axes)) or _argument(node, 4, "ceil_mode", False):
        raise ConfigError(f"{_where(node)}: padded or ceil-mode average pooling is not supported")
    voxels = 1
    for size in kernel:
        voxels *= size
    if voxels & (voxels - 1):
        raise ConfigError(f"{_where(node)}: average pooling over {voxels} voxels is no integer operation; use a power of two")
    if _argument(node, 6, "divisor_override", None) not in (None, voxels):
        raise ConfigError(f"{_where(node)}: average pooling with a divisor of its own is not supported")
    return AvgPool(translator.name(node), (translator.source(node.args[0]),), kernel, stride)


def _upsample(translator: _Translator, node: Any) -> Upsample:
    before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    mode: UpsampleMode = "nearest" if "nearest" in str(node.target) else "linear"
    factors = {int(b) // int(a) for a, b in zip(before, after, strict=True)}
    exact = all(int(b) % int(a) == 0 for a, b in zip(before, after, strict=True))
    align_corners = mode == "linear" and _argument(node, 2, "align_corners", False)
    if len(factors) != 1 or not exact or align_corners or (mode == "linear" and factors != {2}):
        raise ConfigError(
            f"{_where(node)}: up-sampling {tuple(before)} to {tuple(after)} is not supported; nearest needs one whole factor, "
            "linear a factor of 2 without align_corners"
        )
    return Upsample(translator.name(node), (translator.source(node.args[0]),), factors.pop(), mode, len(before))


def _concat(translator: _Translator, node: Any) -> Concat:
    axis = _argument(node, 1, "dim", 0)
    if axis not in (1, 1 - node.meta["val"].dim()):
        raise ConfigError(f"{_where(node)}: concatenation along axis {axis}; only the channel axis is supported")
    return Concat(translator.name(node, "concat"), tuple(translator.source(item) for item in node.args[0]))


def _add(translator: _Translator, node: Any) -> Add:
    if node.kwargs.get("alpha", 1) != 1:
        raise ConfigError(f"{_where(node)}: scaled addition is not supported")
    first, second = translator.source(node.args[0]), translator.source(node.args[1])
    return Add(translator.name(node, "add"), (first, second))


def _relu(translator: _Translator, node: Any) -> Relu:
    return Relu(translator.name(node), (translator.source(node.args[0]),))


_BUILDERS: dict[str, Callable[[_Translator, Any], Operation]] = {
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
    "aten.add.Tensor": _add,
    "aten.add_.Tensor": _add,
    **dict.fromkeys(_RELU, _relu),
}
