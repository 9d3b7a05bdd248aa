"""The mask of one prepared case, by whatever predicts: a slab of slices at a time, put to its place in an 8-bit canvas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.volume import LabelArray
from medquant.predict.blocks import predict_layers
from medquant.predict.predictors import MaskPredictor

SLICES_AT_ONCE = 16
VALUES_AT_ONCE = 2**20


def predict_window(case: PreparedCase, predictor: MaskPredictor) -> LabelArray:
    """The predicted mask of a case's region, (I, J, K); networks that take volumes see it in overlapping blocks."""
    size = case.window.shape
    mask = np.zeros(size[::-1], dtype=np.uint8).transpose(2, 1, 0)
    for first, slices in predict_slabs(case, predictor):
        mask[:, :, first : first + slices.shape[2]] = slices
    return mask


def predict_case(case: PreparedCase, predictor: MaskPredictor) -> LabelArray:
    """The predicted mask of a case on the grid of its file, (I, J, K), C-contiguous."""
    return np.ascontiguousarray(predict_canvas(case, predictor))


def predict_canvas(case: PreparedCase, predictor: MaskPredictor, progress: Callable[[int, int], None] | None = None) -> LabelArray:
    """The predicted mask of a case on the grid of its file, (I, J, K), slices contiguous: the only array of that size.

    Args:
        case: what is predicted.
        predictor: what predicts.
        progress: told how many slices of how many are done.
    """
    canvas = case.canvas()
    for first, slices in predict_slabs(case, predictor):
        case.place(canvas, first, slices)
        if progress is not None:
            progress(first + slices.shape[2], case.slices)
    return canvas


def predict_slabs(case: PreparedCase, predictor: MaskPredictor) -> Iterator[tuple[int, LabelArray]]:
    """The predicted mask of a case's region from its first slice to its last: number of a slab's first slice, and (I, J, N)."""
    if predictor.dimensions == 3:
        yield from predict_layers(case, predictor)
        return
    values = math.prod(case.window.shape[:2]) * len(case.channels)
    at_once = max(1, min(SLICES_AT_ONCE, VALUES_AT_ONCE // max(1, values)))
    first = 0
    for images in case.images(at_once):
        yield first, predictor(images).transpose(1, 2, 0)
        first += len(images)
