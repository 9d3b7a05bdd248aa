"""A few validation images with their labels, and the loss and Dice of a network on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medquant.data.prepared import PreparedCase
from medquant.data.volume import DatasetInfo
from medquant.evaluate.dice import confusion
from medquant.train.building import patch_size
from medquant.train.losses import segmentation_loss
from medquant.train.session import TrainingSession

Item = TypeVar("Item")


@dataclass(frozen=True)
class LabelledImage:
    """An image as a network takes it, (1, C, *S), and its labels, (1, *L), which may be smaller: images are padded at their ends."""

    image: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Quality:
    """Loss of the training, and mean Dice over images and scored classes."""

    loss: float
    dice: float


def validation_images(session: TrainingSession, most: int) -> list[LabelledImage]:
    """Up to ``most`` images of the validation part, evenly spaced over its cases.

    Slices for networks that take slices; for networks that take volumes, or images of one size alone, a block of the size of a
    training patch around the middle of what is labelled.
    """
    cases = session.prepared("validation")
    if session.dimensions == 3 or session.only_size is not None:
        chosen = [(case, _middle(case)) for case in _spaced(cases, most)]
        return [_block(case, middle, session) for case, middle in chosen]
    slices = [(case, k) for case in cases for k in range(case.slices)]
    return [_labelled(case.image(k), case.label(k), session) for case, k in _spaced(slices, most)]


def judge(network: nn.Module, images: Sequence[LabelledImage], info: DatasetInfo) -> Quality:
    """Loss and Dice of a network in evaluation mode."""
    network.eval()
    losses, scores = [], []
    with torch.inference_mode():
        for each in images:
            shown = tuple(slice(length) for length in each.labels.shape[1:])
            logits = network(each.image)[(slice(None), slice(None), *shown)]
            losses.append(float(segmentation_loss(logits, each.labels)))
            mask = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
            overlaps = confusion(mask.cpu().numpy(), each.labels.cpu().numpy(), info.classes, info.regions)
            scores += [value for name in info.scored if not math.isnan(value := overlaps[name].dice)]
    return Quality(math.fsum(losses) / len(losses), math.fsum(scores) / len(scores) if scores else math.nan)


def _spaced(items: Sequence[Item], most: int) -> list[Item]:
    count = min(most, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _middle(case: PreparedCase) -> tuple[int, ...]:
    labelled = np.stack([case.label(k) > 0 for k in range(case.slices)], axis=2)
    places = np.argwhere(labelled)
    return tuple(int(place) for place in (places.mean(axis=0) if len(places) else np.array(labelled.shape) / 2))


def _block(case: PreparedCase, middle: tuple[int, ...], session: TrainingSession) -> LabelledImage:
    wanted = patch_size(session.config) if session.only_size is None else session.only_size
    wanted = (*wanted, 1) if len(wanted) == 2 else wanted
    spans = []
    for centre, length, whole in zip(middle, wanted, case.window.shape, strict=True):
        start = min(max(0, centre - length // 2), max(0, whole - length))
        spans.append(range(start, min(start + length, whole)))
    i, j = (slice(span.start, span.stop) for span in spans[:2])
    image = np.stack([case.image(k)[:, i, j] for k in spans[2]], axis=3)
    labels = np.stack([case.label(k)[i, j] for k in spans[2]], axis=2)
    if session.dimensions == 2:
        image, labels = image[..., 0], labels[..., 0]
    return _labelled(image, labels, session)


def _labelled(image: np.ndarray, labels: np.ndarray, session: TrainingSession) -> LabelledImage:
    missing = [-length % session.size_multiple for length in image.shape[1:]]
    if session.only_size is not None:
        missing = [wanted - length for wanted, length in zip(session.only_size, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *((0, each) for each in missing)], mode="edge")
    shown = torch.from_numpy(np.ascontiguousarray(padded, dtype=np.float32))[None].to(session.device)
    return LabelledImage(shown, torch.from_numpy(labels.astype(np.int64))[None].to(session.device))
