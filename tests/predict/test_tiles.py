"""Images in tiles give the mask of the whole image, voxel for voxel. Expected: the same network on the whole image at once."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from small_models import INNER, Builder, unet

from medquant.deploy.decide import decide
from medquant.deploy.engines import open_engine
from medquant.errors import ConfigError, UsageError
from medquant.predict.heads import split_program
from medquant.predict.predictors import ProgramPredictor
from medquant.predict.receptive import find_reach
from medquant.predict.tiles import TilePlan, plan_tiles, run_tiles
from medquant.predict.working_set import parse_bytes, program_bytes, working_bytes
from medquant.quant.program import IntegerProgram


def strided() -> IntegerProgram:
    """Strides, dilation, groups, odd kernels, transposed convolutions and an average pool in place of the usual parts."""
    build = Builder(2)
    first = build.convolution("first", "image", 4, kernel=5, dilation=(2, 2), padding=(4, 4))
    down = build.convolution("down", first, 8, stride=(2, 2), groups=2)
    mean = build.average("mean", down)
    deep = build.convolution("deep", mean, 8, kernel=1)
    wide = build.convolution("wide", deep, 8, transposed=True, stride=(2, 2), output_padding=(1, 1))
    joined = build.join("join", wide, down)
    high = build.convolution("high", joined, 4, transposed=True, kernel=4, stride=(2, 2), padding=(1, 1))
    build.convolution("head", build.join("last", high, first), 3, None)
    return build.program()


def padded_pool() -> IntegerProgram:
    """Max pooling over overlapping windows with padding, up-sampling by copies."""
    build = Builder()
    first = build.convolution("first", "image", 4)
    pooled = build.convolution("deep", build.pool("pool", first, kernel=3, stride=2, padding=1), 6)
    build.convolution("head", build.join("join", build.up("up", pooled, "nearest"), first), 2, None)
    return build.program()


NETWORKS = {
    "one output": (unet(), 4),
    "five classes": (unet(5, width=3, seed=1), 4),
    "two channels, three levels": (unet(3, channels=2, width=2, levels=3, seed=2), 8),
    "nearest": (unet(2, up="nearest", seed=3), 4),
    "strides": (strided(), 4),
    "padded pool": (padded_pool(), 2),
}


def images(program: IntegerProgram, size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, program.image.channels, *size)).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(61, 75), *(pytest.param(each, marks=pytest.mark.slow) for each in ((128, 40), (37, 150), (97, 201)))])
def test_tiles_of_every_core_give_the_mask_of_the_whole(name: str, size: tuple[int, int]) -> None:
    program, multiple = NETWORKS[name]
    whole, tiled = (ProgramPredictor(program, multiple, "reference") for _ in range(2))
    x = images(program, size)
    expected = whole(x)
    assert len(np.unique(expected)) > 1
    padded = tuple(length + -length % multiple for length in size)
    reach = find_reach(program, multiple)
    for cores in product((reach.step, 3 * reach.step), (2 * reach.step,)):
        tiled._plans = {padded: TilePlan(cores, reach.margin, 1)}
        np.testing.assert_array_equal(tiled(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_receptive_field_is_no_larger_and_no_smaller_than_it_is(name: str) -> None:
    # By trial: change one pixel, and see how far outputs change; no farther than the margin, and nearly as far for some pixel.
    program, multiple = NETWORKS[name]
    reach = find_reach(program, multiple)
    margin = reach.margin[0]
    side = 2 * (margin + 2 * reach.step) + reach.step
    side += -side % reach.step
    engine = open_engine("reference", program)
    base = np.random.default_rng(0).integers(0, 256, (1, program.image.channels, side, side)).astype(np.uint8)
    before = engine.run(base)
    farthest = 0
    middle = side // 2
    for shift in range(reach.step):
        changed = base.copy()
        changed[:, :, middle + shift, middle] = 255 - changed[:, :, middle + shift, middle]
        rows = np.flatnonzero((engine.run(changed) != before).any(axis=(0, 1, 3)))
        farthest = max(farthest, *(abs(int(row) - middle - shift) for row in rows))
    assert farthest <= margin
    assert farthest > 0


def test_the_margin_of_a_small_network_counted_by_hand() -> None:
    # Level 0: 1; level 1: (1 + linear 1) · 2; then 1 + 1 at level 0. Counted outwards from the output pixel:
    # head 1, dec 1, up: half a pixel at level 1 and 1 more, bottom 1: at most 3 pixels of level 1 in all, pool: 2, enc 1.
    program = unet(levels=1)
    reach = find_reach(program, 2)
    assert reach.step == 2
    # [0, 1] → head, dec: [-2, 3] → level 1: [-1 - 1, 1 + 1] → bottom: [-3, 3] → pool: [-6, 7] → enc: [-7, 8]: 7, a multiple of 2.
    assert reach.margin == (8, 8)


def test_a_margin_below_the_receptive_field_gives_another_mask() -> None:
    program, multiple = NETWORKS["one output"]
    reach = find_reach(program, multiple)
    x = images(program, (96, 96))
    narrow = ProgramPredictor(program, multiple, "reference")
    expected = narrow(x)
    narrow._plans = {(96, 96): TilePlan((16, 16), (0, 0), 1, exact=False)}
    assert (narrow(x) != expected).any()
    assert not narrow.is_exact
    assert min(reach.margin) > 0


def test_volumes_are_tiled_too() -> None:
    program = unet(2, axes=3, width=2, levels=1)
    x = np.random.default_rng(0).normal(size=(1, 1, 30, 21, 18)).astype(np.float32)
    whole, tiled = (ProgramPredictor(program, 2, "reference") for _ in range(2))
    tiled._plans = {(30, 22, 18): TilePlan((8, 10, 6), find_reach(program, 2).margin, 1)}
    np.testing.assert_array_equal(tiled(x), whole(x))


def test_an_output_of_another_size_is_refused() -> None:
    build = Builder()
    build.convolution("head", build.pool("pool", "image"), 1, None)
    with pytest.raises(ConfigError, match="not as large as its image"):
        find_reach(build.program(), 2)


# --- what fits --------------------------------------------------------------------------------------------------------


def test_tiles_are_cut_until_they_fit() -> None:
    program = unet(width=8)
    whole = working_bytes(program, (1, 1, 256, 256), "torch")
    reach = find_reach(program, 4)
    least = working_bytes(program, (1, 1, *(4 + 2 * each for each in reach.margin)), "torch")

    def plan(room: float, is_asked: bool = True) -> TilePlan:
        return plan_tiles(program, 4, (256, 256), "torch", int(room), 8, is_asked)

    assert plan(whole) == TilePlan((256, 256), (0, 0), 1)
    assert plan(3.1 * whole).at_once == 3
    assert plan(100 * whole).at_once == 8
    last = (256, 256)
    for room in np.geomspace(whole - 1, least, 8):
        found = plan(room)
        assert found.exact
        assert found.margin == reach.margin
        shown = [min(256, core + 2 * margin) for core, margin in zip(found.core, found.margin, strict=True)]
        assert working_bytes(program, (1, 1, *shown), "torch") <= room
        assert np.prod(found.core) <= np.prod(last)
        last = found.core
    narrow = plan(0.6 * least)
    assert not narrow.exact
    assert narrow.margin < reach.margin
    # By default the mask matters more than the aim.
    assert plan(1, is_asked=False).exact
    with pytest.raises(UsageError, match=r"--max-memory 0MB is too little: this model needs at least \d+ MB for this scan") as refused:
        plan(10_000)
    # What is advised is enough.
    plan(int(re.search(r"give --max-memory (\d+)MB", str(refused.value))[1]) * 10**6)  # type: ignore[index]
    # A byte less than the smallest that works is refused with the amount that works: found by halving, without the formula.
    refused_at, works_at = 10_000, 10**6
    while works_at - refused_at > 1:
        middle = (refused_at + works_at) // 2
        try:
            plan(middle)
            works_at = middle
        except UsageError:
            refused_at = middle
    besides = 10**6 - works_at % 10**6
    with pytest.raises(UsageError, match=f"give --max-memory {(works_at + besides) // 10**6}MB or more"):
        plan_tiles(program, 4, (256, 256), "torch", refused_at, 8, True, besides)


def test_a_bounded_predictor_gives_the_same_mask_and_says_so() -> None:
    program = unet(5, width=4)
    x = images(program, (150, 133))
    predictor = ProgramPredictor(program, 4, "reference")
    expected = predictor(x)
    predictor.bound(working_bytes(program, (1, 1, 152, 136), "reference") // 2)
    np.testing.assert_array_equal(predictor(x), expected)
    assert predictor.plan((152, 136)).core != (152, 136)
    assert predictor.is_exact


def test_more_channels_and_pixels_take_more() -> None:
    sizes = [working_bytes(unet(width=width), (1, 1, side, side), "torch") for width, side in ((4, 64), (8, 64), (8, 128))]
    assert sizes == sorted(set(sizes))
    # Four times the pixels, four times the bytes: nothing else enters.
    assert sizes[2] == 4 * sizes[1]
    assert program_bytes(unet(width=4)) == sum(node.weight.size for node in unet(width=4).convolutions) * 5


@pytest.mark.parametrize(
    ("text", "size"),
    [("700MB", 700 * 10**6), ("1GiB", 2**30), ("1.5 gb", 1_500_000_000), ("900000", 900_000), ("64KiB", 65536), ("2M", 2 * 10**6)],
)
def test_sizes_as_people_type_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-5MB", "0", "5TB", "1e9", "0.0000001K", "MB", "9" * 30])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size of memory, expected a number and a unit such as 700MB"):
        parse_bytes(text)


# --- the head apart ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [5, 9, 20])
@pytest.mark.parametrize("size", [(16, 16), (52, 300), (700, 40)])
def test_a_head_run_apart_decides_alike(outputs: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.predict.heads._OUTPUTS_AT_ONCE", 30_000)
    program = unet(outputs, width=4, seed=outputs)
    split = split_program(program, "reference")
    assert split is not None
    image = np.random.default_rng(1).integers(0, 256, (2, 1, *size)).astype(np.uint8)
    expected = decide(open_engine("reference", program).run(image), program)
    np.testing.assert_array_equal(split.classes(image), expected)
    assert len(np.unique(expected)) > 2


def test_a_head_of_a_signed_tensor_is_padded_with_real_zero() -> None:
    # Its input's zero is 7, not 0; strips and borders show the difference.
    build = Builder()
    from medquant.quant.formats import TensorFormat

    inner = build.convolution("inner", "image", 2, TensorFormat(5, 7, 3))
    build.convolution("head", inner, 4, None)
    program = build.program()
    split = split_program(program, "reference")
    assert split is not None
    image = np.random.default_rng(1).integers(0, 256, (1, 1, 20, 30)).astype(np.uint8)
    np.testing.assert_array_equal(split.classes(image), decide(open_engine("reference", program).run(image), program))


@pytest.mark.parametrize("program", [unet(1), unet(4, width=4), strided()])
def test_where_nothing_is_saved_nothing_is_split(program: IntegerProgram) -> None:
    assert split_program(program, "reference") is None


def test_engines_without_exactness_for_a_part_run_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from medquant.errors import EngineMismatchError

    def refuse(*_: Any) -> Any:
        raise EngineMismatchError("no")

    monkeypatch.setattr("medquant.predict.heads.open_engine", refuse)
    assert split_program(unet(20), "reference") is None


def test_every_tile_has_one_shape() -> None:
    plan = TilePlan((16, 20), (8, 4), 1)
    seen: set[tuple[int, ...]] = set()

    def run(tile: np.ndarray) -> np.ndarray:
        seen.add(tile.shape)
        return tile[:, 0]

    x = np.arange(100 * 70).reshape(1, 1, 100, 70)
    np.testing.assert_array_equal(run_tiles(plan, x, run), x[:, 0])
    assert seen == {(1, 1, 32, 28)}
    assert INNER.bits == 6
