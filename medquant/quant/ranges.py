"""Ranges of post-training quantization: the values a step has to hold, and the step that holds them.

Smallest and largest value, a percentile of them, or the range of least squared error (Krishnamoorthi, arXiv 1806.08342, §3;
Nagel et al., arXiv 2106.08295, §3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from medquant.quant.fake_quantize import quantize_weight
from medquant.quant.formats import weight_range

RangeKind = Literal["squared_error", "min_max", "percentile"]

SMALLEST_STEP = 2.0**-24
"""No step is finer: a channel of zeros has none of its own, and the bias has to fit 32 bits on the grid it gives."""

_SHRINKS = 64
"""Ranges tried for the least squared error, from the whole one down to a sixteenth of it."""


def percentile(values: Tensor, share: float) -> Tensor:
    """``numpy.percentile`` along the last axis (linear between neighbours), for any number of values.

    Args:
        values: (..., N), floating point.
        share: in percent.
    """
    # torch.quantile refuses more than 16 million values.
    ordered = values.sort(dim=-1).values
    place = share / 100 * (values.shape[-1] - 1)
    below = min(math.floor(place), values.shape[-1] - 1)
    above = min(below + 1, values.shape[-1] - 1)
    return ordered[..., below] + (ordered[..., above] - ordered[..., below]) * (place - below)


def weight_magnitudes(weight: Tensor, channel_axis: int | None, kind: RangeKind, share: float) -> Tensor:
    """The magnitude each channel's range has to hold: its largest, or a percentile of all.

    Args:
        weight: any shape.
        channel_axis: axis with a range for each entry; None for one range.
        kind: ``percentile``, or anything else for the largest.
        share: in percent.

    Returns:
        Of size one along every other axis, float64, zeros where a channel holds nothing else.
    """
    moved = weight.detach().double().abs()
    flat = moved.reshape(1, -1) if channel_axis is None else moved.movedim(channel_axis, 0).flatten(1)
    found = percentile(flat, share) if kind == "percentile" else flat.amax(dim=1)
    return found.reshape([-1 if axis == channel_axis else 1 for axis in range(weight.dim())])


def real_weight_steps(weight: Tensor, channel_axis: int | None, bits: int, kind: RangeKind, share: float) -> Tensor:
    """A real step for each channel, symmetric: ``magnitude / (2^(b-1) - 1)``; one bit: the mean magnitude, whatever the kind.

    Args and shape: as :func:`weight_magnitudes`; ``bits`` 1 to 8.
    """
    values = weight.detach().double()
    axes = [axis for axis in range(weight.dim()) if axis != channel_axis]
    if bits == 1:
        # A sign times the mean magnitude has the least squared error there is (Rastegari et al., 2016, equation 6).
        return values.abs().mean(dim=axes, keepdim=True).clamp_min(SMALLEST_STEP)
    widest = (weight_magnitudes(weight, channel_axis, kind, share) / weight_range(bits)[1]).clamp_min(SMALLEST_STEP)
    if kind != "squared_error":
        return widest
    best, least = widest, torch.full_like(widest, math.inf)
    for shrink in _shrinks():
        step = (widest * shrink).clamp_min(SMALLEST_STEP)
        error = (quantize_weight(values, step, bits) * step - values).square().sum(dim=axes, keepdim=True)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def holding_exponents(magnitudes: Tensor, bits: int) -> Tensor:
    """The finest power-of-two steps ``2**-e`` whose ``2^(b-1) - 1`` levels hold the magnitudes; as floats, same shape."""
    # Rounding takes half a step more than the highest level, but a range is said to hold what it holds without it.
    overall = float(magnitudes.max()) or 1.0
    # A channel of zeros gets its layer's coarsest step, as in the search for the least squared error.
    held = torch.where(magnitudes < SMALLEST_STEP, overall, magnitudes)
    return torch.floor(torch.log2(weight_range(bits)[1] / held)).float()


def activation_span(samples: Iterable[Tensor], signed: bool, kind: RangeKind, share: float) -> tuple[float, float]:
    """Lowest and highest observed value, or their percentiles ``100 - share`` and ``share``; zero always lies between.

    Args:
        samples: flat tensors.
        signed: whether negative values matter.
        kind: ``percentile``, or anything else for the ends themselves.
        share: in percent.
    """
    lows, highs = [0.0], [0.0]
    for sample in samples:
        values = sample.detach().double().flatten()
        if kind == "percentile":
            highs.append(float(percentile(values, share)))
            lows.append(float(percentile(values, 100 - share)) if signed else 0.0)
        else:
            highs.append(float(values.max()))
            lows.append(float(values.min()) if signed else 0.0)
    return min(lows), max(highs)


def holding_activation_format(span: tuple[float, float], bits: int) -> tuple[int, int]:
    """The finest exponent, with its zero point, at which ``bits`` hold the whole span (rounded values at both ends).

    Args:
        span: lowest value, at most zero, and highest, at least zero.
        bits: 1 to 8.
    """
    low, high = span
    most = 2**bits - 1
    # Any step is exact for zeros; one near 1 keeps the next layer's bias on a grid that fits 32 bits.
    exponent = math.floor(math.log2(most / max(high - low, SMALLEST_STEP))) if high > low else 0
    while round(high * 2.0**exponent) - round(low * 2.0**exponent) > most:
        exponent -= 1
    return exponent, min(max(-round(low * 2.0**exponent), 0), most)


def real_activation_format(samples: dict[int, Tensor], signed: bool, kind: RangeKind, share: float) -> tuple[float, int]:
    """A real step and an integer zero point: ``(high - low) / (2^b - 1)`` and ``round(-low / step)``.

    Args:
        samples: observed values, flat, by the bit width they are stored in; the narrowest has to hold the range.
        signed: whether negative values matter.
        kind: how the range is chosen; ``squared_error`` also tries narrower ones.
        share: in percent, for ``percentile``.
    """
    bits = min(samples)
    low, high = activation_span(samples.values(), signed, kind, share)
    if high <= low:
        return 1.0, 0
    best = _affine(low, high, bits)
    if kind != "squared_error":
        return best
    values = {width: sample.detach().double().flatten() for width, sample in samples.items()}
    least = math.inf
    for shrink in _shrinks():
        step, zero_point = _affine(low * shrink, high * shrink, bits)
        error = sum(
            float(((v / step).round_().clamp_(-zero_point, 2**b - 1 - zero_point) * step - v).square().sum()) for b, v in values.items()
        )
        if error < least:
            best, least = (step, zero_point), error
    return best


def _affine(low: float, high: float, bits: int) -> tuple[float, int]:
    most = 2**bits - 1
    step = max((high - low) / most, SMALLEST_STEP)
    return step, min(max(round(-low / step), 0), most)


def _shrinks() -> list[float]:
    """From 1 down to 1/16, evenly in the logarithm."""
    return [2.0 ** (-4.0 * number / (_SHRINKS - 1)) for number in range(_SHRINKS)]
