"""Starting exponents by search: the power-of-two step of least squared error, for weights and for observed activations."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from medquant.quant.fake_quantize import quantize_weight
from medquant.quant.formats import weight_range

WEIGHT_CANDIDATES = 16
"""Exponents tried for a weight, from the one that just holds the largest value to steps 2**-15 of it: a channel of one bit
follows its mean magnitude, which can lie far below its largest weight."""

ACTIVATION_CANDIDATES = 10
"""Exponents tried for an activation; more than for weights, because a few large values must not cost all the others a bit."""

_OBSERVED_PER_BATCH = 65536

_WIDEST = 8
"""Tensors this wide get even zero points: runtimes add the zero point before they round, which turns ties where it is odd, and there
is no level above the highest to raise an odd one by. One level of 256 more or less at an end costs next to nothing."""

_SMALLEST = 2.0**-20
"""Weights below this are as good as zero: a grid this fine would put the bias beyond 32 bits."""


def thin_out(x: Tensor) -> Tensor:
    """A tensor's values, flat, float32, evenly thinned to fewer than 131,072: what calibration keeps of a batch."""
    flat = x.detach().float().reshape(-1)
    return flat[:: max(1, flat.numel() // _OBSERVED_PER_BATCH)].clone()


def search_weight_exponents(weight: Tensor, channel_axis: int | None, bits: int) -> Tensor:
    """The exponent of least squared error, for each channel apart.

    Args:
        weight: any shape.
        channel_axis: axis with one exponent for each entry; None for one exponent over all.
        bits: 1 to 8.

    Returns:
        Exponents ``e`` (step ``2**-e``) as floats, of size one along every other axis.
    """
    weight = weight.detach().double()
    axes = [axis for axis in range(weight.dim()) if axis != channel_axis]
    largest = weight.abs().amax(dim=axes, keepdim=True)
    # A channel of zeros gets its layer's coarsest step, so that its weights can still grow; a layer of zeros one near 1.
    overall = float(largest.max())
    largest = torch.where(largest < _SMALLEST, overall if overall >= _SMALLEST else 1.0, largest)
    # The coarsest candidate holds the largest magnitude without saturating.
    first = torch.floor(torch.log2(weight_range(bits)[1] / largest))
    best_error = torch.full_like(first, math.inf)
    best = first.clone()
    for offset in range(WEIGHT_CANDIDATES):
        exponent = first + offset
        step = torch.exp2(-exponent)
        error = (quantize_weight(weight, step, bits) * step - weight).square().sum(dim=axes, keepdim=True)
        better = error < best_error
        best = torch.where(better, exponent, best)
        best_error = torch.where(better, error, best_error)
    return best.float()


def search_activation_format(samples: dict[int, Tensor], signed: bool) -> tuple[int, int]:
    """The step and zero point of least squared error over values that share them.

    Args:
        samples: observed values, flat, by the bit width they are stored in.
        signed: whether negative values matter; without, the zero point is 0.

    Returns:
        Exponent and zero point.
    """
    values = {bits: sample.detach().double().flatten() for bits, sample in samples.items()}
    narrowest = 2 ** min(values) - 1
    # Any step is exact for zeros; one near 1 keeps the next layer's bias on a grid that fits 32 bits.
    reach = max(float(sample.abs().max()) for sample in values.values()) or 1.0
    span = _span(values.values()) if signed else None
    even_only = max(values) == _WIDEST
    first = math.floor(math.log2(narrowest / reach)) - 1
    best = (math.inf, first, 0)
    for exponent in range(first, first + ACTIVATION_CANDIDATES):
        for zero_point in _zero_points(span, exponent, narrowest, even_only):
            error = sum(_squared_error(sample, exponent, zero_point, bits) for bits, sample in values.items())
            # A finer step must be better, not equal, to win: tensors of zeros keep the first candidate.
            if error < best[0]:
                best = (error, exponent, zero_point)
    return best[1], best[2]


def _span(samples: Iterable[Tensor]) -> tuple[float, float]:
    """Lowest and highest value, but for one in two thousand at each end."""
    # torch.quantile takes no more than 16 million values.
    ends = [torch.quantile(sample[:1_000_000], torch.tensor([0.0005, 0.9995], dtype=sample.dtype)) for sample in samples]
    return min(float(end[0]) for end in ends), max(float(end[1]) for end in ends)


def _zero_points(span: tuple[float, float] | None, exponent: int, narrowest: int, even_only: bool) -> list[int]:
    """Zero points worth a try: the middle, the one that starts the levels at the lowest value, the one that centres them."""
    if span is None:
        return [0]
    low, high = (end * 2.0**exponent for end in span)
    fitted = [-low, (narrowest - low - high) / 2]
    if even_only:
        beside = [2 * whole(point / 2) for point in fitted for whole in (math.floor, math.ceil)]
        points = [(narrowest + 1) // 4 * 2, *(min(max(point, 0), narrowest - 1) for point in beside)]
    else:
        points = [(narrowest + 1) // 2, *(min(max(round(point), 0), narrowest) for point in fitted)]
    return list(dict.fromkeys(points))


def _squared_error(sample: Tensor, exponent: int, zero_point: int, bits: int) -> float:
    scaled = sample * 2.0**exponent
    rounded = scaled.round().clamp_(-zero_point, 2**bits - 1 - zero_point)
    return float((rounded - scaled).square().sum()) * 4.0**-exponent
