"""Nodes written as plain convolutions, so that one kernel for convolutions of bytes runs them too. Integers only, no torch.

Each rewriting forms the very sums of the node's definition, in another order.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from medquant.quant.graph import ConvGeometry
from medquant.quant.program import AvgPoolNode, ConvolutionNode, IntArray, UpsampleNode


def average_as_convolution(node: AvgPoolNode, channels: int) -> ConvolutionNode:
    """The sum over a window of ``2**n`` voxels: a convolution of each channel with ones, weight exponent n."""
    axes = len(node.kernel)
    geometry = ConvGeometry(node.stride, (0,) * axes, (1,) * axes, groups=channels)
    return _of_each_channel(node, np.ones(node.kernel, np.int64), geometry, int(np.prod(node.kernel)).bit_length() - 1, channels)


def linear_phases(node: UpsampleNode, channels: int) -> list[ConvolutionNode]:
    """Linear up-sampling by 2: for each phase (0 or 1 along each axis, the last fastest) a convolution of each channel, window 2.

    They read the input with its edges repeated once on each side. Along an axis output 2i is ``x[i-1] + 3 x[i]`` and output
    2i + 1 is ``3 x[i] + x[i+1]``: of the L + 1 results, phase 0 takes the first L and phase 1 the last L.
    """
    axes = node.spatial_axes
    geometry = ConvGeometry((1,) * axes, (0,) * axes, (1,) * axes, groups=channels)
    phases = []
    for phase in product((0, 1), repeat=axes):
        window = np.ones((1,) * axes, np.int64)
        for axis, side in enumerate(phase):
            taps = np.array([3, 1] if side else [1, 3]).reshape([2 if a == axis else 1 for a in range(axes)])
            window = window * taps
        phases.append(_of_each_channel(node, window, geometry, 2 * axes, channels))
    return phases


def transposed_as_plain(node: ConvolutionNode) -> ConvolutionNode | None:
    """A transposed convolution of stride s as a plain one with ``prod(s)`` times the outputs, to be interleaved.

    Output place ``o`` is ``m * s + phase - padding``; it sums the taps ``phase + s * j`` at the input places ``m - j``, which is
    a convolution over m with ``ceil(k / s)`` taps. Its outputs are ordered (phases, channels), the last axis' phase fastest.

    Returns:
        None where the geometry has groups, dilation, or outputs beyond the last tap.
    """
    geometry = node.geometry
    kernel, stride = node.weight.shape[2:], geometry.stride
    beyond = [k - 1 + o - p >= -(-k // s) * s for k, s, p, o in zip(kernel, stride, geometry.padding, geometry.output_padding, strict=True)]
    if geometry.groups != 1 or set(geometry.dilation) != {1} or any(beyond):
        return None
    taps = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]
    whole = [t * s for t, s in zip(taps, stride, strict=True)]
    filled = np.zeros((*node.weight.shape[:2], *whole), np.int64)
    filled[(slice(None), slice(None), *(slice(0, k) for k in kernel))] = node.weight
    phases = list(product(*(range(s) for s in stride)))
    parts: list[IntArray] = []
    for phase in phases:
        taken = filled[(slice(None), slice(None), *(slice(first, None, s) for first, s in zip(phase, stride, strict=True)))]
        parts.append(np.flip(taken, axis=tuple(range(2, taken.ndim))).swapaxes(0, 1))
    ones = (1,) * len(stride)
    return replace(
        node,
        weight=np.concatenate(parts),
        bias=np.tile(node.bias, len(phases)),
        weight_exponents=np.tile(node.weight_exponents, len(phases)),
        geometry=ConvGeometry(ones, tuple(t - 1 for t in taps), ones),
    )


def _of_each_channel(
    node: AvgPoolNode | UpsampleNode, window: IntArray, geometry: ConvGeometry, exponent: int, channels: int
) -> ConvolutionNode:
    weight = np.broadcast_to(window, (channels, 1, *window.shape))
    zeros = np.zeros(channels, np.int64)
    return ConvolutionNode(node.name, node.inputs, node.output, weight, zeros, np.full(channels, exponent), 8, geometry, relu=False)
