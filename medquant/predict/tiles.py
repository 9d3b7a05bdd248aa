"""Images larger than memory allows are shown to the network in tiles, whose middles are what it would say of the whole.

Each voxel is decided by one tile, whose margin covers all that the network sees of the voxel's surroundings, and which lies on
the grid of the network's strides: so the mask is the mask of the whole image, voxel for voxel, and nothing is blended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medquant.errors import UsageError
from medquant.predict.receptive import Reach, find_reach
from medquant.predict.working_set import working_bytes
from medquant.quant.program import IntegerProgram

Image = TypeVar("Image", bound=np.generic)
Number = TypeVar("Number", bound=np.generic)

_LEAST_SIDE = 32
"""A network that sees less than this of an image says nothing about it."""


@dataclass(frozen=True)
class TilePlan:
    """How images of one size are run.

    Args:
        core: what is kept of a tile, along each spatial axis; the whole image where no tiles are needed.
        margin: what the network sees around the core, where the image has it.
        at_once: images run together.
        exact: whether the margin covers the network's receptive field, so that the mask is that of the whole image.
    """

    core: tuple[int, ...]
    margin: tuple[int, ...]
    at_once: int
    exact: bool = True

    def tiles(self, size: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """For each tile of an image: what is shown, what of the shown is kept, and where that goes."""
        largest = _shown(size, self.core, self.margin)
        for starts in product(*(range(0, length, core) for length, core in zip(size, self.core, strict=True))):
            stops = [min(start + core, length) for start, core, length in zip(starts, self.core, size, strict=True)]
            # Pushed inside, so that all tiles are of one shape: engines prepare for each shape anew.
            first = [
                min(max(0, start - margin), length - shown)
                for start, margin, length, shown in zip(starts, self.margin, size, largest, strict=True)
            ]
            shown = tuple(slice(a, a + length) for a, length in zip(first, largest, strict=True))
            kept = tuple(slice(start - a, stop - a) for start, stop, a in zip(starts, stops, first, strict=True))
            yield shown, kept, tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))


def plan_tiles(
    program: IntegerProgram,
    size_multiple: int,
    size: Sequence[int],
    engine: str,
    room_bytes: int,
    most_at_once: int,
    is_asked: bool,
    besides_bytes: int = 0,
) -> TilePlan:
    """The largest tiles that fit.

    Args:
        program: the network.
        size_multiple: what image sides must be multiples of.
        size: the image's spatial axes, multiples of it.
        engine: name of the engine.
        room_bytes: what running the network may take.
        most_at_once: images run together at most, where they fit.
        is_asked: whether the room must be kept: where the network's receptive field does not fit, margins are cut, which gives
            another mask, or the image is refused. Otherwise the smallest exact tiles are taken, whatever they need.
        besides_bytes: what of the amount the user gave is taken by other things than running the network; for the message.

    Raises:
        UsageError: not even the smallest tile fits.
    """
    channels = program.image.channels

    def takes(shown: Sequence[int], count: int = 1) -> int:
        return working_bytes(program, (count, channels, *shown), engine)

    whole = tuple(size)
    if takes(whole) <= room_bytes:
        fitting = [count for count in range(2, most_at_once + 1) if takes(whole, count) <= room_bytes]
        return TilePlan(whole, (0,) * len(whole), max(fitting, default=1))
    reach = find_reach(program, size_multiple)
    found = _largest(whole, reach, takes, room_bytes)
    if found is not None:
        return TilePlan(found, reach.margin, 1)
    smallest = tuple(min(reach.step * math.ceil(each / reach.step), length) for each, length in zip(reach.margin, whole, strict=True))
    if not is_asked:
        return TilePlan(smallest, reach.margin, 1)
    return _narrower(whole, reach, takes, room_bytes, besides_bytes)


def _narrower(whole: tuple[int, ...], reach: Reach, takes: Callable[[Sequence[int]], int], room_bytes: int, besides_bytes: int) -> TilePlan:
    """Tiles whose margins are cut to half, to a quarter .. of what the network sees, or the refusal, which says what would be enough."""
    least = min(takes(_shown(whole, core, reach.margin)) for core in _cores(whole, reach.step))
    for halvings in (1, 2, 3, 4):
        margin = tuple(reach.step * (each // reach.step >> halvings) for each in reach.margin)
        wide_enough = [core for core in _cores(whole, reach.step) if min(_shown(whole, core, margin)) >= min(_LEAST_SIDE, *whole)]
        costs = [takes(_shown(whole, core, margin)) for core in wide_enough]
        fitting = next((core for core, cost in zip(wide_enough, costs, strict=True) if cost <= room_bytes), None)
        if fitting is not None:
            return TilePlan(fitting, margin, 1, exact=False)
        least = min(least, *costs)
    # What mask, slices and weights take was known before; all of it together is what the user can give.
    needed = math.ceil((least + besides_bytes) / 1e6)
    raise UsageError(
        f"--max-memory {(room_bytes + besides_bytes) / 1e6:.0f}MB is too little: this model needs at least {needed} MB for this scan "
        f"({math.ceil(least / 1e6)} MB for the network's smallest tile, the rest for weights, slices and mask); "
        f"give --max-memory {needed}MB or more"
    )


def _largest(size: tuple[int, ...], reach: Reach, takes: Callable[[Sequence[int]], int], room_bytes: int) -> tuple[int, ...] | None:
    """The core that costs least in all: the first that fits."""
    return next((core for core in _cores(size, reach.step) if takes(_shown(size, core, reach.margin)) <= room_bytes), None)


def _cores(size: tuple[int, ...], step: int) -> Iterator[tuple[int, ...]]:
    """Cores from the whole image on: the longest axis is cut in ever more parts, down to the step."""
    parts = [1] * len(size)
    while True:
        core = tuple(step * math.ceil(length / step / count) for length, count in zip(size, parts, strict=True))
        yield core
        longest = max((axis for axis in range(len(size)) if core[axis] > step), key=lambda axis: core[axis], default=None)
        if longest is None:
            return
        parts[longest] += 1


def _shown(size: Sequence[int], core: Sequence[int], margin: Sequence[int]) -> tuple[int, ...]:
    """Size of the largest tile."""
    return tuple(min(length, kept + 2 * around) for length, kept, around in zip(size, core, margin, strict=True))


def run_tiles(plan: TilePlan, images: NDArray[Image], run: Callable[[NDArray[Image]], NDArray[Number]]) -> NDArray[Number]:
    """Run images (N, C, *S) tile by tile; what ``run`` makes of a tile, (N, ..., *T), is put together to (N, ..., *S)."""
    size = images.shape[2:]
    whole: NDArray[Number] | None = None
    for shown, kept, place in plan.tiles(size):
        # One spatial layout for all engines, and no larger than the tile.
        found = run(np.ascontiguousarray(images[(slice(None), slice(None), *shown)]))
        if shown == tuple(slice(0, length) for length in size):
            return found
        before = (slice(None),) * (found.ndim - len(size))
        if whole is None:
            whole = np.empty((*found.shape[: len(before)], *size), dtype=found.dtype)
        whole[(*before, *place)] = found[(*before, *kept)]
    if whole is None:
        raise UsageError(f"an image of shape {images.shape} has no voxel to predict")
    return whole
