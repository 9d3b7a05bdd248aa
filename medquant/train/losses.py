"""The training loss: cross-entropy plus soft Dice, in float32, for one output or several."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medquant.errors import ConfigError
from medquant.train.distributed import ALONE, Group

_SMOOTH = 1.0
"""Added to both sides of the soft Dice quotient, so that an absent class neither divides by zero nor dominates."""

_PAPER_SMOOTH = 1e-4
"""The same of the 2019 paper."""


LossKind = Literal["ce_dice", "bce_dice", "bce_dice_double_sigmoid", "dice"]


def segmentation_loss(logits: Tensor, labels: Tensor, kind: LossKind = "ce_dice", group: Group = ALONE) -> Tensor:
    """The loss of a configuration's ``train.loss``; by default cross-entropy plus one minus the mean soft Dice over classes.

    With one output the classes are the two signs of the logit, and both count in Dice: the rarer of the two (a membrane, an
    organ) is what a score is lost on. With several, class 0 is left out of Dice, as background is by custom.

    Deep supervision: of the outputs of several levels the losses are added with the weights 1, 1/2, 1/4, … over their sum, the
    finest first (Isensee et al., nnU-Net, Nature Methods 2021, online methods).

    Args:
        logits: (N, 1 or classes, *S), any float type; with deep supervision (N, levels, 1 or classes, *S), all at full size.
        labels: class numbers, int64, (N, *S).
        kind: ``ce_dice``; or, for one output, those of the 2019 paper (:func:`paper_loss`).
        group: processes of which each holds an equal part of the batch; the loss is that of the whole batch.

    Returns:
        A scalar in float32.
    """
    if logits.dim() == labels.dim() + 2:
        levels = logits.unbind(dim=1)
        weighted = [0.5**level * segmentation_loss(each, labels, kind, group) for level, each in enumerate(levels)]
        return torch.stack(weighted).sum() / (2.0 - 0.5 ** (len(levels) - 1))
    logits = logits.float()
    if kind != "ce_dice":
        return paper_loss(logits, labels, kind, group)
    if logits.shape[1] == 1:
        target = labels.unsqueeze(1).float()
        entropy = group.mean(F.binary_cross_entropy_with_logits(logits, target))
        probability = torch.sigmoid(logits)
        both = _soft_dice(probability, target, group) + _soft_dice(1.0 - probability, 1.0 - target, group)
        return entropy + 1.0 - 0.5 * both.mean()
    entropy = group.mean(F.cross_entropy(logits, labels))
    probability = torch.softmax(logits, dim=1)
    target = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
    return entropy + 1.0 - _soft_dice(probability, target, group)[1:].mean()


def paper_loss(logits: Tensor, labels: Tensor, kind: LossKind, group: Group = ALONE) -> Tensor:
    """Losses of the 2019 paper's released code: soft Dice of class 1 over all pixels of the batch together.

    Args:
        logits: (N, 1, *S), float32.
        labels: 0 or 1, int64, (N, *S).
        kind: ``dice``: 1 - (2 Σpt + 1e-4) / (Σp + Σt + 1e-4); ``bce_dice``: half of it, and half the cross-entropy;
            ``bce_dice_double_sigmoid``: the same with the sigmoid taken twice, which the released EM code does. No probability is then
            above 0.73, so outputs are driven far apart, and a threshold of 0.999 on the first sigmoid cuts little.
        group: as for :func:`segmentation_loss`.

    Raises:
        ConfigError: the network has several outputs.
    """
    if logits.shape[1] != 1:
        raise ConfigError(f"train.loss {kind} is for two classes and one output; found {logits.shape[1]} outputs: use ce_dice")
    target = labels.unsqueeze(1).float()
    logits = torch.sigmoid(logits) if kind == "bce_dice_double_sigmoid" else logits
    probability = torch.sigmoid(logits)
    overlap = 2.0 * group.sum((probability * target).sum()) + _PAPER_SMOOTH
    distance = 1.0 - overlap / (group.sum(probability.sum() + target.sum()) + _PAPER_SMOOTH)
    if kind == "dice":
        return distance
    return 0.5 * group.mean(F.binary_cross_entropy_with_logits(logits, target)) + 0.5 * distance


def distillation_loss(logits: Tensor, taught: Tensor, group: Group = ALONE) -> Tensor:
    """Distance to a teacher's probabilities: mean over voxels of the Kullback-Leibler divergence (Hinton et al., 2015, T = 1).

    Args:
        logits: (N, 1 or classes, *S), any float type.
        taught: logits of the teacher, same shape; no gradient flows into them.
        group: as for :func:`segmentation_loss`.

    Returns:
        A scalar in float32, zero where both say the same.
    """
    logits, taught = logits.float(), taught.detach().float()
    if logits.shape[1] == 1:
        target = torch.sigmoid(taught)
        # Cross-entropy less the teacher's own entropy.
        own = F.binary_cross_entropy_with_logits(taught, target)
        return group.mean(F.binary_cross_entropy_with_logits(logits, target) - own)
    voxels = logits.numel() / logits.shape[1]
    divergence = F.kl_div(torch.log_softmax(logits, dim=1), torch.log_softmax(taught, dim=1), reduction="sum", log_target=True)
    return group.mean(divergence / voxels)


def _soft_dice(probability: Tensor, target: Tensor, group: Group) -> Tensor:
    """Soft Dice of each class over the whole batch, (N, C, *S) → (C,)."""
    axes = [axis for axis in range(probability.dim()) if axis != 1]
    overlap = group.sum((probability * target).sum(dim=axes))
    sizes = group.sum(probability.sum(dim=axes) + target.sum(dim=axes))
    return (2.0 * overlap + _SMOOTH) / (sizes + _SMOOTH)
