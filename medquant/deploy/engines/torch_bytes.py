"""Moving, comparing and adding bytes: what a program does between convolutions. Tensors are uint8, (N, C, *S), channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from medquant.quant.formats import TensorFormat, float32_adds_exactly
from medquant.quant.program import AddNode, ConvolutionNode, MaxPoolNode

MEMORY_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}
_WIDE_TYPES = ((16, torch.complex128), (8, torch.int64), (4, torch.int32), (2, torch.int16))
_CHUNK = 2**18
_FARTHEST_SHIFT = 100
"""Float32 holds every sum of two bytes times a power of two no farther than this from 1."""


def empty(shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
    """Room for (N, C, *S) values, channels last."""
    return torch.empty(tuple(shape), dtype=dtype, memory_format=MEMORY_FORMAT[len(shape) - 2])


def move(target: Tensor, source: Tensor) -> None:
    """Copy between views; bytes as many channels at a time as fit a wide type, since short runs of single bytes are slow to copy."""
    to, taken = target.movedim(1, -1), source.movedim(1, -1)
    for width, dtype in _WIDE_TYPES:
        if _in_steps_of(width, to) and _in_steps_of(width, taken):
            to.view(dtype).copy_(taken.view(dtype))
            return
    to.copy_(taken)


def _in_steps_of(width: int, x: Tensor) -> bool:
    steps = (x.shape[-1], *x.stride()[:-1], x.storage_offset(), x.data_ptr())
    return x.dtype == torch.uint8 and x.stride(-1) == 1 and all(step % width == 0 for step in steps)


@dataclass(frozen=True)
class Slot:
    """Along one axis: places ``first..first + count - 1`` of a result go to ``start, start + step, ...`` of the output."""

    first: int
    count: int
    start: int
    step: int


def place(result: Tensor, slots: Sequence[Slot], target: Tensor) -> None:
    """Write one phase of an up-sampling where it belongs."""
    if all(slot.count > 0 for slot in slots):
        taken = result[(slice(None), slice(None), *(slice(s.first, s.first + s.count) for s in slots))]
        reached = [slice(s.start, s.start + (s.count - 1) * s.step + 1, s.step) for s in slots]
        move(target[(slice(None), slice(None), *reached)], taken)


def repeat(x: Tensor, factor: int, target: Tensor) -> Tensor:
    """Nearest up-sampling into ``target``, which is returned."""
    for phase in product(range(factor), repeat=x.dim() - 2):
        place(x, [Slot(0, n, first, factor) for first, n in zip(phase, x.shape[2:], strict=True)], target)
    return target


def transposed_size(node: ConvolutionNode, size: Sequence[int]) -> tuple[int, ...]:
    """Spatial size of a transposed convolution's output."""
    g = node.geometry
    return tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, s, p, d, k, o in zip(size, g.stride, g.padding, g.dilation, node.weight.shape[2:], g.output_padding, strict=True)
    )


def interleave(node: ConvolutionNode, result: Tensor, target: Tensor) -> None:
    """Bring the phases of :func:`~medquant.deploy.engines.torch_rewrite.transposed_as_plain`, (N, phases · C, *M), to (N, C, *S)."""
    stride, channels = node.geometry.stride, target.shape[1]
    for number, phase in enumerate(product(*(range(s) for s in stride))):
        slots = []
        for first, step, padding, length in zip(phase, stride, node.geometry.padding, target.shape[2:], strict=True):
            cut = max(-(-(padding - first) // step), 0)
            start = cut * step + first - padding
            slots.append(Slot(cut, -(-(length - start) // step), start, step))
        place(result.narrow(1, number * channels, channels), slots, target)


def pad_with(x: Tensor, padding: Sequence[int], value: int) -> Tensor:
    """Room on both sides of each axis, filled with one integer."""
    size = [n + 2 * p for n, p in zip(x.shape[2:], padding, strict=True)]
    padded = empty((*x.shape[:2], *size)).fill_(value)
    move(padded[_inside(padding, x.shape[2:])], x)
    return padded


def repeat_edges(x: Tensor) -> Tensor:
    """One voxel more on each side of each axis, equal to its neighbour."""
    axes = x.dim() - 2
    padded = empty((*x.shape[:2], *(n + 2 for n in x.shape[2:])))
    move(padded[_inside([1] * axes, x.shape[2:])], x)
    for axis in range(2, x.dim()):
        # Corners come right because each axis copies what the ones before it wrote.
        for place, neighbour in ((0, 1), (-1, -2)):
            move(padded.select(axis, place).unsqueeze(axis), padded.select(axis, neighbour).unsqueeze(axis))
    return padded


def max_pool(node: MaxPoolNode, x: Tensor) -> Tensor:
    """Maxima along one axis after another; padding with 0, the lowest byte, never wins."""
    if any(node.padding):
        x = pad_with(x, node.padding, 0)
    for axis, (width, step) in enumerate(zip(node.kernel, node.stride, strict=True), start=2):
        count = (x.shape[axis] - width) // step + 1
        seen = [x[(slice(None),) * axis + (slice(first, first + (count - 1) * step + 1, step),)] for first in range(width)]
        largest = seen[0] if width == 1 else torch.maximum(seen[0], seen[1])
        for other in seen[2:]:
            torch.maximum(largest, other, out=largest)
        x = largest
    return x.contiguous(memory_format=MEMORY_FORMAT[x.dim() - 2])


def add(node: AddNode, first: Tensor, second: Tensor, formats: tuple[TensorFormat, TensorFormat], written: TensorFormat) -> Tensor:
    """Sum on the finer grid, one rounding half to even, saturation; in pieces that stay in the processor's cache."""
    a, b = formats
    near = max(abs(form.exponent - written.exponent) for form in formats) < _FARTHEST_SHIFT
    dtype = torch.float32 if near and float32_adds_exactly(a.exponent, b.exponent) else torch.float64
    # In steps of the output: two powers of two, and one constant that takes both zero points off.
    left, right = (2.0 ** (written.exponent - form.exponent) for form in formats)
    constant = -a.zero_point * left - b.zero_point * right
    low = 0 if node.relu else -written.zero_point
    result = empty(first.shape)
    flat = [x.movedim(1, -1).reshape(-1) for x in (first, second, result)]
    for start in range(0, flat[2].numel(), _CHUNK):
        one, other, target = (part[start : start + _CHUNK] for part in flat)
        total = one.to(dtype).mul_(left).add_(other.to(dtype), alpha=right).add_(constant)
        target.copy_(total.round_().clamp_(low, written.highest - written.zero_point).add_(written.zero_point))
    return result


def _inside(padding: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(p, p + n) for p, n in zip(padding, size, strict=True)))
