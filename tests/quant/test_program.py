"""Formats and the accumulator bound, by hand and against every image there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medquant.errors import ConfigError
from medquant.quant.formats import TensorFormat, weight_range
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram, accumulator_bound, last_readers


def test_weight_ranges_are_twos_complement() -> None:
    assert [weight_range(bits) for bits in (1, 2, 3, 4, 8)] == [(-1, 1), (-2, 1), (-4, 3), (-8, 7), (-128, 127)]
    for bits in (0, 9, 32, -1):
        with pytest.raises(ConfigError, match=f"1 to 8 bits, found {bits}"):
            weight_range(bits)


@pytest.mark.parametrize(("bits", "zero_point"), [(0, 0), (9, 0), (4, 16), (4, -1), (1, 2)])
def test_formats_out_of_range_are_refused(bits: int, zero_point: int) -> None:
    with pytest.raises(ConfigError, match="1 to 8 bits and a zero point within them"):
        TensorFormat(bits, zero_point, 0)


def test_format_by_hand() -> None:
    assert TensorFormat(6, 0, 3).highest == 63
    assert TensorFormat(6, 0, 3).largest_magnitude == 63
    assert TensorFormat(4, 5, 0).largest_magnitude == 10  # 15 - 5
    assert TensorFormat(4, 12, 0).largest_magnitude == 12


def convolution(weight: list[object], bias: list[int], geometry: ConvGeometry, bits: int = 4) -> ConvolutionNode:
    integers = np.array(weight, dtype=np.int64)
    return ConvolutionNode("c", ("input",), None, integers, np.array(bias), np.zeros(len(bias), np.int64), bits, geometry, False)


def test_bound_by_hand() -> None:
    plain = ConvGeometry((1, 1), (0, 0), (1, 1))
    # Channel 0: (3 + 4) · 3 + 2 = 23; channel 1: 5 · 3 + 10 = 25.
    node = convolution([[[[3, -4]]], [[[5, 0]]]], [2, -10], plain)
    assert accumulator_bound(node, TensorFormat(2, 0, 0)) == 25
    # Zero point 1 of 2 bits: the largest magnitude is 2, so 7 · 2 + 2 = 16 and 5 · 2 + 10 = 20.
    assert accumulator_bound(node, TensorFormat(2, 1, 0)) == 20


def test_bound_of_a_grouped_transposed_convolution_by_hand() -> None:
    # (in 4, out/groups 1, 1, 2), two groups: output 0 sums rows 0 and 1, output 1 rows 2 and 3.
    grouped = ConvGeometry((1, 2), (0, 0), (1, 1), groups=2, transposed=True, output_padding=(0, 0))
    node = convolution([[[[1, -2]]], [[[3, 0]]], [[[0, 0]]], [[[-4, 1]]]], [1, 2], grouped)
    assert accumulator_bound(node, TensorFormat(1, 0, 0)) == max(1 + 2 + 3 + 1, 4 + 1 + 2)


def test_bound_is_reached_by_some_image_of_a_plain_convolution() -> None:
    # All 4^4 images of four 2-bit voxels under one window: the largest accumulator is the bound, if bias and sum agree in sign.
    node = convolution([[[[2, 3], [1, 0]]]], [7], ConvGeometry((1, 1), (0, 0), (1, 1)))
    images = torch.tensor(list(itertools.product(range(4), repeat=4))).reshape(-1, 1, 2, 2)
    accumulators = F.conv2d(images, torch.from_numpy(node.weight), torch.from_numpy(node.bias))
    assert int(accumulators.abs().max()) == accumulator_bound(node, TensorFormat(2, 0, 0)) == 6 * 3 + 7


def test_look_ups() -> None:
    image = ImageNode("input", (), TensorFormat(8, 128, 4), 1)
    node = convolution([[[[1]]]], [0], ConvGeometry((1, 1), (0, 0), (1, 1)))
    program = IntegerProgram((image, node), (4,))
    assert program.image is image
    assert program.convolutions == [node]
    assert program.format_of("input") == TensorFormat(8, 128, 4)
    assert last_readers(program) == {"input": "c"}
    with pytest.raises(TypeError, match="c writes accumulators"):
        program.format_of("c")
    with pytest.raises(KeyError):
        program["d"]
    with pytest.raises(TypeError, match="first node is its image"):
        _ = IntegerProgram((node,), (0,)).image


@pytest.mark.parametrize("kind", [np.int8, np.int64])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_lowest_byte_counts_in_full(kind: type[np.signedinteger], transposed: bool) -> None:
    """-128 has no absolute value in its own byte, and 300 of them none in 16 bits."""
    shape = (300, 2, 1, 1) if transposed else (2, 300, 1, 1)
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1), transposed=transposed, output_padding=(0, 0) if transposed else ())
    weight, bias = np.full(shape, -128, kind), np.array([0, -5])
    node = ConvolutionNode("c", ("x",), None, weight, bias, np.array([0, 0]), 8, geometry, relu=False)
    assert node.weight_magnitude.min() == node.weight_magnitude.max() == 128
    assert accumulator_bound(node, TensorFormat(8, 0, 0)) == 128 * 300 * 255 + 5
