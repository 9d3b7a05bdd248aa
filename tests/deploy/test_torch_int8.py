"""The 8-bit torch engine against the reference engine, whose values tests/deploy/test_reference_engine.py holds to loops over fractions.

Programs here are written node by node, with weights, biases and images drawn to reach both ends of every range and many ties.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch engine needs torch")

from medquant.deploy.engines import torch_onednn  # noqa: E402
from medquant.deploy.engines.exactness import byte_products_saturate  # noqa: E402
from medquant.deploy.engines.reference import ReferenceEngine  # noqa: E402
from medquant.deploy.engines.torch_engine import TorchEngine  # noqa: E402
from medquant.deploy.engines.torch_int8 import Int8TorchProgram  # noqa: E402
from medquant.errors import EngineMismatchError  # noqa: E402
from medquant.quant.formats import TensorFormat, weight_range  # noqa: E402
from medquant.quant.graph import ConvGeometry  # noqa: E402
from medquant.quant.program import (  # noqa: E402
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

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.onednn, "qconv2d_pointwise") or not hasattr(torch.ops.onednn, "qconv3d_pointwise"),
    reason="this torch has no 8-bit convolutions of oneDNN",
)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_operators_of_this_torch_pass_their_trial(axes: int) -> None:
    assert torch_onednn.byte_convolutions_work(axes)


def geometry(axes: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1, more: int | None = None) -> ConvGeometry:
    """The same along every axis; ``more`` is the output padding of a transposed convolution."""
    extra = {} if more is None else {"transposed": True, "output_padding": (more,) * axes}
    return ConvGeometry((stride,) * axes, (padding,) * axes, (dilation,) * axes, groups, **extra)  # type: ignore[arg-type]


def convolution(
    name: str,
    source: str,
    read: TensorFormat,
    written: TensorFormat | None,
    channels: tuple[int, int],
    kernel: Sequence[int],
    shape: ConvGeometry,
    bits: int = 4,
    relu: bool = False,
    seed: int = 0,
    spread: int = 3,
) -> ConvolutionNode:
    """Random weights over the whole range; shifts so that about the range of the output is filled, ``spread`` around it."""
    generator = np.random.default_rng(seed)
    inputs, outputs = channels
    size = (inputs, outputs // shape.groups) if shape.transposed else (outputs, inputs // shape.groups)
    low, high = weight_range(bits)
    weight = generator.integers(low, high + 1, (*size, *kernel))
    bias = generator.integers(-2 * read.highest - 3, 2 * read.highest + 3, outputs)
    typical = np.abs(weight).mean() * read.highest * np.sqrt(weight[0].size) / 2
    fill = int(np.log2(max(typical, 1) / ((written.highest if written else 1) + 1)))
    exponents = fill + generator.integers(-spread, spread + 1, outputs) - read.exponent + (written.exponent if written else 0)
    return ConvolutionNode(name, (source,), written, weight, bias, exponents, bits, shape, relu)


def program_of(read: TensorFormat, channels: int, *nodes: Node) -> IntegerProgram:
    outputs = [node for node in nodes if isinstance(node, ConvolutionNode)][-1].bias
    return IntegerProgram((ImageNode("input", (), read, channels), *nodes), (0,) * len(outputs))


def images(read: TensorFormat, shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Noise in a batch of two, then nothing but the lowest and nothing but the highest integer."""
    noise = np.random.default_rng(seed).integers(0, read.highest + 1, (2, *shape), dtype=np.uint8)
    return [noise, np.zeros((1, *shape), np.uint8), np.full((1, *shape), read.highest, np.uint8)]


def assert_agrees(program: IntegerProgram, size: Sequence[int], in_float: Sequence[str] = (), seed: int = 0) -> int:
    """Same integers as the reference, and only the nodes named run in float. Returns how many distinct integers came out."""
    engine, reference = Int8TorchProgram(program), ReferenceEngine(program)
    if not byte_products_saturate():
        assert engine.nodes_in_float == list(in_float)
    distinct = 0
    for image in images(program.format_of("input"), (program.image.channels, *size), seed):
        before = image.copy()
        found, expected = engine.run(image), reference.run(image)
        assert found.dtype == np.int32
        assert found.shape == expected.shape
        assert np.array_equal(found, expected), f"{int((found != expected).sum())} of {found.size} differ"
        assert np.array_equal(image, before), "the image was written to"
        distinct = max(distinct, len(np.unique(found)))
    return distinct


FORMATS = [TensorFormat(bits, zero, 2) for bits in range(1, 9) for zero in sorted({0, 1, 2 ** (bits - 1), 2**bits - 1})]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("written", FORMATS, ids=lambda f: f"u{f.bits}z{f.zero_point}")
def test_every_width_and_zero_point_is_written_exactly(axes: int, written: TensorFormat) -> None:
    size = (9, 7) if axes == 2 else (4, 5, 3)
    for seed, (relu, read) in enumerate(product([False, True], [TensorFormat(6, 0, 3), TensorFormat(8, 77, -2), TensorFormat(1, 1, 0)])):
        node = convolution("c", "input", read, written, (3, 5), [3] * axes, geometry(axes, padding=1), 1 + seed % 8, relu, seed)
        assert_agrees(program_of(read, 3, node), size, seed=seed)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_weight_width_by_every_activation_width(axes: int, bits: int) -> None:
    size = (7, 6) if axes == 2 else (4, 3, 5)
    for activation in range(1, 9):
        read, written = TensorFormat(activation, 0, 1), TensorFormat(activation, 2**activation // 2, -1)
        shape = geometry(axes, padding=1)
        first = convolution("a", "input", read, written, (4, 6), [3] * axes, shape, bits, seed=activation)
        last = convolution("b", "a", written, None, (6, 3), [3] * axes, shape, bits, seed=activation + 9)
        assert_agrees(program_of(read, 4, first, last), size)


@pytest.mark.parametrize("zero_point", [0, 100, 101])
def test_ties_go_to_the_even_integer_whatever_the_zero_point(zero_point: int) -> None:
    # Shift 1: every odd accumulator is a tie. By definition ties are judged before the zero point is added.
    read, written = TensorFormat(8, 0, 0), TensorFormat(8, zero_point, 0)
    weight, nothing = np.ones((1, 1, 1, 1), np.int64), np.zeros(1, np.int64)
    node = ConvolutionNode("c", ("input",), written, weight, nothing, nothing + 1, 4, geometry(2), relu=False)
    found = Int8TorchProgram(program_of(read, 1, node)).run(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16))
    assert found.flatten().tolist() == [min(round(value / 2) + zero_point, 255) for value in range(256)]


PLAIN = {
    "strided": (geometry(2, 2, 1), (3, 3), (4, 6)),
    "dilated": (geometry(2, 1, 2, 2), (3, 3), (4, 6)),
    "grouped": (geometry(2, 1, 1, groups=2), (3, 3), (4, 6)),
    "depthwise": (geometry(2, 1, 1, groups=5), (3, 3), (5, 5)),
    "even window, one-sided": (ConvGeometry((1, 2), (1, 0), (1, 1)), (2, 4), (3, 4)),
    "5×5": (geometry(2, 1, 2), (5, 5), (1, 20)),
    "padded beyond its window": (geometry(2, 1, 2), (1, 1), (2, 17)),
    "3D strided": (ConvGeometry((2, 1, 2), (0, 1, 1), (1, 1, 1)), (1, 3, 2), (3, 4)),
    "3D dilated": (geometry(3, 1, 2, 2), (3, 3, 3), (2, 3)),
    "3D grouped": (geometry(3, 1, 1, groups=2), (3, 3, 3), (4, 6)),
    "3D depthwise": (geometry(3, 2, 1, groups=4), (3, 3, 3), (4, 4)),
    "transposed k2 s2": (geometry(2, 2, more=0), (2, 2), (4, 5)),
    "transposed k3 s2": (geometry(2, 2, 1, more=1), (3, 3), (4, 5)),
    "transposed k4 s2": (geometry(2, 2, 1, more=0), (4, 4), (4, 16)),
    "transposed k3 s1": (geometry(2, 1, 1, more=0), (3, 3), (4, 5)),
    "transposed k5 s3": (geometry(2, 3, 2, more=2), (5, 5), (3, 4)),
    "transposed k2 s3": (geometry(2, 3, 0, more=0), (2, 2), (3, 4)),
    "transposed k2 s2, cut": (geometry(2, 2, 2, more=0), (2, 2), (3, 4)),
    "transposed, mixed": (ConvGeometry((2, 1), (1, 0), (1, 1), 1, True, (1, 0)), (3, 2), (3, 4)),
    "3D transposed k2 s2": (geometry(3, 2, more=0), (2, 2, 2), (4, 8)),
    "3D transposed k3 s2": (geometry(3, 2, 1, more=1), (3, 3, 3), (2, 3)),
}
IN_FLOAT = {
    "transposed grouped": (geometry(2, 2, 1, groups=2, more=1), (3, 3), (4, 6)),
    "transposed dilated": (geometry(2, 2, 1, 2, more=1), (3, 3), (4, 6)),
    "transposed beyond its last tap": (geometry(2, 2, more=1), (2, 2), (4, 6)),
}


@pytest.mark.parametrize("case", [*PLAIN, *IN_FLOAT])
def test_geometries(case: str) -> None:
    shape, kernel, channels = {**PLAIN, **IN_FLOAT}[case]
    in_float = ["c"] if case in IN_FLOAT else []
    for seed, read in enumerate([TensorFormat(6, 0, 3), TensorFormat(8, 77, 3)]):
        for written in (TensorFormat(5, 9, 2), TensorFormat(8, 0, 1), None):
            for relu in (False, True):
                node = convolution("c", "input", read, written, channels, kernel, shape, relu=relu, seed=seed)
                size = [11, 9] if len(kernel) == 2 else [7, 6, 5]
                assert assert_agrees(program_of(read, channels[0], node), size, in_float) > 4


@pytest.mark.parametrize("axes", [2, 3])
def test_a_network_of_every_node(axes: int) -> None:
    """Two up-samplings and a transposed convolution meet in one concatenation, beside a sum, an average and maxima."""
    signed, rectified = TensorFormat(6, 31, 2), TensorFormat(6, 0, 2)
    wide = [16, 3]
    for seed, channels in enumerate(wide):
        three, two = [3] * axes, (2,) * axes
        stem = convolution("stem", "input", TensorFormat(8, 128, 4), signed, (1, channels), three, geometry(axes, padding=1), seed=seed)
        pool = MaxPoolNode("pool", ("stem",), signed, two, two, (0,) * axes)
        below = convolution("below", "pool", signed, signed, (channels, channels), three, geometry(axes, padding=1), seed=seed + 2)
        up = convolution("up", "below", signed, signed, (channels, 2 * channels), two, geometry(axes, 2, more=0), seed=seed + 3)
        program = program_of(
            TensorFormat(8, 128, 4),
            1,
            stem,
            pool,
            below,
            up,
            UpsampleNode("near", ("below",), signed, 2, "nearest", axes),
            UpsampleNode("linear", ("below",), signed, 2, "linear", axes),
            MaxPoolNode("same", ("stem",), signed, (3,) * axes, (1,) * axes, (1,) * axes),
            ConcatNode("joined", ("near", "up", "stem", "linear", "same"), signed),
            ReluNode("relu", ("joined",), signed),
            AddNode("sum", ("joined", "relu"), rectified, relu=True),
            AvgPoolNode("mean", ("sum",), TensorFormat(5, 0, 1), two, two),
            convolution("head", "mean", TensorFormat(5, 0, 1), None, (6 * channels, 3), [1] * axes, geometry(axes), seed=seed),
        )
        assert assert_agrees(program, (10, 14) if axes == 2 else (6, 4, 8)) > 50


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("bits", [3, 8])
def test_linear_up_sampling_of_all_sizes(axes: int, bits: int) -> None:
    read = TensorFormat(bits, 2**bits // 2 - 1, 1)
    for written in (read, TensorFormat(8, 127, 2), TensorFormat(4, 0, 0)):
        node = UpsampleNode("u", ("input",), written, 2, "linear", axes)
        last = convolution("c", "u", written, None, (5, 2), [1] * axes, geometry(axes))
        for size in product([1, 2, 5], repeat=axes):
            assert_agrees(program_of(read, 5, node, last), size, seed=sum(size))


@pytest.mark.parametrize(("a", "b", "written"), [(3, 3, 2), (5, 1, 2), (-2, 3, 1), (0, 24, -1), (0, 40, -1), (1, 15, 15), (20, -20, 0)])
@pytest.mark.parametrize("relu", [False, True])
def test_sums_on_grids_far_apart(a: int, b: int, written: int, relu: bool) -> None:
    read, other = TensorFormat(8, 99, a), TensorFormat(7, 41, b)
    middle = convolution("m", "input", read, other, (3, 3), (1, 1), geometry(2))
    node = AddNode("s", ("input", "m"), TensorFormat(6, 29, written), relu)
    assert_agrees(program_of(read, 3, middle, node), (13, 11))


def test_sums_that_float64_cannot_form_are_refused() -> None:
    read = TensorFormat(8, 99, 5)
    middle = convolution("m", "input", read, TensorFormat(8, 0, -40), (3, 3), (1, 1), geometry(2))
    node = AddNode("s", ("input", "m"), TensorFormat(6, 29, 5), relu=False)
    with pytest.raises(EngineMismatchError, match=r"s joins steps of 2\*\*-5 and 2\*\*40; use engine reference"):
        TorchEngine(program_of(read, 3, middle, node))


def test_an_up_sampled_tensor_that_several_read() -> None:
    read = TensorFormat(6, 5, 2)
    program = program_of(
        read,
        16,
        UpsampleNode("near", ("input",), read, 2, "nearest", 2),
        UpsampleNode("linear", ("input",), read, 2, "linear", 2),
        ConcatNode("twice", ("near", "near", "linear"), read),
        ConcatNode("again", ("linear", "twice"), read),
        convolution("head", "again", read, None, (64, 2), (3, 3), geometry(2)),
    )
    assert assert_agrees(program, (5, 6)) > 50


def test_wide_layers_run_in_float_and_their_neighbours_in_bytes() -> None:
    # 160 channels of 9 taps at 127 · 255 reach 2^25.4.
    read, written = TensorFormat(8, 0, 0), TensorFormat(8, 0, -16)
    shape = geometry(2, padding=1)
    first = convolution("first", "input", read, read, (1, 160), (3, 3), shape, 8)
    wide = convolution("wide", "first", read, written, (160, 8), (3, 3), shape, 8)
    wide = ConvolutionNode(
        "wide", ("first",), written, np.full_like(wide.weight, 127), wide.bias, wide.weight_exponents * 0 + 1, 8, shape, False
    )
    last = convolution("last", "wide", written, None, (8, 2), (3, 3), shape, 8)
    assert_agrees(program_of(read, 1, first, wide, last), (12, 9), ["wide"])


def test_a_zero_point_too_coarse_for_float32_runs_in_float() -> None:
    # Shift 18: 128 steps of the output are 2^25 steps of the accumulators.
    read, written = TensorFormat(8, 0, 0), TensorFormat(8, 128, 0)
    weight, bias = np.full((1, 4, 3, 3), 100), np.array([2**18 - 5000])
    node = ConvolutionNode("c", ("input",), written, weight, bias, np.array([18]), 8, geometry(2, padding=1), relu=False)
    assert_agrees(program_of(read, 4, node), (8, 8), ["c"])
    # Rectified, no zero point is added and nothing is lost.
    node = ConvolutionNode("c", ("input",), TensorFormat(8, 0, 0), weight, bias, np.array([18]), 8, geometry(2, padding=1), relu=True)
    assert_agrees(program_of(read, 4, node), (8, 8))


@pytest.mark.skipif(byte_products_saturate(), reason="wide products do not run in bytes on this processor")
def test_sums_at_their_largest_stay_exact_up_to_the_limit() -> None:
    # 57 channels of 9 taps: 513 products of 128 · 255 are 16,744,320; the bias brings them to 2^24 - 1.
    read = TensorFormat(8, 0, 0)
    weight = np.full((2, 57, 3, 3), 1) * np.array([127, -128]).reshape(2, 1, 1, 1)
    largest = 513 * 255 * np.array([127, -128])
    bias = np.array([2**24 - 1, -(2**24) + 1]) - largest
    node = ConvolutionNode("c", ("input",), None, weight, bias, np.zeros(2, np.int64), 8, geometry(2), relu=False)
    engine = Int8TorchProgram(program_of(read, 57, node))
    assert engine.nodes_in_float == []
    found = engine.run(np.full((1, 57, 3, 3), 255, np.uint8))
    assert found.flatten().tolist() == [2**24 - 1, -(2**24) + 1]
    # One more, and float32 might round it.
    node = ConvolutionNode("c", ("input",), None, weight, bias + np.array([1, 0]), np.zeros(2, np.int64), 8, geometry(2), relu=False)
    engine = Int8TorchProgram(program_of(read, 57, node))
    assert engine.nodes_in_float == ["c"]
    assert engine.run(np.full((1, 57, 3, 3), 255, np.uint8)).flatten().tolist() == [2**24, -(2**24) + 1]


def small_program(axes: int = 2) -> IntegerProgram:
    read = TensorFormat(8, 128, 3)
    first = convolution("a", "input", read, TensorFormat(6, 0, 2), (1, 8), [3] * axes, geometry(axes, padding=1))
    up = UpsampleNode("u", ("a",), TensorFormat(6, 0, 2), 2, "linear", axes)
    return program_of(read, 1, first, up, convolution("b", "u", TensorFormat(6, 0, 2), None, (8, 2), [3] * axes, geometry(axes)))


def test_weights_of_two_shapes_are_kept() -> None:
    program = small_program()
    engine, reference = Int8TorchProgram(program), ReferenceEngine(program)
    for size in [(8, 8), (9, 5), (8, 8), (4, 16), (9, 5), (8, 8)]:
        image = np.random.default_rng(0).integers(0, 256, (1, 1, *size), dtype=np.uint8)
        assert np.array_equal(engine.run(image), reference.run(image))
        assert len(engine._packed) <= 2
        assert next(reversed(engine._packed)) == image.shape


def test_what_the_operators_of_this_torch_lack_runs_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    image = images(TensorFormat(8, 0, 0), (1, 8, 8), 0)[0]
    expected = ReferenceEngine(small_program()).run(image)

    def absent(*arguments: Any) -> Any:
        raise AttributeError("no such operator")

    def wrong(self: Any, x: Any) -> Any:
        return torch.zeros_like(x)

    for owner, name, replaced in ((torch_onednn, "pack", absent), (torch_onednn.ByteConvolution, "__call__", wrong)):
        torch_onednn.byte_convolutions_work.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, replaced)
            engine = TorchEngine(small_program())
        assert engine.arithmetic == "FloatTorchProgram"
        assert np.array_equal(engine.run(image), expected)
    torch_onednn.byte_convolutions_work.cache_clear()
    assert TorchEngine(small_program()).arithmetic == "Int8TorchProgram"


def test_processors_that_saturate_get_no_wide_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.deploy.engines.exactness.byte_products_saturate", lambda: True)
    read, shape = TensorFormat(8, 0, 0), geometry(2)
    # 2 · 64 · 255 is 32,640 and fits 16 bits; 2 · 65 · 255 is 33,150 and does not.
    for largest, fits in ((64, True), (65, False)):
        weight, nothing = np.full((1, 2, 1, 1), largest), np.zeros(1, np.int64)
        node = ConvolutionNode("c", ("input",), None, weight, nothing, nothing, 8, shape, relu=False)
        assert torch_onednn.is_exact(node, read) is fits


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_other_processors_agree(instructions: str) -> None:
    """All of this file, and each node's definition, with oneDNN held to the instructions of another processor."""
    root = Path(__file__).resolve().parents[2]
    files = [str(root / "tests/deploy" / name) for name in ("test_torch_int8.py", "test_reference_engine.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k", "torch", *files]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
