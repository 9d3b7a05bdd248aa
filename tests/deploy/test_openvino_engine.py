"""OpenVINO against the reference engine, which gives every expected value here: random programs, and the patterns it got wrong.

Each pattern stands for kernels of OpenVINO 2026.4 that differ or crash when the graph is written the plain way.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_programs import draw

from medquant.deploy.engines.reference import ReferenceEngine
from medquant.errors import EngineMismatchError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import AddNode, ConcatNode, ConvolutionNode, ImageNode, IntegerProgram, MaxPoolNode, Node, UpsampleNode

pytest.importorskip("openvino")

from medquant.deploy.engines.openvino_engine import OpenVinoEngine

BYTE, INNER = TensorFormat(8, 0, 0), TensorFormat(6, 0, 4)


def differing(program: IntegerProgram, image: np.ndarray) -> int:
    found, expected = OpenVinoEngine(program).run(image), ReferenceEngine(program).run(image)
    assert found.shape == expected.shape
    assert found.dtype == np.int32
    return int((found != expected).sum())


def check_random(seeds: range) -> tuple[int, int]:
    """Values compared, and programs refused."""
    values = refused = 0
    for seed in seeds:
        drawn = draw(seed, 1 + seed % 7)
        try:
            assert differing(drawn.program, drawn.image) == 0, f"program {seed}"
        except EngineMismatchError:
            refused += 1
            continue
        values += ReferenceEngine(drawn.program).run(drawn.image).size
    return values, refused


def test_random_programs_agree() -> None:
    values, refused = check_random(range(120))
    assert values > 150_000
    assert refused < 30


@pytest.mark.slow
def test_many_random_programs_agree() -> None:
    values, refused = check_random(range(1000, 4000))
    assert values > 4_000_000
    assert refused < 600


def convolution(
    source: str,
    shape: tuple[int, ...],
    geometry: ConvGeometry,
    written: TensorFormat | None = None,
    bits: int = 8,
    seed: int = 0,
    shift: int = 9,
) -> ConvolutionNode:
    """Random weights of the shape; the shift is the one of a grid of exponent 0."""
    random = np.random.default_rng(seed)
    outputs = shape[1] * geometry.groups if geometry.transposed else shape[0]
    weight, bias = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape), random.integers(-500, 500, outputs)
    exponents = np.full(outputs, shift if written is not None else 0)
    return ConvolutionNode(f"c{seed}{source}", (source,), written, weight, bias, exponents, bits, geometry, relu=written is not None)


def program(read: TensorFormat, channels: int, *nodes: Node) -> IntegerProgram:
    return IntegerProgram((ImageNode("image", (), read, channels), *nodes), ())


def image(read: TensorFormat, channels: int, *size: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, read.highest + 1, (batch, channels, *size)).astype(np.uint8)


THIN = [
    # Kernel, stride, padding, size: the output is one voxel wide, or the image one voxel deep.
    ((1, 2), (1, 2), (0, 0), (7, 2)),
    ((1, 4), (1, 2), (0, 0), (7, 4)),
    ((5, 4), (1, 2), (2, 1), (5, 3)),
    ((7, 3), (1, 2), (2, 0), (7, 4)),
    ((4, 3, 3), (1, 1, 1), (3, 1, 1), (1, 5, 6)),
    ((3, 3, 4), (2, 2, 1), (2, 1, 2), (1, 6, 1)),
    ((5, 4, 5), (1, 1, 2), (4, 2, 1), (1, 1, 5)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), THIN)
def test_one_channel_where_an_axis_is_one_voxel_long(
    kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], size: tuple[int, ...]
) -> None:
    for zero_point, outputs in itertools.product([0, 1, 128, 200], [3, 8]):
        read = TensorFormat(8, zero_point, 0)
        node = convolution("image", (outputs, 1, *kernel), ConvGeometry(stride, padding, (1,) * len(size)))
        assert differing(program(read, 1, node), image(read, 1, *size)) == 0


def test_shifts_beyond_what_floats_hold() -> None:
    # Nothing is left of sums below 2**24, or everything but zero saturates: whatever the rounding.
    written, geometry, x = TensorFormat(6, 20, 0), ConvGeometry((1, 1), (0, 0), (1, 1)), np.arange(1, 9, dtype=np.uint8).reshape(1, 1, 2, 4)
    weight = np.array([1, 1, -1, 0]).reshape(4, 1, 1, 1)
    shift = np.array([140, -140, -140, -140])
    node = ConvolutionNode("c", ("image",), written, weight, np.zeros(4, np.int64), shift, 2, geometry, relu=False)
    found = OpenVinoEngine(program(BYTE, 1, node)).run(x)
    assert [np.unique(channel).tolist() for channel in found[0]] == [[20], [63], [0], [20]]


def test_groups_of_one_input_and_several_outputs() -> None:
    for groups, kernel, padding in itertools.product([4, 8, 16], [2, 3, 4], [0, 1]):
        geometry = ConvGeometry((1, 2), (1, padding), (1, 1), groups=groups)
        first = convolution("image", (groups, groups, 1, 1), ConvGeometry((1, 1), (0, 0), (1, 1)), BYTE, 4)
        node = convolution(first.name, (2 * groups, 1, 3, kernel), geometry)
        assert differing(program(BYTE, groups, first, node), image(BYTE, groups, 5, 4)) == 0


@pytest.mark.parametrize("zero_point", [0, 128, 77])
@pytest.mark.parametrize("dilation", [1, 2])
def test_transposed_convolutions_of_signed_bytes_and_with_dilation(zero_point: int, dilation: int) -> None:
    read = TensorFormat(8, zero_point, 0)
    for kernel, stride in [((4, 5), (1, 2)), ((2, 2), (2, 2)), ((3, 3), (2, 1)), ((1, 2), (2, 2)), ((4, 7, 3), (2, 1, 2))]:
        axes = len(kernel)
        geometry = ConvGeometry(stride, (0,) * (axes - 1) + (1,), (1,) * (axes - 1) + (dilation,), 1, True, (0,) * axes)
        node = convolution("image", (4, 3, *kernel), geometry)
        assert differing(program(read, 4, node), image(read, 4, *(5, 4, 6)[:axes])) == 0


def test_windows_in_the_padding_alone_are_refused() -> None:
    def with_axis(kernel: int, padding: int, dilation: int) -> IntegerProgram:
        geometry = ConvGeometry((1, 2), (0, padding), (1, dilation))
        return program(BYTE, 2, convolution("image", (3, 2, 1, kernel), geometry))

    # One voxel wide, kernel 2 with a gap: the only window falls on both sides of it. The other two lie outside at the border.
    for kernel, padding, dilation in [(2, 1, 2), (1, 1, 1), (3, 3, 1)]:
        with pytest.raises(EngineMismatchError, match=r"windows lie in the padding alone, as those of c0image can .* use engine torch"):
            OpenVinoEngine(with_axis(kernel, padding, dilation))
    # Never alone: a centre tap, any padding below the kernel, or a gap no image with an output can fall into.
    for kernel, padding, dilation in [(3, 4, 4), (3, 2, 1), (4, 1, 1), (3, 1, 2), (5, 12, 6)]:
        taken = with_axis(kernel, padding, dilation)
        for width in (1, 2, 3, 5, 9):
            if width + 2 * padding > dilation * (kernel - 1):
                assert differing(taken, image(BYTE, 2, 3, width)) == 0


@pytest.mark.parametrize("zero_point", [0, 31])
def test_additions_of_branches_and_of_a_tensor_with_itself(zero_point: int) -> None:
    form, size = TensorFormat(6, zero_point, 3), ConvGeometry((1, 1), (1, 1), (1, 1))
    for exponents, bits in itertools.product([(3, 3), (2, 5), (6, 0)], [4, 8]):
        a, b = (
            convolution("image", (8, 3, 3, 3), size, TensorFormat(6, zero_point, e), bits, seed, 4 + bits + e)
            for seed, e in enumerate(exponents)
        )
        total = AddNode("sum", (a.name, b.name), form, relu=False)
        twice = AddNode("twice", ("sum", "sum"), form, relu=True)
        end = convolution("twice", (2, 8, 3, 3), size, seed=7)
        assert differing(program(BYTE, 3, a, b, total, twice, end), image(BYTE, 3, 9, 7)) == 0


def test_ties_go_to_the_even_integer_for_every_zero_point() -> None:
    # 1 · q over 2 and 4: every value is a tie or next to one; reading and writing formats run through the parities.
    for read_zero, written_zero, shift in itertools.product([0, 1, 128, 255], [0, 1, 17, 128, 255], [1, 2]):
        read, written = TensorFormat(8, read_zero, 0), TensorFormat(8, written_zero, 0)
        weight, geometry = np.array([[[[1]]], [[[-1]]]]), ConvGeometry((1, 1), (0, 0), (1, 1))
        node = ConvolutionNode("c", ("image",), written, weight, np.array([0, 1]), np.full(2, shift), 2, geometry, relu=False)
        assert differing(program(read, 1, node), np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)) == 0


def test_joined_tensors_of_unlike_widths_keep_their_integers() -> None:
    for zero_point, bits in itertools.product([0, 3, 100], [(7, 8), (8, 7), (8, 8)]):
        size = ConvGeometry((1, 1), (1, 1), (1, 1))
        parts = [convolution("image", (4, 3, 3, 3), size, TensorFormat(n, zero_point, 0), 4, seed, 7) for seed, n in enumerate(bits)]
        joined = ConcatNode("joined", tuple(part.name for part in parts), TensorFormat(8, zero_point, 0))
        pooled = MaxPoolNode("pooled", ("joined",), TensorFormat(8, zero_point, 0), (3, 3), (2, 2), (1, 1))
        up = UpsampleNode("up", ("pooled",), TensorFormat(8, zero_point, 0), 3, "nearest", 2)
        end = convolution("up", (3, 8, 3, 3), size, seed=5)
        assert differing(program(BYTE, 3, *parts, joined, pooled, up, end), image(BYTE, 3, 7, 10)) == 0


def unet_part() -> IntegerProgram:
    """Every kind of layer a U-Net has, 2D."""
    size = ConvGeometry((1, 1), (1, 1), (1, 1))
    first = convolution("image", (16, 1, 3, 3), size, INNER, 4, 0, 2)
    second = convolution(first.name, (16, 16, 3, 3), size, INNER, 4, 1, 2)
    pool = MaxPoolNode("pool", (second.name,), INNER, (2, 2), (2, 2), (0, 0))
    bottom = convolution("pool", (32, 16, 3, 3), size, INNER, 4, 2, 2)
    up = UpsampleNode("up", (bottom.name,), INNER, 2, "linear", 2)
    transposed = convolution(bottom.name, (32, 16, 2, 2), ConvGeometry((2, 2), (0, 0), (1, 1), 1, True, (0, 0)), INNER, 4, 3, 2)
    joined = ConcatNode("joined", ("up", second.name, transposed.name), INNER)
    nodes = (first, second, pool, bottom, up, transposed, joined, convolution("joined", (16, 64, 3, 3), size, INNER, 4, 4, 2))
    return program(TensorFormat(8, 128, 5), 1, *nodes, convolution(nodes[-1].name, (3, 16, 3, 3), size, None, 4, 5))


def test_convolutions_and_pools_run_in_8_bit_kernels() -> None:
    compiled = OpenVinoEngine(unet_part()).compile((1, 1, 64, 64))
    kernels: dict[str, list[str]] = {}
    for layer in compiled.get_runtime_model().get_ordered_ops():
        notes = layer.get_rt_info()
        kernels.setdefault(notes["layerType"].astype(str), []).append(notes["primitiveType"].astype(str))
    assert len(kernels["Convolution"]) == 5
    assert len(kernels["Deconvolution"]) == len(kernels["Pooling"]) == 1
    for kind in ("Convolution", "Deconvolution", "Pooling", "Concatenation"):
        assert all(kernel.endswith("I8") for kernel in kernels[kind]), (kind, kernels[kind])


def test_shapes_may_change_and_only_two_stay_compiled() -> None:
    engine, reference = OpenVinoEngine(unet_part()), ReferenceEngine(unet_part())
    first = image(BYTE, 1, 16, 24, batch=1)
    kept = engine.run(first)
    for shape in [(1, 1, 16, 24), (2, 1, 8, 8), (1, 1, 32, 8), (3, 1, 16, 24), (2, 1, 8, 8), (1, 1, 16, 24)]:
        x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        assert np.array_equal(engine.run(x), reference.run(x))
        # A view that is not contiguous is read as what it shows.
        assert np.array_equal(engine.run(x[..., ::-1]), reference.run(x[..., ::-1]))
        assert len(engine._requests) <= 2
    # What was handed out is the caller's own.
    assert np.array_equal(kept, reference.run(first))


def test_sums_beyond_float32_are_refused() -> None:
    wide = convolution("image", (2, 2000, 3, 3), ConvGeometry((1, 1), (1, 1), (1, 1)))
    with pytest.raises(EngineMismatchError, match=r"accumulators of c0image reach \d+, beyond 2\*\*24"):
        OpenVinoEngine(program(BYTE, 2000, wide))


_OTHER_PROCESSOR = """
import sys
sys.path.insert(0, "tests")
from random_programs import draw
from medquant.deploy.engines.openvino_engine import OpenVinoEngine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.errors import EngineMismatchError
taken = refused = 0
for seed in range(40):
    drawn = draw(seed, 1 + seed % 6)
    try:
        found = OpenVinoEngine(drawn.program).run(drawn.image)
    except EngineMismatchError:
        refused += 1
        continue
    if (found != ReferenceEngine(drawn.program).run(drawn.image)).any():
        sys.exit(f"program {seed} differs")
    taken += 1
print(taken, refused)
"""


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX512_CORE_VNNI", "AVX512_CORE", "AVX2_VNNI", "AVX2", "SSE41"])
def test_other_processors(instructions: str, repository: Path) -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", _OTHER_PROCESSOR]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=repository)
    assert ended.returncode == 0, ended.stderr[-500:]
    assert int(ended.stdout.split()[0]) >= 20
