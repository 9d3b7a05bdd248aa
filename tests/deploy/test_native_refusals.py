"""What the native engine's loader refuses: each check against a program forged to meet it, limits counted by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from native_forging import ADD, AVG_POOL, CONCAT, IMAGE, Forged, ForgedProgram, changed, every_kind, one_convolution, words
from native_loader import Load

TWO_31 = 2**31


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
