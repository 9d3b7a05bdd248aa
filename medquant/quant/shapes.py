"""Shape inference: how large every tensor of a network is for a given image, without computing any of them."""

from __future__ import annotations

from collections.abc import Sequence

from medquant.errors import ConfigError
from medquant.quant.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    ConvGeometry,
    Convolution,
    FloatOperation,
    Graph,
    Input,
    Linear,
    MaxPool,
    Operation,
    Relu,
    Upsample,
)
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

Shape = tuple[int, ...]


def infer_shapes(network: IntegerProgram | Graph, input_shape: Sequence[int]) -> dict[str, Shape]:
    """The shape of every tensor, (N, C, *S), by the name of what writes it, in the order they are computed.

    Args:
        network: a program or a graph.
        input_shape: the image's shape (N, C, *S), with 2 or 3 spatial axes.

    Raises:
        ConfigError: a layer does not fit what it reads, or nothing is left of the image.
    """
    shapes: dict[str, Shape] = {}
    for step in network:
        unknown = [name for name in step.inputs if name not in shapes]
        if unknown:
            raise ConfigError(f"{step.name} reads {unknown[0]!r}, which nothing before it writes")
        shape = _shape_of(step, [shapes[name] for name in step.inputs], tuple(input_shape))
        if shape and min(shape) < 1:
            raise ConfigError(f"{step.name} leaves nothing of an image of shape {tuple(input_shape)} ({shape}); use a larger image")
        shapes[step.name] = shape
    return shapes


def _shape_of(step: Node | Operation, reads: list[Shape], image: Shape) -> Shape:
    if isinstance(step, Input | ImageNode):
        if len(image) not in (4, 5) or image[1] != step.channels:
            raise ConfigError(f"the network reads images (N, {step.channels}, *S) with 2 or 3 spatial axes, found the shape {image}")
        return image
    if isinstance(step, Convolution | ConvolutionNode):
        return _convolved(step.name, reads[0], tuple(int(length) for length in step.weight.shape), step.geometry)
    if isinstance(step, MaxPool | MaxPoolNode):
        return _pooled(step.name, reads[0], step.kernel, step.stride, step.padding)
    if isinstance(step, AvgPool | AvgPoolNode):
        return _pooled(step.name, reads[0], step.kernel, step.stride, (0,) * len(step.kernel))
    if isinstance(step, Upsample | UpsampleNode):
        _check_axes(step.name, reads[0], step.spatial_axes)
        return (*reads[0][:2], *(length * step.factor for length in reads[0][2:]))
    if isinstance(step, Concat | ConcatNode):
        if len({(shape[0], *shape[2:]) for shape in reads}) != 1:
            raise ConfigError(f"{step.name} joins tensors that differ beyond their channels: {_list(reads)}")
        return (reads[0][0], sum(shape[1] for shape in reads), *reads[0][2:])
    if isinstance(step, Add | AddNode):
        if len(set(reads)) != 1:
            raise ConfigError(f"{step.name} adds tensors of different shapes: {_list(reads)}")
        return reads[0]
    if isinstance(step, Relu | ReluNode | BatchNorm):
        return reads[0]
    if isinstance(step, Linear):
        if reads[0][-1] != step.weight.shape[1]:
            raise ConfigError(f"{step.name}: a weight {tuple(step.weight.shape)} for a tensor of shape {reads[0]}")
        return (*reads[0][:-1], step.out_channels)
    if isinstance(step, FloatOperation):
        # Imported here: model files hold no such operation and are read without torch.
        from medquant.quant.float_run import float_shape

        return float_shape(step, reads, image[0])
    raise ConfigError(f"{step.name}: no rule for the shape of {type(step).__name__}")


def _convolved(name: str, read: Shape, weight: Shape, geometry: ConvGeometry) -> Shape:
    _check_axes(name, read, geometry.spatial_axes)
    if len(weight) != len(read):
        raise ConfigError(f"{name}: weight {weight} for a tensor of shape {read}, expected as many axes")
    groups = geometry.groups
    channels = weight[0] if geometry.transposed else weight[1] * groups
    if read[1] != channels or weight[0] % groups:
        raise ConfigError(f"{name}: weight {weight} in {groups} group(s) reads {channels} channels, found {read[1]}")
    if geometry.transposed:
        sizes = zip(read[2:], weight[2:], geometry.stride, geometry.padding, geometry.dilation, geometry.output_padding, strict=True)
        spatial = tuple((length - 1) * s - 2 * p + d * (k - 1) + extra + 1 for length, k, s, p, d, extra in sizes)
        return (read[0], weight[1] * groups, *spatial)
    taps = zip(read[2:], weight[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True)
    return (read[0], weight[0], *(_windows(length, d * (k - 1) + 1, s, p) for length, k, s, p, d in taps))


def _pooled(name: str, read: Shape, kernel: Shape, stride: Shape, padding: Shape) -> Shape:
    _check_axes(name, read, len(kernel))
    windows = zip(read[2:], kernel, stride, padding, strict=True)
    return (*read[:2], *(_windows(length, k, s, p) for length, k, s, p in windows))


def _windows(length: int, kernel: int, stride: int, padding: int) -> int:
    return max(0, (length + 2 * padding - kernel) // stride + 1)


def _check_axes(name: str, read: Shape, axes: int) -> None:
    if len(read) - 2 != axes:
        raise ConfigError(f"{name} works on {axes} spatial axes, found a tensor of shape {read}")


def _list(shapes: list[Shape]) -> str:
    return " and ".join(str(shape) for shape in shapes)
