"""The native engine's loader: real programs load, and whatever is forged, cut or flipped is refused in words, never with a crash.

The loader is built with the address and undefined behaviour sanitizers, where a compiler is there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_cases import REAL_PROGRAMS, case_file
from native_forging import IMAGE, Forged, ForgedProgram, every_kind, one_convolution, words
from native_loader import Load, output_of
from packed_files import every_node, tiny

from medquant.deploy.native.program import encode_program
from medquant.errors import ConfigError, EngineMismatchError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram, MaxPoolNode, Node, UpsampleNode
from medquant.quant.shapes import infer_shapes

# --- programs that load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL_PROGRAMS)
def test_real_programs_load_and_have_the_sizes_of_python(name: str, load: Load) -> None:
    program = REAL_PROGRAMS[name]()
    fitting = 0
    for sides in ((16, 32, 48), (8, 24, 16), (5, 7, 9), (1, 2, 3), (33, 4, 20)):
        size = sides[: program.dimensions]
        found = load(encode_program(program), *size)
        try:
            shapes = infer_shapes(program, (1, program.image.channels, *size))
        except ConfigError:
            assert re.match(rf"ok {len(program.nodes)}\nbad input: ", found)
            continue
        fitting += 1
        lines = [f"{node} {' '.join(map(str, shape[1:]))}" for node, shape in shapes.items()]
        assert found == "\n".join([f"ok {len(program.nodes)}", *lines, ""])
    assert fitting >= 2


def test_block_byte_by_byte() -> None:
    one = (1, 1)
    weight, numbers = np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 1, 2), np.array([-7, 9])
    geometry = ConvGeometry((1, 2), (3, 4), (5, 6))
    program = IntegerProgram(
        (
            ImageNode("in", (), TensorFormat(8, 128, -5), 2),
            ConvolutionNode("c", ("in",), TensorFormat(6, 1, 2), weight, numbers, -numbers, 4, geometry, True),
            MaxPoolNode("pöl", ("c",), TensorFormat(7, 1, 2), (2, 3), one, (1, 0)),
        ),
        (2,),
    )
    block, weights = encode_program(program)
    image = words(0, 2) + b"in" + words(0, 0, 8, 128, -5, 2)
    geometry_words = words(1, 2, 1, 2, 3, 4, 5, 6, 0, 0)
    conv = words(1, 1) + b"c" + words(1, 0, 0, 6, 1, 2, 4, 1, 0, 1) + geometry_words + words(2, 2, 0, -7, 9, 7, -9)
    pool = words(2, 4) + "pöl".encode() + words(1, 1, 0, 7, 1, 2, 2, 3, 1, 1, 1, 0)
    assert block == b"MQNP" + words(1, 2, 3) + image + conv + pool
    assert len(weights) == 1
    assert weights[0] is weight


def test_the_forged_program_is_whole(load: Load) -> None:
    assert load(every_kind()) == "ok 11\n"
    assert load(one_convolution(np.ones((1, 1, 1, 1)))) == "ok 2\n"


# --- sizes ---------------------------------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit(load: Load) -> None:
    block = encode_program(every_node())
    for size, message in {
        (0, 8): "image leaves nothing of an image of 0 x 8 (0 x 8); use a larger image",
        (8, -(2**31)): "image leaves nothing of an image of 8 x -2147483648",
        (2**31 - 1, 1): "mean leaves nothing",
        (2**31 - 1, 2**31 - 1): "image would write 2147483647 x 2147483647 voxels of 1 channels",
        (21, 21): "join joins tensors of different sizes: relu has 12 x 12 and strided 11 x 11",
    }.items():
        assert f"bad input: {message}" in load(block, *size)


def test_sizes_beyond_31_bits(load: Load) -> None:
    image = Forged(IMAGE, b"image", [], 0, (8, 0, 0), {"channels": 1})
    up = Forged(4, b"up", [0], 0, (8, 0, 0), {"factor": 2**15 - 1, "mode": 0})
    found = load(ForgedProgram([image, up], []), 2**31 - 1, 1)
    assert f"bad input: up would write {(2**31 - 1) * (2**15 - 1)} x 32767 voxels of 1 channels" in found
    wide = one_convolution(np.ones((1, 1, 1, 1)), transposed=1, stride=[2**15 - 1, 1])
    assert f"head would write {(2**31 - 2) * (2**15 - 1) + 1} x 1 voxels" in load(wide, 2**31 - 1, 1)
    negative = one_convolution(np.ones((1, 1, 1, 1)), transposed=1, padding=[2**15 - 1, 0])
    assert f"head leaves nothing of an image of 1 x 1 ({1 - 2 * (2**15 - 1)} x 1)" in load(negative, 1, 1)


# --- damage --------------------------------------------------------------------------------------------------------------


def run_list(loader: Path, folder: Path, cases: Iterable[bytes]) -> list[str]:
    paths = []
    for number, data in enumerate(cases):
        paths.append(folder / f"{number}.case")
        paths[-1].write_bytes(data)
    (folder / "list").write_text("".join(f"{path}\n" for path in paths))
    lines = output_of([str(loader), "-l", str(folder / "list")]).splitlines()
    assert len(lines) == len(paths)
    return lines


def test_every_cut_of_a_program_is_refused(loader: Path, tmp_path: Path) -> None:
    block, weights = encode_program(tiny())
    lines = run_list(loader, tmp_path, (case_file(block[:length], weights) for length in range(len(block))))
    assert all(line.startswith("refused: ") for line in lines)
    assert run_list(loader, tmp_path, [case_file(block, weights)]) == ["ok 2"]


def test_random_damage_never_crashes(loader: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    blocks = [encode_program(program()) for program in REAL_PROGRAMS.values()]

    def damaged() -> Iterable[bytes]:
        for number in range(500):
            block, weights = blocks[number % len(blocks)]
            data = bytearray(block[: int(random.integers(len(block)))] if number % 4 == 0 else block)
            for _ in range(int(random.integers(1, 4)) if data else 0):
                data[random.integers(len(data))] ^= 1 << int(random.integers(8))
            yield case_file(bytes(data), weights)

    lines = run_list(loader, tmp_path, damaged())
    kinds = {line.split()[0] for line in lines}
    assert kinds == {"ok", "refused:"}


# --- what the package refuses itself -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StrangeNode(Node):
    pass


def replaced(node: str, **fields: Any) -> IntegerProgram:
    program = every_node()
    return IntegerProgram(
        tuple(dataclasses.replace(each, **fields) if each.name == node else each for each in program), program.output_exponents
    )


def test_programs_that_have_no_block() -> None:
    program = every_node()
    strange = IntegerProgram((*program.nodes, StrangeNode("odd", ("head",), None)), ())
    with pytest.raises(EngineMismatchError, match=r"engine native does not know the node StrangeNode \(odd\)"):
        encode_program(strange)
    weight = program.convolutions[0].weight
    one_bias = np.full(4, 2**31)
    for broken, message in (
        (replaced("strided", bias=one_bias), "strided: bias from 2147483648 to 2147483648, expected -2147483648 to 2147483647"),
        (replaced("strided", bias=one_bias[:3]), r"strided: \(3,\) biases and \(4,\) exponents for 4 channels"),
        (replaced("strided", weight=weight.astype(np.int64) * 0 + 128), "strided: weight from 128 to 128, expected -128 to 127"),
        (replaced("strided", weight=weight[..., 0]), r"strided: a weight of shape \(4, 1, 3\) in a program of 2 spatial axes"),
        (
            replaced("strided", output=dataclasses.replace(TensorFormat(6, 3, 2), exponent=2**40)),
            "strided: a value has no place in 32 bits",
        ),
        (replaced("pool", kernel=(2, 2, 2)), r"pool has 3 entries \(\(2, 2, 2\)\) in a program of 2 spatial axes"),
        (replaced("linear", spatial_axes=3), "linear works on 3 spatial axes in a program of 2"),
        (replaced("relu", inputs=("later",)), "relu reads 'later', which nothing before it writes"),
        (replaced("relu", name="nearest"), "nearest reads 'nearest'|two nodes are called 'nearest'"),
    ):
        with pytest.raises(EngineMismatchError, match=message) as caught:
            encode_program(broken)
        assert caught.value.exit_code == 7


def test_names_that_would_break_a_message_still_load(load: Load) -> None:
    image = TensorFormat(8, 0, 0)
    for name in ("", "a\0b\nc", "\ud800", "é" * 1000, "x" * 5000):
        nodes = (ImageNode(name, (), image, 1), UpsampleNode("up", (name,), image, 2, "nearest", 2))
        assert load(encode_program(IntegerProgram(nodes, (0,)))) == "ok 2\n"
