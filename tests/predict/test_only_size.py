"""A network of one size on images of other sizes: what each voxel is decided by, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medquant.predict.float_predictor import FloatPredictor


class _Strict(nn.Module):
    """Passes images of one size through; anything else is a fault. ``seen`` counts the windows."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.size, self.seen = size, 0
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        assert tuple(x.shape[2:]) == self.size
        self.seen += 1
        return x


class _Place(_Strict):
    """How far a voxel is from the start of its window, along the first axis."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        place = torch.arange(self.size[0], dtype=x.dtype).reshape(-1, *[1] * (len(self.size) - 1))
        return place.expand_as(x)


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (20, 24), (5, 30)])
def test_windows_give_every_voxel_once(size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).normal(size=(3, 1, *size)).astype(np.float32)
    levels = FloatPredictor(_Strict(8, 8), 4, 2, (8, 8)).levels(images)
    assert np.array_equal(levels, images[:, 0])


def test_volumes_are_seen_in_windows_too() -> None:
    images = np.random.default_rng(1).normal(size=(1, 1, 12, 8, 9)).astype(np.float32)
    assert np.array_equal(FloatPredictor(_Strict(8, 8, 4), 1, 3, (8, 8, 4)).levels(images), images[:, 0])


def test_each_voxel_is_decided_by_the_window_whose_middle_is_nearest() -> None:
    network = _Place(8, 4)
    levels = FloatPredictor(network, 1, 2, (8, 4)).levels(np.zeros((1, 1, 14, 4), dtype=np.float32))
    # Windows start at 0, 4 and 6; they change over in the middle of what two share, at 6 and at 9.
    assert levels[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 3, 4, 5, 6, 7]
    assert network.seen == 3
