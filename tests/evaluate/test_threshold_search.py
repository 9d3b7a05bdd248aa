"""A threshold is chosen on one part and applied to another; scores by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from medquant.data.datasets.isbi_em import INFO
from medquant.data.datasets.phantom import INFO as PHANTOM
from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, PreparedCase, prepare_case
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
from medquant.errors import InputError
from medquant.evaluate.threshold_search import search_thresholds
from medquant.predict.float_predictor import FloatPredictor


class _Logit(nn.Module):
    """Takes the image for a probability."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs, self.unused = outputs, nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.logit(images.clamp(0.001, 0.999)).expand(-1, self.outputs, -1, -1)


def _case(name: str, wall: float) -> PreparedCase:
    """Two cells of probability 0.95 with a membrane of probability ``wall`` between them, 3 pixels wide."""
    image = np.full((24, 24, 1), 0.95, dtype=np.float32)
    image[10:13] = wall
    mask = np.ones((24, 24, 1), dtype=np.uint8)
    mask[10:13] = 0
    case = Case(name, name, "", Volume(image, np.eye(4), False), Volume(mask, np.eye(4), False), "made")
    return prepare_case(case, Preparation(Normalisation("range", 0.0, 1.0)), ArrayCache(None))


def test_the_threshold_of_the_watched_part_is_applied() -> None:
    # A membrane of 0.65 is found from 0.7 on, the first step above it; at the network's own 0.5 both cells are one.
    predictor = FloatPredictor(_Logit(), 1)
    found = search_thresholds([_case("watched", 0.65)], [_case("tested", 0.68)], INFO, predictor)
    assert found is not None
    assert found["v_rand"] == {"probability": 0.7, "mean": pytest.approx(1.0, abs=0.05)}
    # A tested membrane above the chosen threshold stays hidden: the choice knows nothing of the tested part.
    hidden = search_thresholds([_case("watched", 0.65)], [_case("tested", 0.85)], INFO, predictor)
    assert hidden is not None
    one_cell = hidden["v_rand"]["mean"]  # type: ignore[index]
    # Two cells of 240 and 264 pixels taken for one: sum p² / (½ sum s² + ½ sum t²), all 504 counted pixels in one segment.
    true, joined = 240**2 + 264**2, 504**2
    assert one_cell == pytest.approx(true / (true / 2 + joined / 2), abs=1e-6)


def test_nothing_to_search() -> None:
    case = _case("a", 0.6)
    assert search_thresholds([], [case], INFO, FloatPredictor(_Logit(), 1)) is None
    assert search_thresholds([case], [case], PHANTOM, FloatPredictor(_Logit(), 1)) is None


def test_levels_need_one_output() -> None:
    images = np.full((1, 1, 4, 6), 0.75, dtype=np.float32)
    levels = FloatPredictor(_Logit(), 4).levels(images)
    np.testing.assert_allclose(levels, np.full((1, 4, 6), math.log(3)), rtol=1e-6)
    with pytest.raises(InputError, match="3 outputs"):
        FloatPredictor(_Logit(3), 4).levels(images)
