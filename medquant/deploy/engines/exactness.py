"""What engines that compute in 8-bit products and float32 rounding must check before they claim a program."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import numpy as np

from medquant.errors import EngineMismatchError
from medquant.quant.formats import FLOAT32_EXACT_LIMIT, TensorFormat, float32_adds_exactly
from medquant.quant.program import AddNode, AvgPoolNode, ConvolutionNode, IntArray, IntegerProgram, Node, UpsampleNode, accumulator_bound

_INT16_HIGHEST = 2**15 - 1
_WITH_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
_ISA_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


def check_float32(program: IntegerProgram, engine: str) -> None:
    """Refuse a program of which float32 could round a sum.

    Raises:
        EngineMismatchError: accumulators of a layer may pass 2**24, or an addition joins grids too far apart.
    """
    for node in program:
        if isinstance(node, ConvolutionNode):
            bound = accumulator_bound(node, program.format_of(node.inputs[0]))
            if bound >= FLOAT32_EXACT_LIMIT:
                raise EngineMismatchError(
                    f"engine {engine} rounds in float32, but accumulators of {node.name} reach {bound}, beyond 2**24; "
                    "use engine torch or reference, or fewer bits in this layer"
                )
        if isinstance(node, AddNode):
            first, second = (program.format_of(name).exponent for name in node.inputs)
            if not float32_adds_exactly(first, second):
                raise EngineMismatchError(
                    f"engine {engine} adds in float32, but {node.name} joins steps of 2**-{first} and 2**-{second}; use engine reference"
                )


def check_byte_products(program: IntegerProgram, engine: str) -> None:
    """Refuse a program whose byte products this processor would saturate: without VNNI two of them are added in 16 bits.

    Raises:
        EngineMismatchError: a layer's weights and activations are too wide for such a processor.
    """
    for node in program.convolutions:
        if saturates(node, program.format_of(node.inputs[0])):
            raise EngineMismatchError(
                f"engine {engine}: {node.name} multiplies {node.weight_bits}-bit weights by {program.format_of(node.inputs[0]).bits}-bit "
                "activations, which this processor (no VNNI) adds in 16 bits with saturation; use engine torch or reference, "
                "or 7-bit weights"
            )


def saturates(node: ConvolutionNode, read: TensorFormat) -> bool:
    """Whether this processor adds two of a convolution's byte products in 16 bits that cannot hold them."""
    return byte_products_saturate() and 2 * int(node.weight_magnitude.max(initial=0)) * read.highest > _INT16_HIGHEST


@cache
def byte_products_saturate() -> bool:
    """Whether the processor's 8-bit products saturate: x86 without VNNI, or held to such instructions by oneDNN's variable."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISA_WITHOUT_VNNI:
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        # Nothing is known, so nothing is claimed.
        return True
    return not any(flag in flags for flag in _WITH_VNNI)


def shift_of(node: Node, program: IntegerProgram) -> IntArray:
    """``s`` of ``round_half_even(sum * 2**-s)``: of each output channel for a convolution, otherwise one number.

    Sums are those of the node's definition: of the taps for a convolution, on the finer grid for an addition, over the window
    for an average, with weights 1 and 3 for linear up-sampling.

    Raises:
        TypeError: the node does not requantize.
    """
    written = _written(node)
    if isinstance(node, ConvolutionNode):
        return node.weight_exponents + (program.format_of(node.inputs[0]).exponent - written.exponent)
    if isinstance(node, AddNode):
        return np.asarray(max(program.format_of(name).exponent for name in node.inputs) - written.exponent)
    finer_by: int
    if isinstance(node, AvgPoolNode):
        finer_by = int(np.prod(node.kernel)).bit_length() - 1
    elif isinstance(node, UpsampleNode) and node.mode == "linear":
        finer_by = 2 * node.spatial_axes
    else:
        raise TypeError(f"{node.name} moves integers and does not requantize")
    return np.asarray(program.format_of(node.inputs[0]).exponent + finer_by - written.exponent)


def _written(node: Node) -> TensorFormat:
    if node.output is None:
        raise TypeError(f"{node.name} writes accumulators, which are not requantized")
    return node.output
