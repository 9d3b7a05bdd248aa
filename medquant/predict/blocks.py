"""Networks that take volumes see a region in overlapping blocks, whose margins are thrown away: memory does not grow with the scan."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.volume import LabelArray
from medquant.predict.predictors import MaskPredictor

CORE = (128, 128, 32)
"""Voxels of a block that are kept, along I, J and K."""

MARGIN = (16, 16, 8)
"""Voxels around the core that the network sees as well, where the region has them."""


def predict_blocks(case: PreparedCase, predictor: MaskPredictor) -> LabelArray:
    """The predicted mask of a case's region, (I, J, K)."""
    size = case.window.shape
    mask = np.zeros(size[::-1], dtype=np.uint8).transpose(2, 1, 0)
    for first, slices in predict_layers(case, predictor):
        mask[:, :, first : first + slices.shape[2]] = slices
    return mask


def predict_layers(case: PreparedCase, predictor: MaskPredictor) -> Iterator[tuple[int, LabelArray]]:
    """The predicted mask of a case's region, one layer of blocks after the other: number of its first slice, and (I, J, N)."""
    size = case.window.shape
    for k in range(0, size[2], CORE[2]):
        first, last = _with_margin(k, size, 2)
        # One layer of blocks is held at a time.
        layer = np.stack([case.image(each) for each in range(first, last)], axis=3)
        kept = min(CORE[2], size[2] - k)
        mask = np.zeros((kept, *size[1::-1]), dtype=np.uint8).transpose(2, 1, 0)
        for i, j in product(range(0, size[0], CORE[0]), range(0, size[1], CORE[1])):
            (top, bottom), (left, right) = _with_margin(i, size, 0), _with_margin(j, size, 1)
            found = predictor(layer[None, :, top:bottom, left:right])[0]
            inside = tuple(slice(at - start, at - start + CORE[axis]) for axis, (at, start) in enumerate(((i, top), (j, left), (k, first))))
            mask[i : i + CORE[0], j : j + CORE[1]] = found[inside]
        yield k, mask


def shown_at_once(size: tuple[int, int, int], size_multiple: int, dimensions: int) -> tuple[int, ...]:
    """Size of what a network is given of a region at a time: a whole slice, or a block with its margins; padded as it is run."""
    shown = [min(length, CORE[axis] + 2 * MARGIN[axis]) for axis, length in enumerate(size)] if dimensions == 3 else list(size[:2])
    return tuple(length + -length % size_multiple for length in shown)


def _with_margin(start: int, size: tuple[int, int, int], axis: int) -> tuple[int, int]:
    return max(0, start - MARGIN[axis]), min(size[axis], start + CORE[axis] + MARGIN[axis])
