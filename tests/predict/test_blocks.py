"""Networks that take volumes see blocks: every voxel once, with its surroundings."""

from __future__ import annotations

import numpy as np
import pytest

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, PreparedCase, Window, prepare_case
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, FloatArray, LabelArray, Volume
from medquant.predict import blocks
from medquant.predict.blocks import predict_blocks, shown_at_once
from medquant.predict.predictors import MaskPredictor


class _Neighbours(MaskPredictor):
    """1 where the sum over the 3×3×3 neighbourhood is above a limit: wrong at a block's edge that has no margin."""

    name = "neighbours"

    def __init__(self) -> None:
        super().__init__(size_multiple=4, dimensions=3)
        self.shapes: list[tuple[int, ...]] = []

    def _predict(self, images: FloatArray) -> LabelArray:
        from scipy.ndimage import uniform_filter

        self.shapes.append(images.shape)
        return np.stack([uniform_filter(image[0], 3, mode="nearest") > 0.5 for image in images]).astype(np.uint8)

    def _levels(self, images: FloatArray) -> FloatArray:
        return images


def _case(shape: tuple[int, int, int]) -> PreparedCase:
    image = np.random.default_rng(1).random(shape).astype(np.float32)
    case = Case("a", "a", "", Volume(image, np.eye(4)), None, "made")
    return prepare_case(case, Preparation(Normalisation("range", 0.0, 1.0)), ArrayCache(None))


@pytest.mark.parametrize("shape", [(21, 17, 13), (8, 8, 8), (3, 30, 9)])
def test_blocks_give_what_the_whole_gives(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CORE", (8, 8, 4))
    monkeypatch.setattr(blocks, "MARGIN", (2, 2, 2))
    case, predictor = _case(shape), _Neighbours()
    image = np.stack([case.image(k)[0] for k in range(shape[2])], axis=2)
    np.testing.assert_array_equal(predict_blocks(case, predictor), predictor(image[None, None])[0])
    assert max(shown[2] for shown in predictor.shapes[:-1]) <= 12
    cut = case.with_window(Window((1, 2, 3), (shape[0] - 1, 8, 7)))
    assert predict_blocks(cut, predictor).shape == (shape[0] - 2, 6, 4)


def test_what_is_shown_at_once() -> None:
    assert shown_at_once((30, 70, 5), 8, 2) == (32, 72)
    # 128 + 2·16 and 32 + 2·8 voxels where the region is large enough.
    assert shown_at_once((512, 100, 400), 8, 3) == (160, 104, 48)
