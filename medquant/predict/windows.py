"""The mask of one prepared case, by whatever predicts."""

from __future__ import annotations

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.volume import LabelArray
from medquant.predict.blocks import predict_blocks
from medquant.predict.predictors import MaskPredictor

SLICES_AT_ONCE = 16


def predict_window(case: PreparedCase, predictor: MaskPredictor) -> LabelArray:
    """The predicted mask of a case's region, (I, J, K); networks that take volumes see it in overlapping blocks."""
    if predictor.dimensions == 3:
        return predict_blocks(case, predictor)
    masks = [predictor(images) for images in case.images(SLICES_AT_ONCE)]
    return np.concatenate(masks).transpose(1, 2, 0)


def predict_case(case: PreparedCase, predictor: MaskPredictor) -> LabelArray:
    """The predicted mask of a case on the grid of its file, (I, J, K)."""
    return case.restore(predict_window(case, predictor))
