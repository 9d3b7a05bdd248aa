"""Each node of the integer program against loops over Python integers and fractions, which follow the node's definition word by word.

The reference engine is what all others are held to, so it is held to nothing of this package; the torch engine runs along.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medquant.deploy.engines import ENGINES
from medquant.deploy.engines.reference import requantize
from medquant.deploy.engines.torch_float import FloatTorchProgram
from medquant.errors import EngineMismatchError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import (
    AddNode,
    AvgPoolNode,
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntegerProgram,
    MaxPoolNode,
    Node,
    ReluNode,
    UpsampleNode,
)

EXACT = [name for name, engine in ENGINES.items() if engine.info.exact and engine.unavailable() is None]
every_engine = pytest.mark.parametrize("engine", EXACT)


def run(engine: str, image: np.ndarray, read: TensorFormat, *nodes: Node) -> np.ndarray:
    """Output integers of a program of these nodes behind an image."""
    program = IntegerProgram((ImageNode("input", (), read, image.shape[1]), *nodes), ())
    try:
        return ENGINES[engine](program).run(image.astype(np.uint8))
    except EngineMismatchError as error:
        # It may say that it would be wrong, for these reasons and no other; then there is nothing to compare.
        if not re.search(r"beyond 2\*\*24|lie in the padding alone", str(error)):
            raise
        pytest.skip(str(error))


def stored(value: Fraction, written: TensorFormat, relu: bool = False) -> int:
    """A real value as a tensor stores it: Python rounds fractions half to even."""
    level = round(value * Fraction(2) ** written.exponent)
    return min(max(level, 0 if relu else -written.zero_point), written.highest - written.zero_point) + written.zero_point


def random_image(seed: int, shape: tuple[int, ...], read: TensorFormat) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, read.highest + 1, shape)


# --- convolutions ------------------------------------------------------------------------------------------------------


def convolution_by_loops(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """Every output voxel gathers its window; outside the image is real zero."""
    outputs, per_group, *kernel = weight.shape
    sizes = x.shape[2:]
    reach = [step * (length - 1) + 1 for step, length in zip(geometry.dilation, kernel, strict=True)]
    out_sizes = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(sizes, geometry.padding, reach, geometry.stride, strict=True)]
    result = np.zeros((x.shape[0], outputs, *out_sizes), np.int64)
    for index in np.ndindex(*result.shape):
        case, output, *place = index
        first = output // (outputs // geometry.groups) * per_group
        total = int(bias[output])
        for channel, *tap in np.ndindex(per_group, *kernel):
            position = [
                o * s - p + t * d for o, s, p, t, d in zip(place, geometry.stride, geometry.padding, tap, geometry.dilation, strict=True)
            ]
            if all(0 <= q < n for q, n in zip(position, sizes, strict=True)):
                total += int(weight[(output, channel, *tap)]) * int(x[(case, first + channel, *position)])
        result[index] = total
    return result


def transposed_by_loops(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """Every input voxel scatters its window."""
    inputs, per_group, *kernel = weight.shape
    out_sizes = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, s, p, d, k, o in zip(
            x.shape[2:], geometry.stride, geometry.padding, geometry.dilation, kernel, geometry.output_padding, strict=True
        )
    ]
    result = np.zeros((x.shape[0], per_group * geometry.groups, *out_sizes), np.int64)
    result += bias.reshape(-1, *[1] * len(kernel))
    for case, channel, *place in np.ndindex(*x.shape):
        group = channel // (inputs // geometry.groups)
        for output, *tap in np.ndindex(per_group, *kernel):
            position = [
                i * s - p + t * d for i, s, p, t, d in zip(place, geometry.stride, geometry.padding, tap, geometry.dilation, strict=True)
            ]
            if all(0 <= q < n for q, n in zip(position, out_sizes, strict=True)):
                result[(case, group * per_group + output, *position)] += weight[(channel, output, *tap)] * x[(case, channel, *place)]
    return result


PLAIN = {
    "3×3": ((5, 4), 4, 3, (3, 3), ConvGeometry((1, 1), (1, 1), (1, 1))),
    "strided": ((7, 6), 2, 2, (3, 2), ConvGeometry((2, 3), (1, 0), (1, 1))),
    "dilated": ((8, 7), 2, 2, (3, 3), ConvGeometry((1, 2), (2, 3), (2, 3))),
    "grouped": ((4, 5), 6, 4, (3, 1), ConvGeometry((1, 1), (1, 0), (1, 1), groups=2)),
    "depthwise": ((4, 4), 3, 3, (1, 1), ConvGeometry((1, 1), (0, 0), (1, 1), groups=3)),
    "3D": ((4, 3, 5), 2, 2, (3, 1, 2), ConvGeometry((2, 1, 1), (1, 0, 1), (1, 1, 2))),
}  # fmt: skip
TRANSPOSED = {
    "k2 s2": ((3, 4), 3, 2, (2, 2), ConvGeometry((2, 2), (0, 0), (1, 1), 1, True, (0, 0))),
    "k3 s2": ((3, 4), 2, 2, (3, 3), ConvGeometry((2, 2), (1, 1), (1, 1), 1, True, (1, 0))),
    "k4 s2": ((4, 3), 2, 2, (4, 4), ConvGeometry((2, 2), (1, 1), (1, 1), 1, True, (0, 0))),
    "k3 s1 dilated": ((4, 4), 2, 2, (3, 2), ConvGeometry((1, 1), (1, 0), (1, 2), 1, True, (0, 0))),
    "grouped": ((3, 3), 4, 6, (3, 3), ConvGeometry((2, 2), (1, 1), (1, 1), 2, True, (1, 1))),
    "3D": ((2, 3, 2), 2, 2, (2, 3, 2), ConvGeometry((2, 2, 2), (0, 1, 0), (1, 1, 1), 1, True, (0, 1, 0))),
}  # fmt: skip


@every_engine
@pytest.mark.parametrize("case", [*PLAIN, *(f"transposed {name}" for name in TRANSPOSED)])
def test_convolutions(engine: str, case: str) -> None:
    size, inputs, outputs, kernel, geometry = PLAIN[case] if case in PLAIN else TRANSPOSED[case.removeprefix("transposed ")]
    generator = np.random.default_rng(len(case))
    read = TensorFormat(6, 11, 3)
    image = random_image(1, (2, inputs, *size), read)
    shape = (inputs, outputs // geometry.groups, *kernel) if geometry.transposed else (outputs, inputs // geometry.groups, *kernel)
    weight, bias = generator.integers(-8, 8, shape), generator.integers(-300, 300, outputs)
    exponents = generator.integers(2, 8, outputs)
    loops = transposed_by_loops if geometry.transposed else convolution_by_loops
    accumulators = loops(image - read.zero_point, weight, bias, geometry)

    last = ConvolutionNode("c", ("input",), None, weight, bias, exponents, 4, geometry, relu=False)
    found = run(engine, image, read, last)
    assert found.dtype == np.int32
    assert np.array_equal(found, accumulators)
    # Requantized to 5 bits, with and without a rectifier, each channel with a shift of its own.
    written = TensorFormat(5, 9, 2)
    for relu in (False, True):
        node = ConvolutionNode("c", ("input",), written, weight, bias, exponents, 4, geometry, relu)
        expected = np.zeros_like(accumulators)
        for index, value in np.ndenumerate(accumulators):
            expected[index] = stored(Fraction(int(value)) / Fraction(2) ** (int(exponents[index[1]]) + read.exponent), written, relu)
        assert np.array_equal(run(engine, image, read, node), expected)


# --- requantization ----------------------------------------------------------------------------------------------------


def tiny_program() -> IntegerProgram:
    image = ImageNode("input", (), TensorFormat(8, 0, 0), 1)
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1))
    node = ConvolutionNode(
        "c", ("input",), None, np.ones((1, 1, 1, 1), np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64), 2, geometry, False
    )
    return IntegerProgram((image, node), (0,))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("written", [TensorFormat(8, 0, 0), TensorFormat(8, 128, 0), TensorFormat(3, 5, 0), TensorFormat(1, 1, 0)])
def test_requantization_is_pythons_rounding_of_fractions(written: TensorFormat, relu: bool) -> None:
    generator = np.random.default_rng(7)
    shifts = [-9, -3, -1, 0, 1, 2, 3, 8, 15, 30]
    # Around zero all integers; then ties, their neighbours, and accumulators up to 31 bits.
    values = list(range(-70, 71)) + [int(v) for v in generator.integers(-(2**31), 2**31, 60)]
    for shift in shifts[4:]:
        half = 2 ** (shift - 1)
        values += [odd * half + offset for odd in range(-9, 10, 2) for offset in (-1, 0, 1)]
    accumulators = torch.tensor(values).reshape(1, 1, -1, 1).repeat(1, len(shifts), 1, 1)
    low, high = 0 if relu else -written.zero_point, written.highest - written.zero_point
    expected = [[min(max(round(Fraction(value) / Fraction(2) ** shift), low), high) for value in values] for shift in shifts]

    shift = torch.tensor(shifts)
    integers = accumulators.numpy()
    reference = requantize(integers, np.array(shifts).reshape(-1, 1, 1), written, relu)
    assert reference.dtype == np.int64
    assert reference[0, :, :, 0].tolist() == expected
    engine = FloatTorchProgram(tiny_program())
    assert engine.requantize(accumulators.to(engine.device).double(), shift, written, relu)[0, :, :, 0].tolist() == expected
    # Below 2^24 float32 holds them all.
    small = [place for place, value in enumerate(values) if abs(value) < 2**24]
    narrow = engine.requantize(accumulators[:, :, small].to(engine.device).float(), shift, written, relu)
    assert narrow[0, :, :, 0].tolist() == [[row[place] for place in small] for row in expected]
    # One shift for all channels.
    for place, one in enumerate(shifts):
        single = requantize(integers[:, :1], np.array(one), written, relu)
        assert single.flatten().tolist() == expected[place]


@pytest.mark.parametrize("shift", [45, 62, 63, 64, 100, 127, -31, -40, -63, -64, -100])
def test_shifts_beyond_every_sum(shift: int) -> None:
    values = [-(2**31) + 1, -12345, -1, 0, 1, 12345, 2**31 - 1]
    written = TensorFormat(8, 100, 0)
    expected = [min(max(round(Fraction(value) / Fraction(2) ** shift), -100), 155) for value in values]
    rounded = requantize(np.array(values).reshape(1, 1, -1, 1), np.array([shift]), written, False)
    assert rounded.flatten().tolist() == expected


def test_ties_by_hand() -> None:
    # 0.5, 1.5, 2.5 and their negatives, from accumulators of half steps.
    accumulators = np.array([1, 3, 5, -1, -3, -5]).reshape(1, 1, -1, 1)
    rounded = requantize(accumulators, np.array([1]), TensorFormat(4, 8, 0), False)
    assert rounded.flatten().tolist() == [0, 2, 2, 0, -2, -2]


# --- sums, averages, maxima --------------------------------------------------------------------------------------------


def scaled(name: str, written: TensorFormat, channels: int, axes: int = 2) -> ConvolutionNode:
    """A node that doubles each channel of the image."""
    ones, zeros = (1,) * axes, (0,) * axes
    geometry = ConvGeometry(stride=ones, padding=zeros, dilation=ones, groups=channels)
    weight, nothing = np.full((channels, 1, *ones), 2), np.zeros(channels, np.int64)
    return ConvolutionNode(name, ("input",), written, weight, nothing, nothing, 4, geometry, False)


@every_engine
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("first", "second", "out"), [(3, 3, 2), (5, 1, 2), (0, 4, 4), (-2, 3, 1), (2, 2, 6), (1, 15, 3)])
def test_sums_of_different_exponents(engine: str, first: int, second: int, out: int, relu: bool) -> None:
    read, doubled, written = TensorFormat(8, 100, first), TensorFormat(7, 40, second), TensorFormat(6, 30, out)
    image = random_image(first + 9, (2, 3, 16, 16), read)
    node = AddNode("sum", ("input", "twice"), written, relu)
    found = run(engine, image, read, scaled("twice", doubled, 3), node)
    for index, level in np.ndenumerate(image):
        value = Fraction(int(level) - 100) / Fraction(2) ** first
        twice = Fraction(stored(2 * value, doubled) - 40) / Fraction(2) ** second
        assert found[index] == stored(value + twice, written, relu)


@every_engine
@pytest.mark.parametrize(
    ("kernel", "stride"), [((2, 2), (2, 2)), ((1, 4), (1, 1)), ((2, 1), (1, 3)), ((2, 2, 2), (2, 2, 2)), ((1, 2, 4), (1, 1, 2))]
)
def test_averages(engine: str, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
    read = TensorFormat(8, 90, 4)
    image = random_image(3, (2, 2, *(7, 6, 8)[: len(kernel)]), read)
    for written in (TensorFormat(8, 90, 4), TensorFormat(4, 7, 1), TensorFormat(8, 128, 7)):
        found = run(engine, image, read, AvgPoolNode("mean", ("input",), written, kernel, stride))
        sizes = [(n - k) // s + 1 for n, k, s in zip(image.shape[2:], kernel, stride, strict=True)]
        assert found.shape == (2, 2, *sizes)
        for index in np.ndindex(*found.shape):
            window = tuple(slice(o * s, o * s + k) for o, s, k in zip(index[2:], stride, kernel, strict=True))
            values = image[(index[0], index[1], *window)] - read.zero_point
            assert found[index] == stored(Fraction(int(values.sum()), math.prod(kernel)) / 2**read.exponent, written)


@every_engine
@pytest.mark.parametrize("axes", [2, 3])
def test_maxima_where_padding_never_wins(engine: str, axes: int) -> None:
    # All values below real zero: a padding of zeros would win everywhere at the border.
    read = TensorFormat(6, 60, 2)
    image = random_image(4, (1, 2, *(6, 5, 4)[:axes]), TensorFormat(5, 0, 0))
    kernel, stride, padding = (3, 2, 2)[:axes], (2, 1, 1)[:axes], (1, 1, 0)[:axes]
    found = run(engine, image, read, MaxPoolNode("m", ("input",), read, kernel, stride, padding))
    for index in np.ndindex(*found.shape):
        starts = [o * s - p for o, s, p in zip(index[2:], stride, padding, strict=True)]
        window = tuple(slice(max(start, 0), start + k) for start, k in zip(starts, kernel, strict=True))
        assert found[index] == image[(index[0], index[1], *window)].max()


@every_engine
def test_rectifier_and_concatenation_keep_the_integers(engine: str) -> None:
    read = TensorFormat(6, 20, 3)
    image = random_image(5, (2, 3, 4, 5), read)
    rectified = ReluNode("r", ("input",), read)
    assert np.array_equal(run(engine, image, read, rectified), np.maximum(image, 20))
    joined = run(engine, image, read, rectified, ConcatNode("j", ("input", "r", "input"), read))
    assert np.array_equal(joined, np.concatenate([image, np.maximum(image, 20), image], axis=1))


# --- up-sampling -------------------------------------------------------------------------------------------------------


@every_engine
@pytest.mark.parametrize(("axes", "factor"), [(2, 2), (2, 3), (3, 2)])
def test_nearest_repeats(engine: str, axes: int, factor: int) -> None:
    read = TensorFormat(8, 17, 3)
    image = random_image(6, (2, 2, *(3, 4, 2)[:axes]), read)
    expected: Any = image
    for axis in range(2, 2 + axes):
        expected = np.repeat(expected, factor, axis=axis)
    assert np.array_equal(run(engine, image, read, UpsampleNode("u", ("input",), read, factor, "nearest", axes)), expected)


@every_engine
def test_linear_by_hand_at_the_border(engine: str) -> None:
    # One axis of 0, 4, 8, 8 (the other has one voxel): three quarters of the nearer and one of the farther, edges repeated.
    read = TensorFormat(4, 0, 0)
    row = np.array([0, 4, 8, 8]).reshape(1, 1, 1, 4)
    found = run(engine, row, read, UpsampleNode("u", ("input",), read, 2, "linear", 2))
    assert found.shape == (1, 1, 2, 8)
    assert found[0, 0].tolist() == [[0, 1, 3, 5, 7, 8, 8, 8]] * 2
    # A corner of 2D: 9, 3, 3 and 1 sixteenths.
    square = np.array([[16, 0], [0, 48]]).reshape(1, 1, 2, 2)
    wide = TensorFormat(8, 0, 0)
    found = run(engine, square, wide, UpsampleNode("u", ("input",), wide, 2, "linear", 2))
    assert found[0, 0].tolist() == [[16, 12, 4, 0], [12, 12, 12, 12], [4, 12, 28, 36], [0, 12, 36, 48]]


# Each length along each axis, beside each other one in 2D; engines that compile a graph for each size take their time in 3D.
SIZES = {2: list(itertools.product([1, 2, 5], repeat=2)), 3: [(1, 1, 1), (1, 2, 5), (5, 1, 2)]}


@every_engine
@pytest.mark.parametrize(("axes", "bits"), [(2, 3), (3, 2)])
def test_linear_equals_torch_in_float64(engine: str, axes: int, bits: int) -> None:
    mode = {2: "bilinear", 3: "trilinear"}[axes]
    for size in SIZES[axes]:
        zero_point = 2 ** (bits - 1)
        read = TensorFormat(bits, zero_point, 3)
        image = random_image(sum(size), (2, 2, *size), read)
        values = torch.from_numpy(image - zero_point).double() / 2**read.exponent
        expected = F.interpolate(values, scale_factor=2, mode=mode, align_corners=False).numpy()
        # Fine enough for every value: no rounding; then the input's own grid: rounded half to even, many ties.
        fine = TensorFormat(8, 128, read.exponent + 2 * axes)
        for written in (fine, read):
            found = run(engine, image, read, UpsampleNode("u", ("input",), written, 2, "linear", axes))
            level = np.clip(np.rint(expected * 2.0**written.exponent) + written.zero_point, 0, written.highest)
            assert np.array_equal(found, level)


def test_accumulators_of_32_bits_are_summed_exactly() -> None:
    # 255 · 127 · 36,000 is just below 2^30 · 1.1; one more unit in the bias must change the result by one.
    count = 36_000
    read = TensorFormat(8, 0, 0)
    image = np.full((1, count, 1, 1), 255)
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1))
    weight = np.full((3, count, 1, 1), 127)
    weight[2] = -128
    bias, exponents = np.array([0, 1, -1]), np.zeros(3, np.int64)
    expected: Sequence[int] = [255 * 127 * count, 255 * 127 * count + 1, -255 * 128 * count - 1]
    for engine in EXACT:
        node = ConvolutionNode("c", ("input",), None, weight, bias, exponents, 8, geometry, False)
        assert run(engine, image, read, node).flatten().tolist() == expected
