"""``reference``: the program node by node as written, in numpy. Slow, and right by inspection.

Tensors are int64. Only the products of a convolution go through float64, for its fast matrix multiplication: integers whose
sums stay below 2**53 are summed exactly there in any order, and :mod:`medquant.deploy.program_check` bounds them by 2**31.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.base import Engine, EngineInfo
from medquant.errors import EngineMismatchError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
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
    last_readers,
)

_LARGEST_SHIFT = 30
"""To the left; to the right twice as far."""


class ReferenceEngine(Engine):
    """Between nodes a tensor holds ``q - zero_point``, so that padding with zeros is padding with real zero."""

    info = EngineInfo("reference", "int64, node by node; the definition the others are held to", exact=True, priority=0)

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        self.check_image(image)
        last_reader = last_readers(self.program)
        values: dict[str, IntArray] = {}
        for step in self.program:
            values[step.name] = self._run(step, image, values)
            for source in step.inputs:
                if last_reader[source] == step.name:
                    values.pop(source, None)
        last = self.program.nodes[-1]
        return (values[last.name] + (last.output.zero_point if last.output is not None else 0)).astype(np.int32)

    def _run(self, node: Node, image: NDArray[np.uint8], values: Mapping[str, IntArray]) -> IntArray:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, ImageNode):
            return image.astype(np.int64) - self.program.format_of(node.name).zero_point
        if isinstance(node, ConvolutionNode):
            return self._convolve(node, inputs[0])
        if isinstance(node, MaxPoolNode):
            return _max_pool(node, inputs[0])
        if isinstance(node, ConcatNode):
            return np.concatenate(inputs, axis=1)
        if isinstance(node, ReluNode):
            return np.maximum(inputs[0], 0)
        if isinstance(node, AddNode):
            return self._add(node, inputs[0], inputs[1])
        if isinstance(node, AvgPoolNode):
            exponent = int(np.prod(node.kernel)).bit_length() - 1
            return self._rescale(node, _windows_sum(node, inputs[0]), exponent)
        if isinstance(node, UpsampleNode):
            return self._upsample(node, inputs[0])
        raise EngineMismatchError(f"engine {self.info.name} does not know the node {type(node).__name__} ({node.name})")

    def _convolve(self, node: ConvolutionNode, x: IntArray) -> IntArray:
        sums = _transposed(x, node.weight, node.geometry) if node.geometry.transposed else _plain(x, node.weight, node.geometry)
        sums += _by_channel(node.bias, sums.ndim)
        if node.output is None:
            return np.maximum(sums, 0) if node.relu else sums
        shift = node.weight_exponents + (self.program.format_of(node.inputs[0]).exponent - node.output.exponent)
        return requantize(sums, _by_channel(shift, sums.ndim), node.output, node.relu)

    def _add(self, node: AddNode, first: IntArray, second: IntArray) -> IntArray:
        a, b = (self.program.format_of(name).exponent for name in node.inputs)
        finer, written = max(a, b), self.program.format_of(node.name)
        total = (first << (finer - a)) + (second << (finer - b))
        return requantize(total, np.asarray(finer - written.exponent), written, node.relu)

    def _upsample(self, node: UpsampleNode, x: IntArray) -> IntArray:
        axes = range(2, 2 + node.spatial_axes)
        if node.mode == "nearest":
            for axis in axes:
                x = np.repeat(x, node.factor, axis=axis)
            return x
        for axis in axes:
            x = _double_linear(x, axis)
        return self._rescale(node, x, 2 * node.spatial_axes)

    def _rescale(self, node: Node, sums: IntArray, finer_by: int) -> IntArray:
        """Requantize sums whose step is ``2**-finer_by`` of the input's."""
        written = self.program.format_of(node.name)
        shift = self.program.format_of(node.inputs[0]).exponent + finer_by - written.exponent
        return requantize(sums, np.asarray(shift), written, relu=False)


def requantize(sums: IntArray, shift: IntArray, written: TensorFormat, relu: bool) -> IntArray:
    """``clamp(round_half_even(sums * 2**-shift))`` relative to real zero; a negative shift is one to the left."""
    # Sums have 32 bits and a tensor 8: beyond these shifts every sum is 0, or saturates unless it is 0, and no bit gets lost.
    right, left = np.clip(shift, 0, 2 * _LARGEST_SHIFT), np.clip(-shift, 0, _LARGEST_SHIFT)
    # Adding half a step, less one unit unless the kept part is odd, and flooring rounds ties to even.
    half = np.where(right > 0, np.left_shift(1, np.maximum(right - 1, 0)) - 1, 0)
    odd = np.where(right > 0, (sums >> right) & 1, 0)
    rounded = ((sums + half + odd) >> right) << left
    lowest = 0 if relu else -written.zero_point
    clamped: IntArray = np.clip(rounded, lowest, written.highest - written.zero_point)
    return clamped


def _by_channel(values: IntArray, axes: int) -> IntArray:
    return values.reshape(-1, *[1] * (axes - 2))


def _plain(x: IntArray, weight: IntArray, geometry: ConvGeometry) -> IntArray:
    """Sums of a convolution, tap by tap; (N, C, *S) → (N, O, *T)."""
    spatial = range(geometry.spatial_axes)
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((p, p) for p in geometry.padding)])
    size = [(padded.shape[2 + a] - geometry.dilation[a] * (weight.shape[2 + a] - 1) - 1) // geometry.stride[a] + 1 for a in spatial]
    sums = np.zeros((x.shape[0], geometry.groups, weight.shape[0] // geometry.groups, *size))
    for tap in product(*(range(length) for length in weight.shape[2:])):
        starts = [tap[a] * geometry.dilation[a] for a in spatial]
        seen = tuple(slice(starts[a], starts[a] + (size[a] - 1) * geometry.stride[a] + 1, geometry.stride[a]) for a in spatial)
        sums += _mix(weight[_at(tap)], padded[_at(seen)], geometry.groups)
    return sums.reshape(x.shape[0], weight.shape[0], *size).astype(np.int64)


def _transposed(x: IntArray, weight: IntArray, geometry: ConvGeometry) -> IntArray:
    """Sums of a transposed convolution: every voxel spreads its taps; (N, C, *S) → (N, O, *T)."""
    spatial, groups = range(geometry.spatial_axes), geometry.groups
    length = [x.shape[2 + a] for a in spatial]
    reach = [(length[a] - 1) * geometry.stride[a] + geometry.dilation[a] * (weight.shape[2 + a] - 1) + 1 for a in spatial]
    full = [reach[a] + geometry.output_padding[a] for a in spatial]
    sums = np.zeros((x.shape[0], groups, weight.shape[1], *full))
    values = x.astype(np.float64)
    # (in, out / groups) of each group, as (out, in / groups) like a plain convolution's.
    for tap in product(*(range(extent) for extent in weight.shape[2:])):
        mixing = weight[_at(tap)].reshape(groups, -1, weight.shape[1]).transpose(0, 2, 1)
        starts = [tap[a] * geometry.dilation[a] for a in spatial]
        place = tuple(slice(starts[a], starts[a] + (length[a] - 1) * geometry.stride[a] + 1, geometry.stride[a]) for a in spatial)
        sums[_at(place, 3)] += _mix(mixing.reshape(-1, mixing.shape[2]), values, groups)
    kept = tuple(slice(geometry.padding[a], full[a] - geometry.padding[a]) for a in spatial)
    inside = sums[_at(kept, 3)]
    return inside.reshape(x.shape[0], groups * weight.shape[1], *inside.shape[3:]).astype(np.int64)


def _at(spatial: Sequence[int | slice], before: int = 2) -> tuple[int | slice, ...]:
    """An index of the spatial axes, with all of the axes before them."""
    return (*[slice(None)] * before, *spatial)


def _mix(weight: IntArray, x: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """One tap of every group: (O, C / groups) and (N, C, *S) → (N, groups, O / groups, *S)."""
    mixing = weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, weight.shape[1])
    parts = x.reshape(x.shape[0], groups, weight.shape[1], -1)
    mixed: NDArray[np.float64] = np.matmul(mixing, parts)
    return mixed.reshape(*mixed.shape[:3], *x.shape[2:])


def _max_pool(node: MaxPoolNode, x: IntArray) -> IntArray:
    lowest = np.iinfo(np.int64).min
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in node.padding)], constant_values=lowest)
    return np.asarray(_windows(padded, node.kernel, node.stride).max(axis=tuple(range(-len(node.kernel), 0))))


def _windows_sum(node: AvgPoolNode, x: IntArray) -> IntArray:
    return np.asarray(_windows(x, node.kernel, node.stride).sum(axis=tuple(range(-len(node.kernel), 0))))


def _windows(x: IntArray, kernel: tuple[int, ...], stride: tuple[int, ...]) -> IntArray:
    """A view of all windows, (N, C, *T, *kernel)."""
    views = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=tuple(range(2, x.ndim)))
    windows: IntArray = views[_at([slice(None, None, step) for step in stride])]
    return windows


def _double_linear(x: IntArray, axis: int) -> IntArray:
    """Linear up-sampling by 2 along one axis with half-voxel centres, times 4: weights 1 and 3, edges repeated."""
    index = np.arange(x.shape[axis])
    before = np.take(x, np.maximum(index - 1, 0), axis=axis)
    after = np.take(x, np.minimum(index + 1, len(index) - 1), axis=axis)
    pairs = np.stack((3 * x + before, 3 * x + after), axis=axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * len(index), *x.shape[axis + 1 :])
