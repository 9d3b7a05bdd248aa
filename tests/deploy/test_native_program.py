"""The native engine's loader: real programs load, and whatever is forged, cut or flipped is refused in words, never with a crash.

The loader is built with the address and undefined behaviour sanitizers, where a compiler is there.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_cases import case_file, real_programs
from native_forging import ADD, AVG_POOL, CONCAT, IMAGE, Forged, ForgedProgram, changed, every_kind, one_convolution, words
from packed_files import every_node, tiny

from medquant.deploy.native.program import encode_program
from medquant.errors import ConfigError, EngineMismatchError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram, MaxPoolNode, Node, UpsampleNode
from medquant.quant.shapes import infer_shapes

NATIVE = Path(__file__).parents[2] / "native"
PROGRAMS = real_programs()
TWO_31 = 2**31
Load = Callable[..., str]


@pytest.fixture(scope="session")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed, which builds the loader's test program")
    path = tmp_path_factory.mktemp("native") / "load_program"
    flags = ["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    sources = [NATIVE / "tests" / "load_program.cpp", *sorted((NATIVE / "src").glob("program*.cpp"))]
    for sanitizers in (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], []):
        built = subprocess.run([compiler, *flags, *sanitizers, *sources, "-o", path], capture_output=True, text=True, check=False)
        if built.returncode == 0:
            return path
        # A compiler may come without the sanitizers' libraries; anything else that stops the build is a mistake of ours.
        if not re.search(r"cannot find .*(asan|ubsan)", built.stderr):
            break
    pytest.fail(built.stderr)


@pytest.fixture
def load(loader: Path, tmp_path: Path) -> Load:
    """What the loader prints on a block and its weights, or on a forged program, and on an image's size."""

    def run(program: ForgedProgram | tuple[bytes, list[Any]], *size: int) -> str:
        block, weights = (program.to_bytes(), program.weights) if isinstance(program, ForgedProgram) else program
        path = tmp_path / "case"
        path.write_bytes(case_file(block, weights))
        return output_of([str(loader), str(path), *map(str, size)])

    return run


def output_of(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")
    return ran.stdout.decode()


# --- programs that load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_real_programs_load_and_have_the_sizes_of_python(name: str, load: Load) -> None:
    program = PROGRAMS[name]
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


# --- what is refused -----------------------------------------------------------------------------------------------------


def node_changes() -> Iterable[tuple[str, dict[str, Any], str]]:
    """Node of the forged program, fields replaced, the refusal."""
    yield "pool", {"kind": 8}, "pool: a node of kind 8, expected 0 to 7"
    yield "pool", {"kind": 2**32 - 1}, "pool: a node of kind 4294967295, expected 0 to 7"
    yield "pool", {"name": b""}, "node 2 has a name of 0 bytes, expected 1 to 1024"
    yield "pool", {"name": b"a" * 1025}, "node 2 has a name of 1025 bytes, expected 1 to 1024"
    for name in (
        b"\xff",
        b"\x80",
        b"a\xc3",
        b"\xc0\xaf",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\n",
    ):
        yield "pool", {"name": name}, "node 2 has a name that is not UTF-8 without control characters"
    yield "pool", {"name": "ü€𝄞".encode(), "stride": [0, 1]}, "ü€𝄞: stride 0, expected 1 to 32767"
    yield "pool", {"name": ("é" * 40).encode(), "stride": [0, 1]}, "é" * 28 + "...: stride 0"
    yield "pool", {"inputs": []}, "pool: 0 inputs, expected 1"
    yield "pool", {"inputs": [0, 1]}, "pool: 2 inputs, expected 1"
    yield "pool", {"inputs": [2]}, "pool: reads node 2, expected one of the 2 before it"
    yield "sum", {"inputs": [7, 2**32 - 1]}, "sum: reads node 4294967295, expected one of the 8 before it"
    yield "sum", {"inputs": [7]}, "sum: 1 inputs, expected 2"
    yield "join", {"inputs": []}, "join: 0 inputs, expected at least 1"
    yield "image", {"inputs": [0]}, "image: 1 inputs, expected 0"
    yield "pool", {"accumulates": 1}, "pool: writes accumulators, which only a convolution at the end may do"
    yield "conv", {"accumulates": 1, "format": (0, 0, 0)}, "conv: writes accumulators, which only a convolution at the end may do"
    yield "pool", {"accumulates": 2}, "pool: accumulates is 2, expected 0 or 1"
    yield "head", {"format": (8, 0, 0)}, "head: accumulators with a format of 8 bits, expected zeros there"
    yield "pool", {"format": (0, 0, 2)}, "pool: a format of 0 bits, expected 1 to 8"
    yield "pool", {"format": (9, 3, 2)}, "pool: a format of 9 bits, expected 1 to 8"
    yield "conv", {"format": (6, 64, 2)}, "conv: zero point 64, expected 0 to 63 in 6 bits"
    yield "conv", {"format": (6, -1, 2)}, "conv: zero point -1, expected 0 to 63 in 6 bits"
    yield "conv", {"format": (6, 3, 128)}, "conv: exponent 128, expected -128 to 127"
    yield "conv", {"format": (6, 3, -129)}, "conv: exponent -129, expected -128 to 127"
    for node, other in {"pool": (6, 4, 2), "relu": (6, 3, 1), "join": (5, 3, 2), "near": (8, 8, -4)}.items():
        yield node, {"format": other}, rf"{node}: moves integers of \w+ .* into another format \({other[0]} bits, zero point {other[1]}"
    yield "image", {"channels": 0}, "image: channels 0, expected 1 to 1048576"
    yield "image", {"channels": 2**20 + 1}, "image: channels 1048577, expected 1 to 1048576"
    yield "conv", {"bits": 0}, "conv: weight bits 0, expected 1 to 8"
    yield "conv", {"bits": 9}, "conv: weight bits 9, expected 1 to 8"
    yield "conv", {"relu": 2}, "conv: relu is 2, expected 0 or 1"
    yield "conv", {"transposed": -1}, "conv: transposed is -1, expected 0 or 1"
    for groups in (0, -1):
        yield "conv", {"groups": groups}, f"conv: groups {groups}, expected 1 to 1048576"
    yield "conv", {"groups": 4}, "conv: 4 groups do not divide 2 input and 4 output channels"
    yield "up", {"groups": 4}, "up: 4 groups do not divide 8 input and 6 output channels"
    yield "conv", {"kernel": [3, 0]}, "conv: kernel 0, expected 1 to 32767"
    yield "conv", {"kernel": [2**15, 3]}, "conv: kernel 32768, expected 1 to 32767"
    yield "conv", {"stride": [1, -2]}, "conv: stride -2, expected 1 to 32767"
    yield "conv", {"padding": [-1, 1]}, "conv: padding -1, expected 0 to 32767"
    yield "conv", {"dilation": [0, 1]}, "conv: dilation 0, expected 1 to 32767"
    yield "conv", {"output_padding": [0, 1]}, "conv: output padding 1, expected 0 to 0"
    yield "up", {"output_padding": [0, -1]}, "up: output padding -1, expected 0 to 32767"
    yield "conv", {"out_channels": 0}, "conv: output channels 0, expected 1 to 1048576"
    yield "conv", {"in_channels": 2**31 - 1}, "conv: input channels 2147483647, expected 1 to 1048576"
    yield "conv", {"in_channels": 4}, "conv: weights for 4 channels, and its input has 2"
    yield "conv", {"index": 1}, "conv: weight array 1, expected 0, the next in order"
    yield "conv", {"kernel": [3, 4]}, "conv: 36 weights, expected 48"
    yield "conv", {"exponents": [0, 0, 0, 128]}, "conv: weight exponent 128, expected -128 to 127"
    yield "conv", {"exponents": [0, -129, 0, 0]}, "conv: weight exponent -129, expected -128 to 127"
    yield "conv", {"bits": 3}, "conv: weight -8, expected -4 to 3 in 3 bits"
    yield "up", {"bits": 3}, "up: weight 7, expected -4 to 3 in 3 bits"
    yield "pool", {"kernel": [0, 3]}, "pool: kernel 0, expected 1 to 32767"
    yield "pool", {"padding": [0, 2]}, "pool: padding 2, expected at most half of the window of 3"
    yield "mean", {"kernel": [2, 3]}, "mean: averages over 6 voxels, expected a power of two"
    yield "mean", {"stride": [1, 0]}, "mean: stride 0, expected 1 to 32767"
    yield "near", {"factor": 0}, "near: factor 0, expected 1 to 32767"
    yield "near", {"mode": 2}, r"near: mode 2, expected 0 \(nearest\) or 1 \(linear\)"
    yield "line", {"factor": 3}, "line: factor of linear up-sampling 3, expected 2 to 2"
    yield "sum", {"relu": 2}, "sum: relu is 2, expected 0 or 1"
    yield "sum", {"inputs": [7, 6]}, "sum: adds 8 channels and 4, expected equal numbers"


NODE_CHANGES = list(node_changes())


@pytest.mark.parametrize(("node", "fields", "message"), NODE_CHANGES, ids=[f"{node} {fields}"[:60] for node, fields, _ in NODE_CHANGES])
def test_forged_nodes_are_refused(node: str, fields: dict[str, Any], message: str, load: Load) -> None:
    assert re.match(f"refused: {message}", load(changed(every_kind(), node, **fields)))


def second_image(program: ForgedProgram) -> None:
    program.nodes.insert(1, Forged(IMAGE, b"again", [], 0, (8, 3, 2), {"channels": 2}))


def no_image(program: ForgedProgram) -> None:
    program.nodes[0] = Forged(ADD, b"image", [0, 0], 0, (8, 3, 2), {"relu": 0})


def wide_concat(program: ForgedProgram) -> None:
    program["image"].own["channels"] = 2**20
    program.nodes[1:] = [Forged(CONCAT, b"wide", [0, 0], 0, (8, 3, 2))]
    program.weights.clear()


PROGRAM_CHANGES: dict[str, tuple[Callable[[ForgedProgram], object], str]] = {
    "magic": (lambda p: setattr(p, "magic", b"MQNQ"), "this is no program of the native engine"),
    "version": (lambda p: setattr(p, "version", 2), "the program has version 2, and this library reads version 1"),
    "axes": (lambda p: setattr(p, "axes", 4), "the program has 4 spatial axes, expected 2 or 3"),
    "no nodes": (lambda p: setattr(p, "count", 0), "the program has no nodes"),
    "many nodes": (lambda p: setattr(p, "count", 2**32 - 1), "the program ends too early: its head needs 4294967295 nodes"),
    "fewer nodes": (lambda p: setattr(p, "count", 10), "[0-9]+ bytes follow the last node"),
    "bytes after": (lambda p: setattr(p, "after", b"\0\0\0"), "3 bytes follow the last node"),
    "second image": (second_image, "again: a second image, expected one, as the first node"),
    "no image": (no_image, "image: the first node, expected the image"),
    "wide concat": (wide_concat, "wide: more than 1048576 channels joined"),
    "no weights": (lambda p: p.weights.clear(), "conv: weight array 0, and there are only 0"),
    "weight missing": (lambda p: p.weights.pop(), "head: weight array 2, and there are only 2"),
    "weight too many": (lambda p: p.weights.append(p.weights[0]), "4 weight arrays for 3 convolutions"),
    "weight too short": (lambda p: p.weights.__setitem__(1, p.weights[1].ravel()[1:]), "up: 95 weights, expected 96"),
    "a zero among signs": (lambda p: p.weights[2].__setitem__((1, 2), 0), "head: weight 0, expected -1 to 1 without 0 in 1 bits"),
    "two among signs": (lambda p: p.weights[2].__setitem__((1, 2), -2), "head: weight -2, expected -1 to 1 without 0 in 1 bits"),
}


@pytest.mark.parametrize("name", PROGRAM_CHANGES)
def test_forged_programs_are_refused(name: str, load: Load) -> None:
    program = every_kind()
    change, message = PROGRAM_CHANGES[name]
    change(program)
    assert re.match(f"refused: ({message})", load(program))


def test_counts_beyond_the_bytes_allocate_nothing(load: Load) -> None:
    # 2^31 names, inputs or channels would be gigabytes; the sanitizer would end the program.
    head = b"MQNP" + words(1, 2, 2) + words(0, 5) + b"image" + words(0, 0, 8, 0, 0, 1)
    node = words(7, 1) + b"j"
    assert load((head + node + words(2**32 - 1) + bytes(40), [])).startswith(
        "refused: the program ends too early: j needs 4294967295 inputs"
    )
    wide = changed(one_convolution(np.ones((1, 1, 1, 1))), "head", out_channels=2**20, bias=[], exponents=[])
    wide.weights = [np.ones(2**20, np.int8)]
    assert load(wide).startswith("refused: the program ends too early: head needs 1048576 numbers of 4 bytes, and 0 bytes are left")


def test_more_weights_than_64_bits_count(load: Load) -> None:
    program = one_convolution(np.ones((1, 1, 1, 1, 1)))
    program.axes = 3
    program["image"].own["channels"] = 2**20
    huge = changed(program, "head", out_channels=2**20, in_channels=2**20, kernel=[2**15 - 1] * 3)
    assert load(huge).startswith("refused: head: 1099511627776 kernels of 35181150961663 voxels: more than 64 bits count")


# --- sums of 32 bits -----------------------------------------------------------------------------------------------------


def accumulator_cases() -> Iterable[tuple[ForgedProgram, int]]:
    """Programs and the largest sum with the zero point still in the bytes, counted by hand: each at the limit and one beyond."""
    for more in (0, 1):
        least = TWO_31 - 1 + more
        # One weight of 2 and bytes up to 255; one of -3, bytes up to 255 and 128 more for the zero point.
        yield one_convolution(np.full((1, 1, 1, 1), 2), least - 2 * 255), least
        yield one_convolution(np.full((1, 1, 1, 1), -3), -(least - 3 * (255 + 128)), 128), least
        # 2 input channels, 3 taps, 4 bits; only the second output channel is large.
        weight = np.zeros((2, 2, 1, 3))
        weight[1] = 7
        yield one_convolution(weight, least - 42 * 15, bits=4), least
        # Transposed, 4 → 6 channels in 2 groups: an output channel's weights are those of its group's 2 inputs, 2 taps each.
        weight = np.zeros((4, 3, 2, 1))
        weight[:2, 1] = [[[1], [2]], [[4], [8]]]
        transposed = one_convolution(weight, least - 15 * 255, transposed=1, groups=2)
        yield changed(transposed, "head", out_channels=6, bias=[least - 15 * 255] * 6, exponents=[0] * 6), least


CASES = list(accumulator_cases())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_accumulators_at_the_limit(case: int, load: Load) -> None:
    program, bound = CASES[case]
    refusal = f"refused: accumulators of head reach {bound}, beyond 32 bits; use engine torch or reference\n"
    assert load(program) == ("ok 2\n" if bound < TWO_31 else refusal)


def test_lowest_bias_is_no_overflow(load: Load) -> None:
    assert "accumulators of head reach 2147483903" in load(one_convolution(np.ones((1, 1, 1, 1)), -TWO_31))


def test_averages_and_additions_at_the_limit(load: Load) -> None:
    # 255 · 2^23 is just below 2^31, and so is 255 · 2^23 + 255.
    image = Forged(IMAGE, b"image", [], 0, (8, 0, 0), {"channels": 1})
    for power, expected in ((23, "ok"), (24, "refused: sums of mean reach 4278190080, beyond 32 bits")):
        mean = Forged(AVG_POOL, b"mean", [0], 0, (8, 0, 0), {"kernel": [2**14, 2 ** (power - 14)], "stride": [1, 1]})
        assert load(ForgedProgram([image, mean], [])).startswith(expected)
    bounds = {
        23: "ok",
        24: f"refused: sums of sum reach {255 * 2**24 + 255}",
        40: "refused: sums of sum reach",
        200: "refused: sums of sum",
    }
    for apart, expected in bounds.items():
        first, second = apart // 2, apart // 2 - apart
        scaled = Forged(AVG_POOL, b"mean", [0], 0, (8, 0, second), {"kernel": [1, 1], "stride": [1, 1]})
        fine = dataclasses.replace(image, format=(8, 0, first))
        for order in ([0, 1], [1, 0]):
            assert load(ForgedProgram([fine, scaled, Forged(ADD, b"sum", order, 0, (8, 0, 0), {"relu": 0})], [])).startswith(expected)


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
    blocks = [encode_program(program) for program in PROGRAMS.values()]

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
