"""A small fixed program that every engine must run exactly like the reference: the check behind ``medquant doctor``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medquant.deploy.engines import ENGINES
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.errors import MedquantError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConcatNode, ConvolutionNode, ImageNode, IntegerProgram, MaxPoolNode, Node, UpsampleNode

_SIDE = 32


@dataclass(frozen=True)
class EngineResult:
    """What the self-test found about one engine."""

    name: str
    works: bool
    exact: bool
    differing: int
    verdict: str


def check_engines() -> list[EngineResult]:
    """Run the self-test program on every registered engine."""
    program = small_program()
    image = np.random.default_rng(0).integers(0, 256, (2, 1, _SIDE, _SIDE)).astype(np.uint8)
    expected = ReferenceEngine(program).run(image)
    results = []
    for name, engine in ENGINES.items():
        reason = engine.unavailable()
        if reason is not None:
            results.append(EngineResult(name, False, False, 0, f"not here: {reason}"))
            continue
        try:
            found = engine(program).run(image)
        except MedquantError as error:
            # A setting that names nothing here, or no memory.
            results.append(EngineResult(name, False, False, 0, f"not here: {error}"))
            continue
        differing = int((found != expected).sum())
        verdict = (
            f"works, {engine.info.summary}" if not differing else f"WRONG: {differing} of {expected.size} values differ from the reference"
        )
        results.append(EngineResult(name, True, differing == 0, differing, verdict))
    return results


def small_program() -> IntegerProgram:
    """A two-level U-Net with fixed random 4-bit weights and 6-bit activations: convolution, pooling, up-sampling, concatenation."""
    rng = np.random.default_rng(20190804)
    image, inner = TensorFormat(8, 128, 5), TensorFormat(6, 0, 4)
    nodes: list[Node] = [ImageNode("input", (), image, 1)]
    nodes.append(_conv("enc", "input", 1, 8, inner, rng))
    nodes.append(MaxPoolNode("pool", ("enc",), inner, (2, 2), (2, 2), (0, 0)))
    nodes.append(_conv("bottom", "pool", 8, 8, inner, rng))
    nodes.append(UpsampleNode("up", ("bottom",), inner, 2, "linear", 2))
    nodes.append(ConcatNode("concat", ("up", "enc"), inner))
    nodes.append(_conv("head", "concat", 16, 2, None, rng))
    return IntegerProgram(tuple(nodes), (8, 8))


def _conv(name: str, source: str, inputs: int, outputs: int, written: TensorFormat | None, rng: np.random.Generator) -> ConvolutionNode:
    geometry = ConvGeometry((1, 1), (1, 1), (1, 1))
    exponents = rng.integers(3, 6, outputs) if written is not None else np.full(outputs, 4)
    weight, bias = rng.integers(-8, 8, (outputs, inputs, 3, 3)), rng.integers(-200, 200, outputs)
    return ConvolutionNode(name, (source,), written, weight, bias, exponents.astype(np.int64), 4, geometry, relu=written is not None)
