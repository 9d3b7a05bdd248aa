"""Images to integers and output integers to masks, by hand and against Python's exact rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from medquant.deploy.decide import decide, quantize_image
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import AddNode, ConvolutionNode, ImageNode, IntegerProgram

IMAGE = ImageNode("input", (), TensorFormat(8, 128, 0), 1)


def accumulators(*exponents: int) -> IntegerProgram:
    """A program that ends in a convolution with an exponent for each output channel."""
    count = len(exponents)
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1))
    zeros = np.zeros(count, np.int64)
    node = ConvolutionNode("head", ("input",), None, np.ones((count, 1, 1, 1), np.int64), zeros, np.array(exponents), 4, geometry, False)
    return IntegerProgram((IMAGE, node), exponents)


def finished(zero_point: int) -> IntegerProgram:
    """A program that ends in a quantized tensor."""
    node = AddNode("sum", ("input", "input"), TensorFormat(6, zero_point, 3), relu=False)
    return IntegerProgram((IMAGE, node), (3,))


def column(*values: int) -> np.ndarray:
    """One voxel a value: (N, 1, values, 1)."""
    return np.array(values, np.int64).reshape(1, 1, -1, 1)


def test_one_output_is_foreground_above_real_zero() -> None:
    mask = decide(column(-5, -1, 0, 1, 2**30), accumulators(9))
    assert mask.dtype == np.uint8
    assert mask.shape == (1, 5, 1)
    assert mask.flatten().tolist() == [0, 0, 0, 1, 1]
    assert decide(column(0, 19, 20, 21, 63), finished(20)).flatten().tolist() == [0, 0, 0, 1, 1]


def test_several_outputs_are_decided_by_the_largest_and_ties_by_the_lower_class() -> None:
    # Voxels by column: clear, two tied at the top, all equal, negative, tie of the last two.
    output = np.array([[5, 7, 3, -9, 0], [4, 7, 3, -2, 6], [-6, 1, 3, -8, 6]], np.int64).reshape(1, 3, 5, 1)
    mask = decide(output, accumulators(4, 4, 4))
    assert mask.shape == (1, 5, 1)
    assert mask.flatten().tolist() == [0, 0, 0, 1, 1]
    volume = decide(np.stack([output[0, :, :, 0]] * 2)[..., None, None], accumulators(4, 4, 4))
    assert volume.shape == (2, 5, 1, 1)
    assert volume[1].flatten().tolist() == [0, 0, 0, 1, 1]


def test_outputs_of_different_exponents_are_compared_as_values() -> None:
    # Exponents 0 and 3: 1 is worth eight of the other's. 1 against 7, 8 (a tie) and 9 eighths; then the negative side.
    output = np.array([[1, 1, 1, -1, -1], [7, 8, 9, -7, -9]], np.int64).reshape(1, 2, 5, 1)
    assert decide(output, accumulators(0, 3)).flatten().tolist() == [0, 0, 1, 1, 0]
    assert decide(output, accumulators(-2, 1)).flatten().tolist() == [0, 0, 1, 1, 0]
    # Neighbouring accumulators of 31 bits at exponents 20 apart, where float32 could not tell them apart.
    large = np.array([[2**31 - 2, 2**11 - 1], [2**31 - 1, (2**11 - 1) * 2**20 + 1]], np.int64).reshape(1, 2, 2, 1)
    assert decide(large[:, :, :1], accumulators(5, 5)).item() == 1
    assert decide(large[:, :, 1:], accumulators(0, 20)).item() == 1


@pytest.mark.parametrize(("bits", "zero_point", "exponent"), [(8, 128, 5), (8, 0, 0), (4, 3, -1), (1, 1, 2), (6, 63, 12)])
def test_images_are_rounded_half_to_even_and_saturate(bits: int, zero_point: int, exponent: int) -> None:
    generator = np.random.default_rng(bits)
    written = TensorFormat(bits, zero_point, exponent)
    ties = (generator.integers(-zero_point - 4, 2**bits - zero_point + 4, 400) + 0.5) * 2.0**-exponent
    free = generator.normal(0, 2.0**bits, 400) * 2.0**-exponent
    image = np.concatenate([ties, free, [0.0, -0.0, 1e30, -1e30, 7e30]]).astype(np.float32).reshape(5, 1, 7, 23)
    expected = [min(max(round(Fraction(float(value)) * Fraction(2) ** exponent) + zero_point, 0), 2**bits - 1) for value in image.flat]
    found = quantize_image(image, written)
    assert found.dtype == np.uint8
    assert found.shape == image.shape
    assert found.flatten().tolist() == expected
    assert {0, 2**bits - 1} <= set(expected)  # both ends saturate, or the check is weak
    wide: np.ndarray = image.astype(np.float64)
    assert np.array_equal(quantize_image(wide, written), found)  # type: ignore[arg-type]


def test_ties_of_an_image_by_hand() -> None:
    image = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 100.0, -100.0], np.float32)
    assert quantize_image(image, TensorFormat(4, 8, 0)).tolist() == [8, 10, 10, 8, 6, 6, 15, 0]
