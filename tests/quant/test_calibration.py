"""Starting exponents against a brute-force search in numpy over every exponent of a wide range."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medquant.quant.calibration import search_activation_format, search_weight_exponents

EXPONENTS = range(-22, 27)


def weight_error(values: NDArray[np.float64], exponent: int, bits: int) -> float:
    step = 2.0**-exponent
    if bits == 1:
        quantized = np.where(values >= 0, step, -step)
    else:
        quantized = np.clip(np.rint(values / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    return float(((quantized - values) ** 2).sum())


def activation_error(samples: dict[int, NDArray[np.float64]], exponent: int, zero_point: int) -> float:
    step = 2.0**-exponent
    total = 0.0
    for bits, values in samples.items():
        stored = np.clip(np.rint(values / step) + zero_point, 0, 2**bits - 1)
        total += float((((stored - zero_point) * step - values) ** 2).sum())
    return total


def best_error(error: Callable[[int], float]) -> float:
    """The least error over all exponents, with room for the order of a sum."""
    return min(error(exponent) for exponent in EXPONENTS) * (1 + 1e-12)


def channels(generator: np.random.Generator) -> NDArray[np.float64]:
    """Channels of very different shapes and sizes: (channels, 4608), as many weights as a 3×3 layer reads from 512 channels."""
    count = 4608
    outlier = generator.normal(0, 0.05, count)
    outlier[7] = 40.3
    rows = [
        generator.normal(0, 1, count),
        generator.normal(0, 1e-4, count),
        generator.uniform(-300, 300, count),
        generator.standard_t(2, count),
        generator.laplace(0, 0.02, count),
        outlier,
        np.where(generator.random(count) < 0.01, generator.normal(0, 1, count), 0.0),  # pruned to 1 %
    ]
    return np.stack(rows).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("bits", range(1, 9))
def test_weight_exponents_are_the_best_of_all(bits: int) -> None:
    values = channels(np.random.default_rng(bits))
    weight = torch.from_numpy(values).float()
    found = search_weight_exponents(weight.reshape(len(values), 512, 3, 3), 0, bits)
    assert found.shape == (len(values), 1, 1, 1)
    for row, exponent in zip(values, found.flatten().tolist(), strict=True):
        # Errors, not exponents, are compared: with one outlier, several steps can be equally good.
        assert weight_error(row, int(exponent), bits) <= best_error(lambda other: weight_error(row, other, bits))  # noqa: B023
    # The same weights in a transposed layout, output channels second.
    transposed = search_weight_exponents(weight.reshape(len(values), 512, 3, 3).transpose(0, 1), 1, bits)
    assert transposed.shape == (1, len(values), 1, 1)
    assert torch.equal(transposed.flatten(), found.flatten())


@pytest.mark.parametrize("bits", range(1, 9))
def test_one_exponent_for_the_whole_weight(bits: int) -> None:
    values = channels(np.random.default_rng(bits))[[0, 3, 4, 5]]
    found = search_weight_exponents(torch.from_numpy(values).float(), None, bits)
    assert found.shape == (1, 1)
    assert weight_error(values, int(found), bits) <= best_error(lambda exponent: weight_error(values, exponent, bits))


def test_weights_on_a_grid_keep_the_coarsest_exact_step() -> None:
    # Multiples of 1/2 up to 3 in 4 bits: steps 1/2 is exact, 1/4 would be too (3 = 12/4 is not in -8..7), so 1/2 it is.
    assert search_weight_exponents(torch.tensor([[0.5, -1.5, 3.0, -2.0]]), 0, 4).item() == 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_channels_of_zeros_are_ready_to_learn(bits: int) -> None:
    # A channel that is zero everywhere gets a step as coarse as its layer's, or no weight that grows could be represented
    # (and a bias on its grid would not fit 32 bits); a layer of zeros a step near 1.
    weight = torch.zeros(3, 4, 3, 3)
    weight[1] = torch.linspace(-0.9, 0.9, 36).reshape(4, 3, 3)
    high = 2 ** (bits - 1) - 1
    found = search_weight_exponents(weight, 0, bits).flatten()
    assert 0.9 <= high * 2.0 ** -found[0].item() < 2 * 0.9
    assert found[0] == found[2]
    empty = search_weight_exponents(torch.zeros(2, 4, 3, 3), 0, bits).flatten()
    assert empty.tolist() == [math.floor(math.log2(high))] * 2


def test_binary_channel_of_zeros_stays_quiet() -> None:
    # One bit has no zero: a coarse step would be noise of full size, so a fine one is best.
    weight = torch.zeros(2, 4, 3, 3)
    weight[1] = 1.0
    quiet, loud = (2.0 ** -search_weight_exponents(weight, 0, 1).flatten()).tolist()
    assert loud == 1.0
    assert 2.0**-20 < quiet < 2.0**-10


def rectified(generator: np.random.Generator, scale: float, count: int = 6000) -> NDArray[np.float64]:
    return np.maximum(generator.normal(0, scale, count), 0).astype(np.float32).astype(np.float64)


def as_tensors(samples: dict[int, NDArray[np.float64]]) -> dict[int, torch.Tensor]:
    return {bits: torch.from_numpy(values).float() for bits, values in samples.items()}


@pytest.mark.parametrize("scale", [1e-3, 90.0])
@pytest.mark.parametrize("widths", [(1,), (2,), (4,), (6,), (8,), (4, 8), (2, 6, 8)])
def test_unsigned_activation_exponent_is_the_best_of_all(widths: tuple[int, ...], scale: float) -> None:
    generator = np.random.default_rng(sum(widths))
    samples = {bits: rectified(generator, scale * (1 + place)) for place, bits in enumerate(widths)}
    exponent, zero_point = search_activation_format(as_tensors(samples), signed=False)
    assert zero_point == 0
    assert activation_error(samples, exponent, 0) <= best_error(lambda other: activation_error(samples, other, 0))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("outlier", [5.3, 60.7, 1000003.0])
def test_unsigned_activations_with_one_huge_outlier(bits: int, outlier: float) -> None:
    values = rectified(np.random.default_rng(bits), 1.0)
    values[11] = outlier
    exponent, zero_point = search_activation_format(as_tensors({bits: values}), signed=False)
    assert zero_point == 0
    assert activation_error({bits: values}, exponent, 0) <= best_error(lambda other: activation_error({bits: values}, other, 0))


@pytest.mark.parametrize("widths", [(2,), (4,), (6,), (8,), (4, 8)])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 1.5])
def test_signed_activation_exponent_is_the_best_for_its_zero_point(widths: tuple[int, ...], mean: float) -> None:
    generator = np.random.default_rng(len(widths))
    samples = {bits: generator.normal(mean, 1.0, 6000).astype(np.float32).astype(np.float64) for bits in widths}
    exponent, zero_point = search_activation_format(as_tensors(samples), signed=True)
    assert 0 <= zero_point <= 2 ** min(widths) - 1
    found = activation_error(samples, exponent, zero_point)
    # No other exponent is better with this zero point, nor with the middle of the range.
    for other in (zero_point, 2 ** min(widths) // 2):
        assert found <= min(activation_error(samples, candidate, other) for candidate in EXPONENTS) * (1 + 1e-9)
    # The zero point is searched among three only; the best of all pairs of exponent and zero point is not far below.
    pairs = ((candidate, point) for candidate in range(exponent - 2, exponent + 3) for point in range(2 ** min(widths)))
    assert found <= 1.05 * min(activation_error(samples, candidate, point) for candidate, point in pairs)


def test_signed_zero_point_covers_the_low_end() -> None:
    # Values in -1 .. 3 with a step of 1/16 in 6 bits (levels 0 .. 63): zero lies 16 steps above the lowest value.
    values = np.arange(-16, 48) / 16
    assert search_activation_format(as_tensors({6: np.tile(values, 40)}), signed=True) == (4, 16)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 6, 8])
def test_tensors_of_zeros_get_a_step_near_one(bits: int, signed: bool) -> None:
    # Any step is exact; a tiny one would put the next layer's bias on a grid so fine that it leaves 32 bits.
    exponent, zero_point = search_activation_format({bits: torch.zeros(100)}, signed)
    assert -2 <= exponent <= 8
    assert 0 <= zero_point <= 2**bits - 1


@pytest.mark.parametrize("widths", [(8,), (6, 8), (2, 8), (1, 8)])
@pytest.mark.parametrize("shift", [-0.37, 0.1, 0.43])
def test_eight_bits_get_even_zero_points_at_next_to_no_cost(widths: tuple[int, ...], shift: float) -> None:
    """Exports hold no odd ones. Expected: the least error over every exponent and every zero point, odd ones included."""
    generator = np.random.default_rng(3)
    samples = {bits: (generator.normal(0, 0.3, 3000) + shift).astype(np.float32).astype(np.float64) for bits in widths}
    exponent, zero_point = search_activation_format(as_tensors(samples), signed=True)
    assert zero_point % 2 == 0
    if min(widths) < 4:
        return
    found = activation_error(samples, exponent, zero_point)
    best = min(best_error(lambda other, z=z: activation_error(samples, other, z)) for z in range(2 ** min(widths)))  # type: ignore[misc]
    assert found <= 1.15 * best


def test_narrow_tensors_may_have_odd_zero_points() -> None:
    values = as_tensors({4: np.linspace(-3, 12, 16)})
    assert search_activation_format(values, signed=True) == (0, 3)
