"""The loss against sums done by hand on four pixels."""

from __future__ import annotations

import math
from math import log

import pytest
import torch

from medquant.errors import ConfigError
from medquant.train.losses import distillation_loss, segmentation_loss


def test_one_output_is_binary_cross_entropy_and_dice_of_both_signs() -> None:
    # Probabilities 1/2, 3/4, 1/4, 1/2; only the first pixel is foreground.
    logits = torch.tensor([[[[0.0, log(3)], [-log(3), 0.0]]]])
    labels = torch.tensor([[[1, 0], [0, 0]]])
    entropy = (log(2) + log(4) + log(4 / 3) + log(2)) / 4
    foreground = (2 * 0.5 + 1) / (2.0 + 1 + 1)
    background = (2 * 1.5 + 1) / (2.0 + 3 + 1)
    assert float(segmentation_loss(logits, labels)) == pytest.approx(entropy + 1 - (foreground + background) / 2, rel=1e-6)


def test_several_outputs_are_cross_entropy_and_dice_without_background() -> None:
    # A softmax of logarithms is what stands in the logarithms.
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5], [0.5, 0.25, 0.25]])
    logits = probabilities.log().T.reshape(1, 3, 2, 2)
    labels = torch.tensor([[[0, 1], [2, 1]]])
    entropy = (3 * log(2) + log(4)) / 4
    first = (2 * 0.75 + 1) / (1.25 + 2 + 1)
    second = (2 * 0.5 + 1) / (1.25 + 1 + 1)
    assert float(segmentation_loss(logits, labels)) == pytest.approx(entropy + 1 - (first + second) / 2, rel=1e-6)


def test_dice_is_taken_over_the_whole_batch() -> None:
    # Two images of one pixel each: overlap 1/2, probabilities 1/2 + 1/2, one foreground pixel, and the same for the other sign.
    logits, labels = torch.zeros(2, 1, 1, 1), torch.tensor([[[1]], [[0]]])
    assert float(segmentation_loss(logits, labels)) == pytest.approx(log(2) + 1 - 2 / 3, rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_sure_and_right_answer_costs_nothing(outputs: int) -> None:
    labels = torch.tensor([[[0, 1], [1, 0]]])
    one_hot = labels.unsqueeze(1) if outputs == 1 else torch.nn.functional.one_hot(labels, outputs).movedim(-1, 1)
    loss = segmentation_loss(60.0 * one_hot.float() - 30.0, labels)
    # Class 2 is absent from truth and prediction: its Dice is 1 by the smoothing term.
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_bfloat16_logits_give_a_float32_loss_and_finite_gradients() -> None:
    logits = torch.full((1, 1, 2, 2), -80.0, dtype=torch.bfloat16, requires_grad=True)
    loss = segmentation_loss(logits, torch.ones(1, 2, 2, dtype=torch.int64))
    loss.backward()
    assert loss.dtype == torch.float32
    # Cross-entropy of a surely wrong answer is the logit itself. Foreground Dice is 1 / (0 + 4 + 1), background 1 / (4 + 0 + 1).
    assert float(loss.detach()) == pytest.approx(80.0 + 1 - 1 / 5, rel=1e-6)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_distance_to_a_teacher_by_hand() -> None:
    # One output: p = 0.5 against the teacher's 0.75: 0.75 ln(0.75/0.5) + 0.25 ln(0.25/0.5).
    taught = torch.full((1, 1, 2, 2), math.log(3.0))
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation_loss(torch.zeros(1, 1, 2, 2), taught)) == pytest.approx(expected, abs=1e-6)
    # Three classes, two voxels: uniform against (1/2, 1/4, 1/4).
    taught = torch.tensor([2.0, 1.0, 1.0]).log().reshape(1, 3, 1, 1).expand(1, 3, 1, 2)
    expected = 0.5 * math.log(1.5) + 2 * 0.25 * math.log(0.75)
    assert float(distillation_loss(torch.zeros(1, 3, 1, 2), taught)) == pytest.approx(expected, abs=1e-6)
    assert float(distillation_loss(taught, taught)) == pytest.approx(0.0, abs=1e-7)


def test_outputs_of_coarser_levels_weigh_half_as_much_each() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, 4, 5, 5, generator=generator)
    labels = torch.randint(4, (2, 5, 5), generator=generator)
    finest, middle, coarsest = (float(segmentation_loss(outputs[:, level], labels)) for level in range(3))
    # 1 + 1/2 + 1/4 = 7/4.
    expected = (finest + middle / 2 + coarsest / 4) / 1.75
    assert float(segmentation_loss(outputs, labels)) == pytest.approx(expected, rel=1e-6)
    assert float(segmentation_loss(outputs[:, :1], labels)) == pytest.approx(finest, rel=1e-6)


def test_losses_of_the_2019_paper() -> None:
    # Two images of one pixel: probability 1/2 and 3/4, truth 1 and 0. Σpt = 1/2, Σp = 5/4, Σt = 1.
    logits = torch.tensor([0.0, log(3.0)]).reshape(2, 1, 1, 1)
    labels = torch.tensor([1, 0]).reshape(2, 1, 1)
    distance = 1 - (1 + 1e-4) / (9 / 4 + 1e-4)
    entropy = (log(2.0) + log(4.0)) / 2
    assert float(segmentation_loss(logits, labels, "dice")) == pytest.approx(distance, rel=1e-6)
    assert float(segmentation_loss(logits, labels, "bce_dice")) == pytest.approx((entropy + distance) / 2, rel=1e-6)
    again = segmentation_loss(torch.sigmoid(logits), labels, "bce_dice")
    assert float(segmentation_loss(logits, labels, "bce_dice_double_sigmoid")) == pytest.approx(float(again))
    with pytest.raises(ConfigError, match=r"train\.loss dice is for two classes"):
        segmentation_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), "dice")
