"""ONNX graphs of programs made by chance against the reference engine: every node kind, width, zero point and exponent, 2D and 3D.

The reference is held to hand-written loops in tests/deploy/test_reference_engine.py. Which form a node takes is held to a count by hand.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from medquant.deploy.engines.exactness import shift_of
from medquant.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.onnx_graph import mask_model
from medquant.deploy.openvino_import import openvino_core
from medquant.errors import EngineMismatchError
from medquant.quant.formats import TensorFormat, weight_range
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
from medquant.quant.shapes import infer_shapes

onnx = pytest.importorskip("onnx", reason="onnx builds the graphs")
pytest.importorskip("onnxruntime", reason="ONNX Runtime runs them")


# --- programs made by chance -------------------------------------------------------------------------------------------


class ProgramMaker:
    """Appends nodes whose values use their range: both ends are reached, and ties are met."""

    def __init__(self, seed: int, axes: int) -> None:
        self.rng, self.axes = np.random.default_rng(seed), axes
        self.image = ImageNode("input", (), self.any_format(), int(self.rng.integers(1, 4)))
        self.nodes: list[Node] = [self.image]
        self.size = tuple(int(n) for n in self.rng.integers(5, 12 if axes == 2 else 9, axes))

    def pick(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def any_format(self) -> TensorFormat:
        bits = int(self.rng.integers(1, 9))
        zero_point = 0 if self.rng.random() < 0.4 else int(self.rng.integers(0, 2**bits))
        return TensorFormat(bits, zero_point, int(self.rng.integers(-3, 7)))

    def shape(self, name: str) -> tuple[int, ...]:
        return infer_shapes(IntegerProgram(tuple(self.nodes), ()), (1, self.image.channels, *self.size))[name]

    def read(self, name: str) -> TensorFormat:
        return IntegerProgram(tuple(self.nodes), ()).format_of(name)

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def name(self, kind: str) -> str:
        return f"{kind}{len(self.nodes)}"

    def convolution(self, source: str, written: TensorFormat | None, outputs: int, geometry: ConvGeometry, kernel: tuple[int, ...]) -> str:
        inputs, read, bits = self.shape(source)[1], self.read(source), int(self.rng.integers(1, 9))
        low, high = weight_range(bits)
        sides = (inputs, outputs // geometry.groups) if geometry.transposed else (outputs, inputs // geometry.groups)
        weight = self.rng.integers(low, high + 1, (*sides, *kernel))
        weight[(weight == 0) & (bits == 1)] = 1
        spread = max(float(np.sqrt((weight.astype(float) ** 2).sum() / outputs)) * read.largest_magnitude / 2, 1)
        bias = self.rng.integers(-int(spread) - 1, int(spread) + 2, outputs)
        exponents = self.rng.integers(-3, 9, outputs)
        if written is not None:
            shift = round(np.log2(max(spread / max(written.highest / 2, 0.5), 0.25))) + self.rng.integers(-1, 3, outputs)
            exponents = shift - read.exponent + written.exponent
        relu = bool(self.rng.random() < 0.5)
        return self.add(ConvolutionNode(self.name("conv"), (source,), written, weight, bias, exponents, bits, geometry, relu))

    def plain(self, source: str, outputs: int, written: TensorFormat | None) -> str:
        """Of the same size as its source."""
        kernel = tuple(self.pick(1, 3) for _ in range(self.axes))
        dilation = tuple(self.pick(1, 1, 2) for _ in range(self.axes))
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        groups = self.pick(1, 1, np.gcd(self.shape(source)[1], outputs))
        return self.convolution(source, written, outputs, ConvGeometry((1,) * self.axes, padding, dilation, int(groups)), kernel)

    def strided(self, source: str) -> str:
        kernel, stride = self.each(1, 2, 3), self.each(1, 2)
        geometry = ConvGeometry(stride, tuple(self.pick(0, k // 2) for k in kernel), (1,) * self.axes)
        return self.convolution(source, self.any_format(), int(self.rng.integers(1, 9)), geometry, kernel)

    def transposed(self, source: str) -> str:
        ones, zeros = (1,) * self.axes, (0,) * self.axes
        groups = int(self.pick(1, np.gcd(self.shape(source)[1], 4)))
        kernel, geometry = self.pick(
            ((2,) * self.axes, ConvGeometry((2,) * self.axes, zeros, ones, groups, True, zeros)),
            ((3,) * self.axes, ConvGeometry((2,) * self.axes, ones, ones, groups, True, self.each(0, 1))),
            ((4,) * self.axes, ConvGeometry((2,) * self.axes, ones, ones, groups, True, zeros)),
            ((3,) * self.axes, ConvGeometry(ones, ones, ones, groups, True, zeros)),
        )
        return self.convolution(source, self.any_format(), 4, geometry, kernel)

    def each(self, *values: int) -> tuple[int, ...]:
        return tuple(self.pick(*values) for _ in range(self.axes))

    def step(self, source: str) -> str:
        """One more node behind ``source``."""
        read, written = self.read(source), self.any_format()
        kind = self.pick("plain", "plain", "strided", "transposed", "max", "mean", "nearest", "linear", "relu", "concat", "add")
        if kind == "plain":
            return self.plain(source, int(self.rng.integers(1, 9)), written)
        if kind == "strided":
            return self.strided(source)
        if kind == "transposed":
            return self.transposed(source)
        if kind == "max":
            kernel = self.each(2, 3)
            return self.add(
                MaxPoolNode(self.name("max"), (source,), read, kernel, self.each(1, 2), tuple(self.pick(0, k // 2) for k in kernel))
            )
        if kind == "mean":
            return self.add(AvgPoolNode(self.name("mean"), (source,), written, self.each(1, 2), self.each(1, 2)))
        if kind == "nearest":
            return self.add(UpsampleNode(self.name("near"), (source,), read, self.pick(2, 3), "nearest", self.axes))
        if kind == "linear":
            # Finer by up to all the places a mean has, or coarser.
            exponent = read.exponent + int(self.rng.integers(-1, 2 * self.axes + 1))
            return self.add(
                UpsampleNode(
                    self.name("linear"), (source,), TensorFormat(written.bits, written.zero_point, exponent), 2, "linear", self.axes
                )
            )
        if kind == "relu":
            return self.add(ReluNode(self.name("relu"), (source,), read))
        if kind == "concat":
            other = self.plain(source, int(self.rng.integers(1, 5)), read)
            return self.add(ConcatNode(self.name("concat"), (source, other, source), read))
        twin = self.plain(source, self.shape(source)[1], written)
        finer = max(read.exponent, written.exponent)
        out = self.any_format()
        out = TensorFormat(out.bits, out.zero_point, finer + int(self.rng.integers(-9 + out.bits, 1)))
        return self.add(AddNode(self.name("add"), (source, twin), out, relu=bool(self.rng.random() < 0.5)))


def random_program(seed: int, axes: int) -> tuple[IntegerProgram, tuple[int, ...]]:
    """A program and an image size for it; small tensors only."""
    maker = ProgramMaker(seed, axes)
    source = "input"
    for _ in range(int(maker.rng.integers(3, 8))):
        if min(maker.shape(source)[2:]) < 5 or np.prod(maker.shape(source)[1:]) > 40_000:
            source = maker.plain("input", 3, maker.any_format())
        source = maker.step(source)
    outputs = int(maker.rng.integers(1, 5))
    last: Any = maker.nodes[-1]
    if maker.rng.random() < 0.8:
        maker.plain(source, outputs, None)
        last = maker.nodes[-1]
        exponents = tuple(int(e) + maker.read(source).exponent for e in last.weight_exponents)
    else:
        exponents = (last.output.exponent,)
    return IntegerProgram(tuple(maker.nodes), exponents), maker.size


def random_image(program: IntegerProgram, size: tuple[int, ...], seed: int) -> np.ndarray:
    """Two cases: noise, and the highest level everywhere."""
    highest = program.format_of("input").highest
    noise = np.random.default_rng(seed).integers(0, highest + 1, (1, program.image.channels, *size))
    return np.concatenate([noise, np.full_like(noise, highest)]).astype(np.uint8)


def real_image(image: np.ndarray, program: IntegerProgram) -> np.ndarray:
    """The float image whose levels these are."""
    read = program.format_of("input")
    return ((image.astype(np.float64) - read.zero_point) * 2.0**-read.exponent).astype(np.float32)


def run_onnxruntime(model: bytes, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["levels"], {"image": image})[0])


def run_openvino(model: bytes, image: np.ndarray, hint: str | None = None) -> np.ndarray:
    """With the precision that OpenVINO takes by itself, bfloat16 where the processor has it, or with another."""
    pytest.importorskip("openvino", reason="OpenVINO reads the graph too")
    core = openvino_core()
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, **({} if hint is None else {"INFERENCE_PRECISION_HINT": hint})}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    return np.asarray(compiled(image)["levels"])


def exact(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == np.int32 and np.array_equal(found, expected)


def may_be_refused(program: IntegerProgram) -> bool:
    """Whether OpenVINO would round some levels to the other side: around an odd zero point, or one of too many places."""
    requantizing = [node for node in program if isinstance(node, ConvolutionNode | AddNode) and node.output]
    odd = any(node.output and node.output.zero_point % 2 for node in program.nodes[1:])
    return odd or max((int(np.max(shift_of(node, program))) for node in requantizing), default=0) > 16


def assert_exact(seed: int, axes: int) -> Counter[str]:
    program, size = random_program(seed, axes)
    image = random_image(program, size, seed)
    expected = ReferenceEngine(program).run(image)
    kinds = [(type(node).__name__, node.output) for node in program]
    assert exact(OnnxRuntimeEngine(program).run(image), expected), f"engine, {axes}D seed {seed}: {kinds}"
    values = real_image(image, program)
    try:
        model = mask_model(program, 1, {})
    except EngineMismatchError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert may_be_refused(program) or "joins steps" in refused, refused
        return Counter()
    onnx.checker.check_model(model, full_check=True)
    assert exact(run_onnxruntime(model, values), expected), f"export in ONNX Runtime, {axes}D seed {seed}: {kinds}"
    for hint in (None, "f32"):
        assert exact(run_openvino(model, values, hint), expected), f"export in OpenVINO, {hint}, {axes}D seed {seed}: {kinds}"
    return Counter(type(node).__name__ for node in program)


@pytest.mark.parametrize("axes", [2, 3])
def test_programs_made_by_chance(axes: int) -> None:
    met = sum((assert_exact(seed, axes) for seed in range(8)), Counter())
    kinds = {ConvolutionNode, MaxPoolNode, AvgPoolNode, UpsampleNode, ReluNode, ConcatNode, AddNode}
    assert {kind.__name__ for kind in kinds} <= met.keys()


@pytest.mark.slow
@pytest.mark.parametrize("axes", [2, 3])
def test_many_programs_made_by_chance(axes: int) -> None:
    for seed in range(1000, 1300):
        assert_exact(seed, axes)


# --- forms that a runtime would get wrong ------------------------------------------------------------------------------


def one_by_one(name: str, source: str, written: TensorFormat | None, weight: int, exponent: int, bits: int = 8) -> ConvolutionNode:
    """``weight`` times the one channel of its source, 2-D."""
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1))
    values, bias = np.full((1, 1, 1, 1), weight), np.zeros(1, np.int64)
    return ConvolutionNode(name, (source,), written, values, bias, np.array([exponent]), bits, geometry, relu=False)


def all_levels() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


def everywhere(program: IntegerProgram, image: np.ndarray) -> list[np.ndarray]:
    """Output integers of the engine, and of the exported graph in each runtime."""
    model, values = mask_model(program, 1, {}), real_image(image, program)
    return [OnnxRuntimeEngine(program).run(image), run_onnxruntime(model, values), run_openvino(model, values)]


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (8, 2), (8, 77), (8, 128), (8, 255), (7, 0), (7, 1), (7, 64), (7, 77), (7, 127)])
def test_ties_with_every_kind_of_zero_point(bits: int, zero_point: int) -> None:
    # Halves of the whole numbers from -128 to 127: round half to even, by hand, then the zero point.
    read, written = TensorFormat(8, 128, 0), TensorFormat(bits, zero_point, 0)
    program = IntegerProgram((ImageNode("input", (), read, 1), one_by_one("half", "input", written, 1, 1)), (0,))
    expected = np.clip([round((level - 128) / 2) + zero_point for level in range(256)], 0, 2**bits - 1).reshape(1, 1, 16, 16)
    if bits == 8 and zero_point % 2:
        assert np.array_equal(OnnxRuntimeEngine(program).run(all_levels()), expected)
        with pytest.raises(EngineMismatchError, match=f"half rounds 1 binary places to 256 levels around the zero point {zero_point}"):
            mask_model(program, 1, {})
        return
    for found in everywhere(program, all_levels()):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("zero_point", [0, 4, 128])
def test_sum_of_two_quantized_branches(zero_point: int) -> None:
    # q / 4 rounded, plus q / 2 rounded, both unsigned; the sum halved once more: ties in every step.
    read, branch, written = TensorFormat(8, 0, 0), TensorFormat(8, 0, 0), TensorFormat(8, zero_point, -1)
    nodes = (
        ImageNode("input", (), read, 1),
        one_by_one("quarter", "input", branch, 1, 2),
        one_by_one("half", "input", branch, 1, 1),
        AddNode("sum", ("quarter", "half"), written, relu=False),
    )
    expected = [min(round((round(q / 4) + round(q / 2)) / 2) + zero_point, 255) for q in range(256)]
    for found in everywhere(IntegerProgram(nodes, (-1,)), all_levels()):
        assert found.flatten().tolist() == expected


def test_linear_upsampling_that_keeps_its_format_is_rounded_once() -> None:
    # 0 and 1, then 1 and 2: quarters of one, by hand; a resize of the bytes themselves would cut them off.
    read = TensorFormat(8, 0, 0)
    nodes = (ImageNode("input", (), read, 1), UpsampleNode("up", ("input",), read, 2, "linear", 2))
    image = np.array([[[[0, 10]]]], np.uint8)
    for found in everywhere(IntegerProgram(nodes, (0,)), image):
        assert found[0, 0].tolist() == [[0, 2, 8, 10], [0, 2, 8, 10]]


def test_sums_beyond_float32_run_in_integers_and_are_not_exported() -> None:
    read = TensorFormat(8, 0, 0)
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1))
    weight, bias = np.full((1, 1, 1, 1), 127), np.array([2**24 + 1])
    node = ConvolutionNode("wide", ("input",), None, weight, bias, np.zeros(1, np.int64), 8, geometry, False)
    program = IntegerProgram((ImageNode("input", (), read, 1), node), (0,))
    expected = [2**24 + 1 + 127 * q for q in range(256)]
    assert OnnxRuntimeEngine(program).run(all_levels()).flatten().tolist() == expected
    with pytest.raises(EngineMismatchError, match=r"wide reach .*2\*\*24"):
        mask_model(program, 1, {})


def test_volumes_that_end_in_a_transposed_convolution_run_and_are_not_exported() -> None:
    # Each voxel times 1 to 8, spread over its cube, by hand.
    spread = ConvGeometry((2, 2, 2), (0, 0, 0), (1, 1, 1), 1, True, (0, 0, 0))
    weight, nothing = np.arange(1, 9).reshape(1, 1, 2, 2, 2), np.zeros(1, np.int64)
    image = ImageNode("input", (), TensorFormat(8, 0, 0), 1)
    program = IntegerProgram((image, ConvolutionNode("up", ("input",), None, weight, nothing, nothing, 8, spread, False)), (0,))
    cube = all_levels().reshape(1, 1, 16, 4, 4)
    assert np.array_equal(OnnxRuntimeEngine(program).run(cube), np.kron(cube.astype(np.int64), weight))
    with pytest.raises(EngineMismatchError, match="up is a transposed convolution"):
        mask_model(program, 1, {})
    wide = ConvolutionNode("up", ("input",), None, weight, nothing + 2**24, nothing, 8, spread, False)
    with pytest.raises(EngineMismatchError, match="up is a transposed convolution"):
        OnnxRuntimeEngine(IntegerProgram((image, wide), (0,)))


def kernels(program: IntegerProgram, tmp_path: Any) -> Counter[str]:
    """Operators of the graph that ONNX Runtime made of the exported one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(mask_model(program, 1, {}), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


@pytest.mark.parametrize("zero_point", [0, 6, 7])
def test_all_but_the_last_layer_run_in_8_bit_kernels(zero_point: int, tmp_path: Any) -> None:
    # A convolution, a transposed one of stride 2 and a pooling, counted by hand; an odd zero point is no exception below 8 bits.
    inner = TensorFormat(6, zero_point, 0)
    spread = ConvGeometry((2, 2), (0, 0), (1, 1), 1, True, (0, 0))
    nodes = (
        ImageNode("input", (), TensorFormat(8, 128, 4), 1),
        one_by_one("first", "input", inner, 3, -3, bits=4),
        MaxPoolNode("pool", ("first",), inner, (2, 2), (2, 2), (0, 0)),
        ConvolutionNode("up", ("pool",), inner, np.full((1, 3, 2, 2), 2), np.zeros(3, np.int64), np.arange(3), 4, spread, True),
        ConvolutionNode(
            "last", ("up",), None, np.ones((2, 3, 1, 1), np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64), 4,
            ConvGeometry((1, 1), (0, 0), (1, 1)), False,
        ),
    )  # fmt: skip
    found = kernels(IntegerProgram(nodes, (0, 0)), tmp_path)
    assert found["QLinearConv"] == 2
    assert found["ConvInteger"] == 1
    assert found["Conv"] + found["FusedConv"] == 0
    assert found["ConvTranspose"] == 0
