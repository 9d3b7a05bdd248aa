"""Every convolution as a plain one: a transposed one becomes a convolution to all phases of its stride, then an interleaving.

Runtimes have 8-bit kernels and exact integers for plain convolutions; transposed ones they sum in float32 or bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medquant.quant.program import ConvolutionNode, IntArray


@dataclass(frozen=True)
class PlainForm:
    """A convolution and what is done to its result.

    Args:
        name: of the node.
        weight: (out * phases, in/groups, *K); the phases of a channel lie beside each other, the last axis fastest.
        bias: (out * phases,).
        attributes: of the ONNX operator.
        stride: how many phases each axis has; ones for a convolution that is plain already.
        cut_before: voxels that are cut off each axis once the phases are interleaved.
        cut_behind: the same at the other end.
    """

    name: str
    weight: IntArray
    bias: IntArray
    attributes: dict[str, Any]
    stride: tuple[int, ...]
    cut_before: tuple[int, ...]
    cut_behind: tuple[int, ...]

    @property
    def axes(self) -> int:
        """Spatial axes."""
        return len(self.stride)

    @property
    def phases(self) -> int:
        """Output voxels for each position of the plain convolution."""
        return int(np.prod(self.stride))


def as_plain(node: ConvolutionNode) -> PlainForm:
    """The plain form of a convolution; the one it has unless it is transposed."""
    geometry = node.geometry
    axes = geometry.spatial_axes
    if not geometry.transposed:
        attributes = _attributes(node.weight, geometry.stride, geometry.dilation, geometry.padding * 2, geometry.groups)
        return PlainForm(node.name, node.weight, node.bias, attributes, (1,) * axes, (0,) * axes, (0,) * axes)
    stride, padding, added = geometry.stride, geometry.padding, geometry.output_padding or (0,) * axes
    dense = _dilated(node.weight, geometry.dilation)
    extent = dense.shape[2:]
    # Output voxel q * s + r gathers tap r + s * m from input voxel q - m: phase r of position q has taps m = 0, 1, ...
    taps = [-(-length // step) for length, step in zip(extent, stride, strict=True)]
    # Positions that some kept output voxel lies in, beyond the last input voxel; at least those that the taps reach.
    kept = [length + more - cut for length, more, cut in zip(extent, added, padding, strict=True)]
    beyond = [max(tap, -(-reach // step)) - 1 for tap, reach, step in zip(taps, kept, stride, strict=True)]
    weight = _by_phase(dense, stride, taps, geometry.groups)
    ones, before = (1,) * axes, tuple(tap - 1 for tap in taps)
    behind = tuple((more + 1) * step - reach for more, step, reach in zip(beyond, stride, kept, strict=True))
    attributes = _attributes(weight, ones, ones, (*before, *beyond), geometry.groups)
    return PlainForm(node.name, weight, np.repeat(node.bias, int(np.prod(stride))), attributes, stride, padding, behind)


def without_groups(form: PlainForm) -> PlainForm:
    """The same sums with a weight, mostly zero, for every pair of channels."""
    groups = int(form.attributes["group"])
    outputs, per_group, *kernel = form.weight.shape
    dense = np.zeros((groups, outputs // groups, groups, per_group, *kernel), np.int64)
    parts = form.weight.reshape(groups, outputs // groups, per_group, *kernel)
    dense[np.arange(groups), :, np.arange(groups)] = parts
    weight = dense.reshape(outputs, groups * per_group, *kernel)
    return replace(form, weight=weight, attributes={**form.attributes, "group": 1})


def _dilated(weight: IntArray, dilation: tuple[int, ...]) -> IntArray:
    """The same taps with zeros between them."""
    spread = [step * (length - 1) + 1 for step, length in zip(dilation, weight.shape[2:], strict=True)]
    dense = np.zeros((*weight.shape[:2], *spread), np.int64)
    dense[(slice(None), slice(None), *(slice(None, None, step) for step in dilation))] = weight
    return dense


def _by_phase(dense: IntArray, stride: tuple[int, ...], taps: list[int], groups: int) -> IntArray:
    """(in, out/groups, *K) to (out * phases, in/groups, *taps), taps in the order a convolution reads its window."""
    axes, inputs, per_group = len(stride), *dense.shape[:2]
    missing = [tap * step - length for tap, step, length in zip(taps, stride, dense.shape[2:], strict=True)]
    padded = np.pad(dense, [(0, 0), (0, 0), *((0, count) for count in missing)])
    pairs = [length for pair in zip(taps, stride, strict=True) for length in pair]
    parts = padded.reshape(groups, inputs // groups, per_group, *pairs)
    # Axes: groups, in, out, then tap and phase of each spatial axis in turn.
    tap_axes, phase_axes = [3 + 2 * axis for axis in range(axes)], [4 + 2 * axis for axis in range(axes)]
    ordered = np.flip(parts, tuple(tap_axes)).transpose(0, 2, *phase_axes, 1, *tap_axes)
    return np.ascontiguousarray(ordered).reshape(groups * per_group * int(np.prod(stride)), inputs // groups, *taps)


def _attributes(weight: IntArray, stride: tuple[int, ...], dilation: tuple[int, ...], pads: tuple[int, ...], groups: int) -> dict[str, Any]:
    kernel = [int(length) for length in weight.shape[2:]]
    return {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": pads, "group": groups}
