"""Quantizers against integers computed with numpy and Python, and their gradients against LSQ's formulas written out here."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from medquant.quant.fake_quantize import fake_quantize_activation, fake_quantize_weight, quantize_weight, round_to_grid

WIDTHS = range(1, 9)
DTYPES = [torch.float32, torch.bfloat16]
ACTIVATION_VALUES = 90_000  # × 8 widths × 4 zero points × 2 types = 5.8 million
WEIGHT_SHAPE = (50, 60, 3, 20)  # 180,000 × 8 widths × 3 layouts = 4.3 million; together above 10**7


def spread(generator: np.random.Generator, step: float, low: int, high: int, count: int) -> NDArray[np.float64]:
    """Values in and far beyond the range, a third of them exactly on ties and a few on the ends, zeros and signed zeros."""
    width = high - low + 1
    free = generator.normal(0.5 * (low + high), width, count // 3) * step
    ties = (generator.integers(low - 3, high + 3, count // 3) + 0.5) * step
    wide = generator.standard_cauchy(count - 2 * (count // 3) - 6) * step * width
    ends = np.array([low, high, low - 0.5, high + 0.5, 0.0, -0.0]) * step
    return np.concatenate([free, ties, wide, ends])


def integers_of(values: NDArray[np.float64], exponent: int, low: int, high: int) -> NDArray[np.int64]:
    """The reference: scaling by a power of two is exact in float64, numpy rounds half to even, then saturation."""
    return np.clip(np.rint(np.ldexp(values, exponent)), low, high).astype(np.int64)


def test_reference_rounds_half_to_even_as_fractions_do() -> None:
    # Python's round on a Fraction rounds half to even by definition; the numpy reference above must do the same.
    generator = np.random.default_rng(0)
    values = spread(generator, 2.0**-3, -8, 7, 3000)
    expected = [min(max(round(Fraction(float(value)) * 8), -8), 7) for value in values]
    assert integers_of(values, 3, -8, 7).tolist() == expected
    assert integers_of(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5]), 0, -8, 7).tolist() == [0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_activations_equal_the_integer_reference(bits: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(bits)
    levels = 2**bits
    for zero_point, exponent in ((0, 3), (levels // 2, -2), (levels - 1, 0), (levels // 3, 11)):
        low, high = -zero_point, levels - 1 - zero_point
        step = 2.0**-exponent
        x = torch.from_numpy(spread(generator, step, low, high, ACTIVATION_VALUES)).to(dtype)
        y = fake_quantize_activation(x, torch.tensor(float(-exponent)), step, low, high)
        assert y.dtype == dtype
        expected = integers_of(x.double().numpy(), exponent, low, high)
        assert np.count_nonzero(y.double().numpy() != expected * step) == 0
        assert {int(expected.min()), int(expected.max())} == {low, high}  # both ends saturate, or the check is weak


@pytest.mark.parametrize("axis", [None, 0, 1], ids=["per tensor", "per channel", "per channel, transposed"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_equal_the_integer_reference(bits: int, axis: int | None) -> None:
    generator = np.random.default_rng(100 + bits)
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    shape = [length if position == axis else 1 for position, length in enumerate(WEIGHT_SHAPE)]
    exponents = generator.integers(-6, 14, shape)
    base = spread(generator, 1.0, low, high, math.prod(WEIGHT_SHAPE))
    values = np.ldexp(generator.permutation(base).reshape(WEIGHT_SHAPE), -exponents)
    weight = torch.from_numpy(values).float()
    values = weight.double().numpy()
    if bits == 1:  # the sign; zero counts as positive
        expected = np.where(values >= 0, 1, -1)
    else:
        expected = np.clip(np.rint(np.ldexp(values, exponents)), low, high).astype(np.int64)
    # A learned logarithm lies anywhere within half of its integer.
    log2_step = torch.from_numpy(-exponents + generator.uniform(-0.49, 0.49, shape)).float()
    found = quantize_weight(weight, torch.exp2(torch.round(log2_step)), bits).numpy()
    assert np.count_nonzero(found != expected) == 0
    assert np.count_nonzero(fake_quantize_weight(weight, log2_step, bits).double().numpy() != np.ldexp(expected, -exponents)) == 0
    assert {expected.min(), expected.max()} == {low, high}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_of_two_are_exact(dtype: torch.dtype) -> None:
    # The contract rests on exp2 of whole numbers having no error; math.ldexp is exact by definition.
    # Long enough for the vectorised code path, and once more one by one for the scalar path.
    whole = list(range(-60, 61)) * 3
    expected = [math.ldexp(1.0, value) for value in whole]
    assert torch.exp2(torch.tensor(whole, dtype=dtype)).tolist() == expected
    assert [torch.exp2(torch.tensor(float(value), dtype=dtype)).item() for value in whole[:121]] == expected[:121]


def test_bias_lands_on_the_grid_and_its_gradient_passes() -> None:
    # Ties by hand: 0.5, 1.5, -0.5 and 2.5 steps of 1/4 and of 4.
    x = torch.tensor([0.125, 0.375, -0.125, 2.0, 6.0, 10.0], requires_grad=True)
    y = round_to_grid(x, torch.tensor([0.25, 0.25, 0.25, 4.0, 4.0, 4.0]))
    assert y.tolist() == [0.0, 0.5, 0.0, 0.0, 8.0, 8.0]
    y.backward(torch.arange(6.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def lsq(value: float, step: float, low: int, high: int) -> tuple[float, float]:
    """LSQ (Esser et al., 2020, eq. 3 and 5) for one value: d quantized / d value and d quantized / d step."""
    scaled = value / step
    if scaled <= low:
        return 0.0, float(low)
    if scaled >= high:
        return 0.0, float(high)
    return 1.0, round(Fraction(scaled)) - scaled


@pytest.mark.parametrize(
    ("bits", "zero_point", "relu"), [(2, 0, True), (4, 5, False), (4, 5, True), (6, 0, True), (8, 128, False), (1, 0, True)]
)
def test_activation_gradients_are_lsq(bits: int, zero_point: int, relu: bool) -> None:
    step, log2_step = 0.25, torch.tensor(-2.0, requires_grad=True)
    low, high = 0 if relu else -zero_point, 2**bits - 1 - zero_point
    # Below, at and above both ends, on ties, and inside.
    scaled = [low - 9.0, low - 0.4, float(low), low + 0.3, low + 0.5, 0.7, high - 0.2, float(high), high + 0.2, high + 50.0]
    x = torch.tensor([value * step for value in scaled], requires_grad=True)
    arriving = torch.tensor([0.5, -2.0, 1.0, 3.0, -1.0, 0.25, 2.0, -0.75, 1.5, -4.0])
    fake_quantize_activation(x, log2_step, step, low, high).backward(arriving)
    pairs = [lsq(value, step, low, high) for value in x.tolist()]
    # d/dt of s = 2**t is s * ln 2; LSQ scales by 1 / sqrt(N * Q_P).
    slope = sum(grad * pair[1] for grad, pair in zip(arriving.tolist(), pairs, strict=True))
    expected = slope * step * math.log(2) / math.sqrt(len(scaled) * high)
    assert x.grad is not None
    assert log2_step.grad is not None
    assert x.grad.tolist() == [grad * pair[0] for grad, pair in zip(arriving.tolist(), pairs, strict=True)]
    assert log2_step.grad.item() == pytest.approx(expected, rel=1e-5)


def test_activation_gradient_needs_no_step_gradient() -> None:
    x = torch.tensor([-1.0, 0.3, 9.0], requires_grad=True)
    fake_quantize_activation(x, torch.tensor(0.0), 1.0, 0, 3).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_gradients_are_lsq_for_each_channel(bits: int, axis: int | None) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(bits)
    shape = (3, 2, 4, 5)
    step_shape = [length if position == axis else 1 for position, length in enumerate(shape)]
    log2_step = torch.randint(-4, 2, step_shape, generator=generator).float().requires_grad_()
    step = torch.exp2(log2_step.detach()).expand(shape)
    # Scaled values spread over three times the range, but not in the half step beyond an end, which has its own test.
    scaled = torch.empty(shape).uniform_(3.0 * low, 3.0 * high, generator=generator)
    scaled = torch.where((scaled > high) & (scaled < high + 0.5), scaled + 1, scaled)
    scaled = torch.where((scaled < low) & (scaled > low - 0.5), scaled - 1, scaled)
    weight = (scaled * step).requires_grad_()
    arriving = torch.randn(shape, generator=generator)
    fake_quantize_weight(weight, log2_step, bits).backward(arriving)

    expected_weight = torch.zeros(shape)
    expected_step = torch.zeros(step_shape)
    per_step = math.prod(shape) / math.prod(step_shape)
    for index in np.ndindex(*shape):
        size = float(step[index])
        to_value, to_step = lsq(float(weight.detach()[index]), size, low, high)
        expected_weight[index] = arriving[index] * to_value
        owner = tuple(position if length > 1 else 0 for position, length in zip(index, step_shape, strict=True))
        expected_step[owner] += float(arriving[index]) * to_step * size * math.log(2) / math.sqrt(per_step * high)
    assert weight.grad is not None
    assert log2_step.grad is not None
    assert torch.equal(weight.grad, expected_weight)
    torch.testing.assert_close(log2_step.grad, expected_step, rtol=1e-4, atol=1e-6)


def test_weight_that_rounds_to_an_end_counts_as_inside() -> None:
    # Stated departure from LSQ: within half a step beyond an end, the residual of the rounding and a passing gradient.
    weight = torch.tensor([7.25, -8.25, 7.75, -8.75], requires_grad=True)  # 4 bits, step 1: ends 7 and -8
    log2_step = torch.zeros(1, requires_grad=True)
    fake_quantize_weight(weight, log2_step, 4).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert weight.grad is not None
    assert log2_step.grad is not None
    assert weight.grad.tolist() == [1.0, 10.0, 0.0, 0.0]
    slope = 1 * (7 - 7.25) + 10 * (-8 + 8.25) + 100 * 7 + 1000 * -8
    assert log2_step.grad.item() == pytest.approx(slope * math.log(2) / math.sqrt(4 * 7), rel=1e-6)


def test_binary_weight_gradients() -> None:
    # Step 1/2, so gradients pass up to 2.5 steps = 1.25; the step's slope is the value itself, sign times step.
    weight = torch.tensor([[0.3, -1.2, 1.2, -0.0], [2.0, -2.0, 0.01, -0.01]], requires_grad=True)
    log2_step = torch.full((2, 1), -1.0, requires_grad=True)
    arriving = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 9.0]])
    quantized = fake_quantize_weight(weight, log2_step, 1)
    assert quantized.tolist() == [[0.5, -0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]]
    quantized.backward(arriving)
    assert weight.grad is not None
    assert log2_step.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 7.0, 9.0]]
    scale = 0.5 * math.log(2) / math.sqrt(4 * 1)
    expected = torch.tensor([[(1 - 2 + 3 + 4) * scale], [(5 - 6 + 7 - 9) * scale]])
    torch.testing.assert_close(log2_step.grad, expected, rtol=1e-6, atol=0)


def test_gradients_in_bfloat16_follow_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4096, generator=generator).to(torch.bfloat16)
    arriving = torch.randn(4096, generator=generator).to(torch.bfloat16)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        value, log2_step = x.to(dtype).requires_grad_(), torch.tensor(-2.0, requires_grad=True)
        fake_quantize_activation(value, log2_step, 0.25, -3, 4).backward(arriving.to(dtype))
        assert value.grad is not None
        assert log2_step.grad is not None
        assert log2_step.grad.dtype == torch.float32
        return value.grad, log2_step.grad

    (exact, exact_step), (narrow, narrow_step) = gradients(torch.float32), gradients(torch.bfloat16)
    assert torch.equal(exact, narrow.float())
    # Sums in bfloat16 keep 8 bits of 4096 products.
    assert narrow_step.item() == pytest.approx(exact_step.item(), rel=0.05, abs=0.01)
