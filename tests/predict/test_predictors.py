"""From slices of any size to masks: padding and cutting by hand, programs on every engine alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medquant.deploy.engines import ENGINES
from medquant.deploy.self_test import small_program
from medquant.errors import UsageError
from medquant.predict import predictors as predictors_module
from medquant.predict.float_predictor import FloatPredictor
from medquant.predict.predictors import MaskPredictor, ProgramPredictor

ODD_SIZES = [(1, 1), (3, 5), (4, 4), (7, 16), (33, 31)]


def _images(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 1, *size)).astype(np.float32)


class _Copy(nn.Module):
    """Logits that are the image itself, or the image and its negative; notes the sizes it was given."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.scale * x if self.outputs == 1 else torch.cat([-x, self.scale * x], dim=1)


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_network_that_copies_gives_back_the_sign_of_each_pixel(size: tuple[int, int], outputs: int) -> None:
    network = _Copy(outputs)
    images = _images(3, size)
    mask = FloatPredictor(network, size_multiple=4)(images)
    np.testing.assert_array_equal(mask, images[:, 0] > 0)
    assert mask.dtype == np.uint8
    for seen in network.seen:
        assert all(length % 4 == 0 and 0 <= length - wanted < 4 for length, wanted in zip(seen.shape[2:], size, strict=True))


def test_images_are_continued_by_their_edge() -> None:
    network = _Copy(1)
    FloatPredictor(network, size_multiple=4)(np.array([[[[1.0, 2.0, 3.0]]]], dtype=np.float32))
    np.testing.assert_array_equal(network.seen[0][0, 0].numpy(), np.tile([1.0, 2.0, 3.0, 3.0], (4, 1)))


def test_many_slices_are_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = _Copy(1), _images(7, (8, 8))
    monkeypatch.setattr(predictors_module, "_PIXELS_AT_ONCE", 3 * 64 + 63)
    mask = FloatPredictor(network, size_multiple=8)(images)
    assert [len(seen) for seen in network.seen] == [3, 3, 1]
    np.testing.assert_array_equal(mask, images[:, 0] > 0)
    # A slice above the limit is still run, alone.
    monkeypatch.setattr(predictors_module, "_PIXELS_AT_ONCE", 10)
    assert len(FloatPredictor(network, size_multiple=8)(images)) == 7


def test_zero_belongs_to_the_lower_class() -> None:
    nothing = np.zeros((1, 1, 4, 4), dtype=np.float32)
    for outputs in (1, 2):
        assert not FloatPredictor(_Copy(outputs), size_multiple=4)(nothing).any()


def test_the_network_keeps_its_mode_and_is_run_in_evaluation() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.999))
    nn.init.ones_(network[0].weight)
    nn.init.ones_(network[0].bias)
    for training in (True, False):
        network.train(training)
        assert FloatPredictor(network, size_multiple=1)(np.ones((1, 1, 4, 4), dtype=np.float32)).all()
        assert network.training is network[1].training is training
    assert network[0].weight.grad is None


@pytest.mark.parametrize("size", ODD_SIZES)
def test_a_program_gives_one_mask_on_every_engine(size: tuple[int, int]) -> None:
    images = _images(3, size)
    masks = [ProgramPredictor(small_program(), 2, engine)(images) for engine in ("reference", "torch", "auto")]
    assert masks[0].shape == (3, *size)
    np.testing.assert_array_equal(masks[1], masks[0])
    np.testing.assert_array_equal(masks[2], masks[0])


def test_a_program_sees_padding_the_way_a_float_network_does() -> None:
    images = _images(1, (7, 5))
    padded = np.pad(images, [(0, 0), (0, 0), (0, 1), (0, 1)], mode="edge")
    predictor = ProgramPredictor(small_program(), 2, "reference")
    np.testing.assert_array_equal(predictor(images), predictor(padded)[:, :7, :5])
    assert len(np.unique(predictor(_images(2, (32, 32))))) == 2


def test_the_name_is_that_of_the_engine_and_unknown_ones_are_refused() -> None:
    names = {engine: ProgramPredictor(small_program(), 2, engine).name for engine in ("reference", "torch", "auto")}
    best = max((each for each in ENGINES.values() if each.info.exact and each.unavailable() is None), key=lambda each: each.priority())
    assert names == {"reference": "reference", "torch": "torch", "auto": best.info.name}
    assert FloatPredictor(_Copy(1), 1).name == "float"
    with pytest.raises(UsageError, match="unknown engine 'tpu'"):
        ProgramPredictor(small_program(), 2, "tpu")


def test_a_predictor_without_prediction_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="_predict"):
        MaskPredictor(2)  # type: ignore[abstract]
