"""Convolutions of bytes in the oneDNN operators inside torch, and when they are exact.

``onednn::qconv2d_pointwise`` and ``qconv3d_pointwise`` are private to torch: :func:`byte_convolutions_work` tries them once
before anything relies on them, and a convolution that they may not run exactly is never given to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medquant.deploy.engines.exactness import byte_products_saturate, saturates
from medquant.deploy.engines.torch_bytes import MEMORY_FORMAT, pad_with
from medquant.quant.formats import FLOAT32_EXACT_LIMIT, TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, IntArray

_FARTHEST_SHIFT = 100
"""A power of two within this many binary places is a normal float32, and so is its product with any accumulator."""


@dataclass(frozen=True)
class ByteConvolution:
    """One convolution with its weights packed for one input shape; (N, C, *S) uint8 → (N, O, *T), channels last.

    Args:
        weight: as oneDNN packs it.
        scales: ``2**-shift`` for each output channel.
        bias: bias, input zero point and output zero point together, in steps of the output.
        geometry: as the operator gets it.
        border: padding done beforehand, and the integer it is done with: the operator's own padding costs up to twice the time
            where real zero is not the integer 0.
        bounds: lowest and highest integer the operator writes; None where it writes accumulators, as float32.
        turned: None, or the highest integer of the output, from which what the operator writes is subtracted.
    """

    weight: Tensor
    scales: Tensor
    no_zero_points: Tensor
    bias: Tensor
    geometry: ConvGeometry
    border: tuple[tuple[int, ...], int] | None
    bounds: tuple[int, int] | None
    turned: int | None

    def __call__(self, x: Tensor) -> Tensor:
        """Convolution, bias, rounding half to even and saturation."""
        if self.border is not None:
            x = pad_with(x, *self.border)
        flat = x.dim() == 4
        operator = torch.ops.onednn.qconv2d_pointwise if flat else torch.ops.onednn.qconv3d_pointwise
        written = torch.float32 if self.bounds is None else torch.uint8
        clip = flat and self.bounds is not None
        limits = [float(bound) for bound in self.bounds or ()] if clip else []
        g = self.geometry
        sums = (x, 1.0, 0, self.weight, self.scales, self.no_zero_points, self.bias, g.stride, g.padding, g.dilation, g.groups)
        result: Tensor = operator(*sums, 1.0, 0, written, "hardtanh" if clip else "none", limits, "")
        # The 3D operator knows no clip: it saturates at 0 and 255, and the rest is clipped in place.
        if self.bounds is not None and not clip and self.bounds != (0, 255):
            result.clamp_(*self.bounds)
        # Highest integers are all ones, so that a difference from them is an exclusive or.
        return result if self.turned is None else result.bitwise_xor_(self.turned)


def is_exact(node: ConvolutionNode, read: TensorFormat) -> bool:
    """Whether a plain convolution keeps every sum and every rounding in these operators.

    They sum bytes in 32 bits, convert to float32, multiply by a power of two, add the bias and round once. That is exact while
    sums of ``q_w * q_a`` with the zero point not yet taken off, and with all of the bias, stay below 2**24 steps of the finer of
    the two grids (accumulators and output), and while a processor without VNNI can add two products in 16 bits.
    """
    magnitude = node.weight_magnitude.reshape(len(node.bias), -1).sum(axis=1, dtype=np.int64)
    widest = (magnitude * read.highest + np.abs(_folded_bias(node, read))).astype(np.float64)
    if node.output is not None:
        shift = _shift(node, read, node.output)
        if np.abs(shift).max() > _FARTHEST_SHIFT:
            return False
        widest = np.ldexp(widest, np.maximum(-shift, 0)) + np.ldexp(float(node.output.highest), np.maximum(shift, 0)) * (
            node.output.zero_point > 0
        )
    bytes_hold = int(node.weight.min()) >= -128 and int(node.weight.max()) <= 127
    return bytes_hold and not saturates(node, read) and bool(widest.max() < FLOAT32_EXACT_LIMIT)


def is_fast(node: ConvolutionNode) -> bool:
    """Whether oneDNN has a kernel for it here: 3D convolutions with groups have none without VNNI, and take 20 times the time."""
    return node.geometry.groups == 1 or node.geometry.spatial_axes == 2 or not byte_products_saturate()


def pack(node: ConvolutionNode, read: TensorFormat, shape: tuple[int, ...]) -> ByteConvolution:
    """Pack a plain convolution for inputs of one shape (N, C, *S); an unknown shape would cost 19 times the time."""
    weight = torch.from_numpy(np.ascontiguousarray(node.weight, dtype=np.int8))
    bias = _folded_bias(node, read).astype(np.float64)
    steps, bounds, turned = np.ones(len(bias)), None, None
    if node.output is not None:
        zero, highest = node.output.zero_point, node.output.highest
        steps = np.ldexp(steps, -_shift(node, read, node.output))
        bounds = (zero if node.relu else 0, highest)
        if zero % 2:
            # The operator rounds with the zero point added, and an odd one would turn ties to the odd neighbour. Everything is
            # negated instead, with the even zero point highest - zero.
            turned, steps, zero, bounds = highest, -steps, highest - zero, (0, highest - bounds[0])
        bias = bias * steps + zero
    scales = torch.from_numpy(steps).float()
    g, border = node.geometry, None
    if read.zero_point and any(g.padding):
        border = (g.padding, read.zero_point)
        shape = (*shape[:2], *(n + 2 * p for n, p in zip(shape[2:], g.padding, strict=True)))
        g = replace(g, padding=(0,) * g.spatial_axes)
    packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 0, g.stride, g.padding, g.dilation, g.groups, shape)
    nothing = torch.zeros(len(bias), dtype=torch.int32)
    return ByteConvolution(packed, scales, nothing, torch.from_numpy(bias).float(), g, border, bounds, turned)


@cache
def byte_convolutions_work(axes: int) -> bool:
    """Whether the operators exist in this torch and compute what they should on a small example, 2D or 3D."""
    generator = np.random.default_rng(0)
    read = TensorFormat(8, 0, 0)
    widest = 64 if byte_products_saturate() else 128
    for groups, output, largest in ((1, None, widest), (1, TensorFormat(8, 101, 0), 8), (4, TensorFormat(6, 0, 0), 8)):
        weight = generator.integers(-largest, largest, (4, 4 // groups, *[3] * axes))
        # Shifts so small that many sums are ties.
        bias, exponents = generator.integers(-999, 999, 4), np.array([4, 5, 6, 7])
        geometry = ConvGeometry((1,) * axes, (1,) * axes, (1,) * axes, groups)
        node = ConvolutionNode("trial", ("input",), output, weight, bias, exponents, 8, geometry, relu=False)
        x = torch.from_numpy(generator.integers(0, 256, (1, 4, *[5] * axes), dtype=np.uint8))
        x = x.contiguous(memory_format=MEMORY_FORMAT[axes])
        expected = _by_definition(node, x)
        try:
            found = pack(node, read, tuple(x.shape))(x)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            # Absent, or with another signature: this torch has no such operators.
            return False
        if found.shape != expected.shape or not torch.equal(found.double(), expected):
            return False
    return True


def _by_definition(node: ConvolutionNode, x: Tensor) -> Tensor:
    g = node.geometry
    convolution = F.conv2d if g.spatial_axes == 2 else F.conv3d
    weight, bias = torch.from_numpy(node.weight).double(), torch.from_numpy(node.bias).double()
    sums = convolution(x.double(), weight, bias, g.stride, g.padding, g.dilation, g.groups)
    if node.output is None:
        return sums
    steps = torch.from_numpy(np.ldexp(np.ones(len(node.bias)), -node.weight_exponents)).reshape(-1, *[1] * g.spatial_axes)
    return ((sums * steps).round() + node.output.zero_point).clamp(0, node.output.highest)


def _folded_bias(node: ConvolutionNode, read: TensorFormat) -> IntArray:
    """``sum(q_w * (q_a - z)) + q_b`` is ``sum(q_w * q_a)`` plus this."""
    folded: IntArray = node.bias - read.zero_point * node.weight.reshape(len(node.bias), -1).sum(axis=1)
    return folded


def _shift(node: ConvolutionNode, read: TensorFormat, written: TensorFormat) -> IntArray:
    return node.weight_exponents + (read.exponent - written.exponent)
