"""Training patches drawn from the slices of cases, and whole slices for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medquant.data.augment import Augmenter
from medquant.data.normalise import Normalisation
from medquant.data.volume import Case, FloatArray, LabelArray
from medquant.errors import ConfigError, InputError

Number = TypeVar("Number", bound=np.generic)

_ATTEMPTS = 4
# What a random number is for, so that no two uses share one.
_FOR_ORDER, _FOR_FOREGROUND_ORDER, _FOR_PATCH = 0, 1, 2


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Augmented 2D patches; sample ``index`` of an epoch depends on (seed, epoch, index) alone, so a resumed run sees the same.

    Slices are taken in shuffled passes, each once a pass. Every even sample is cut around a pixel that is not class 0 and
    holds such a pixel after augmentation; where some slices have none, even samples pass over those that do, odd ones over all.
    Slices smaller than the patch are continued by reflection.

    Args:
        cases: training cases, with masks.
        normalisation: applied once, here.
        patch_size: ``(H, W)``, along ``i`` and ``j``.
        augmenter: made for the same patch size.
        samples_per_epoch: length of the dataset.
        seed: non-negative.

    Raises:
        InputError: no case, or a case without a mask.
        ConfigError: ``samples_per_epoch`` below 1, a negative seed, or patch sizes that differ.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        normalisation: Normalisation,
        patch_size: tuple[int, int],
        augmenter: Augmenter,
        samples_per_epoch: int,
        seed: int,
    ) -> None:
        if samples_per_epoch < 1 or seed < 0 or tuple(patch_size) != tuple(augmenter.patch_size):
            raise ConfigError(
                f"patches: found {samples_per_epoch} samples an epoch, seed {seed}, patch size {patch_size} with an augmenter for "
                f"{augmenter.patch_size}; expected at least 1, at least 0 and equal sizes"
            )
        if not cases:
            raise InputError("patches: found no training case, expected at least one; check the split")
        self._slices = [item for case in cases for item in _training_slices(case, normalisation)]
        self._foreground = [number for number, (_, label) in enumerate(self._slices) if label.any()]
        self._patch_size = patch_size
        self._augmenter = augmenter
        self._samples_per_epoch = samples_per_epoch
        self._seed = seed
        self._epoch = 0
        self._order: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return self._samples_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch the next samples belong to. Call it before a loader starts its workers for that epoch."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image float32 ``(1, H, W)`` and label int64 ``(H, W)``.

        Raises:
            IndexError: ``index`` is not in 0 .. len - 1.
        """
        if not 0 <= index < self._samples_per_epoch:
            raise IndexError(f"patch {index} of {self._samples_per_epoch}")
        position = self._epoch * self._samples_per_epoch + index
        wants_foreground = position % 2 == 0 and bool(self._foreground)
        image, label = self._slices[self._slice_number(position, wants_foreground)]
        for attempt in range(_ATTEMPTS):
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, _FOR_PATCH, self._epoch, index, attempt])))
            start = self._draw_start(label, wants_foreground, random)
            patch, target = self._cut(image, label, start, int(random.integers(2**32)))
            if not wants_foreground or target.any():
                break
        else:
            # A deformation may push a small structure out of the patch; the plain cut certainly holds it.
            patch = cut_window(image, start, self._patch_size)[None]
            target = cut_window(label, start, self._patch_size)[None]
        return torch.from_numpy(patch), torch.from_numpy(target[0].astype(np.int64))

    def _slice_number(self, position: int, wants_foreground: bool) -> int:
        if len(self._foreground) in (0, len(self._slices)):
            return int(self._shuffled(_FOR_ORDER, position // len(self._slices), len(self._slices))[position % len(self._slices)])
        # Two separate sequences of passes, each advanced by every second sample.
        turn = position // 2
        if not wants_foreground:
            return int(self._shuffled(_FOR_ORDER, turn // len(self._slices), len(self._slices))[turn % len(self._slices)])
        count = len(self._foreground)
        return self._foreground[int(self._shuffled(_FOR_FOREGROUND_ORDER, turn // count, count)[turn % count])]

    def _shuffled(self, purpose: int, number: int, count: int) -> NDArray[np.int64]:
        """Order of the slices in pass ``number``; the last one asked for is kept."""
        known = self._order.get(purpose)
        if known is None or known[0] != number:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, purpose, number])))
            known = (number, random.permutation(count))
            self._order[purpose] = known
        return known[1]

    def _draw_start(self, label: LabelArray, wants_foreground: bool, random: np.random.Generator) -> tuple[int, int]:
        """First row and column of the patch; negative where the slice is smaller than the patch."""
        pixel: NDArray[np.int64] | None = None
        if wants_foreground:
            candidates = np.argwhere(label)
            pixel = candidates[int(random.integers(len(candidates)))]
        starts = []
        for axis, (length, wanted) in enumerate(zip(label.shape, self._patch_size, strict=True)):
            if length <= wanted:
                starts.append(-((wanted - length) // 2))
                continue
            lowest, highest = 0, length - wanted
            if pixel is not None:
                lowest, highest = max(lowest, int(pixel[axis]) - wanted + 1), min(highest, int(pixel[axis]))
            starts.append(int(random.integers(lowest, highest + 1)))
        return starts[0], starts[1]

    def _cut(self, image: FloatArray, label: LabelArray, start: tuple[int, int], seed: int) -> tuple[FloatArray, LabelArray]:
        margin = self._augmenter.margin
        origin = (start[0] - margin[0], start[1] - margin[1])
        size = (self._patch_size[0] + 2 * margin[0], self._patch_size[1] + 2 * margin[1])
        return self._augmenter(cut_window(image, origin, size)[None], cut_window(label, origin, size)[None], seed)


def whole_slices(case: Case, normalisation: Normalisation) -> tuple[Tensor, Tensor | None]:
    """All slices of a case as a network takes them.

    Returns:
        images float32 ``(K, 1, I, J)``, normalised, and labels int64 ``(K, I, J)``, or None for a case without mask.

    Raises:
        InputError: the image holds NaN or Inf.
    """
    images = np.ascontiguousarray(_normalised(case, normalisation).transpose(2, 0, 1))[:, None]
    if case.mask is None:
        return torch.from_numpy(images), None
    labels = np.ascontiguousarray(case.mask.array.transpose(2, 0, 1)).astype(np.int64)
    return torch.from_numpy(images), torch.from_numpy(labels)


def cut_window(array: NDArray[Number], start: tuple[int, int], size: tuple[int, int]) -> NDArray[Number]:
    """Copy a window out of a 2D array; beyond the array's ends it is continued by reflection about the end pixels.

    >>> cut_window(np.arange(3)[None], (0, -2), (1, 8)).tolist()
    [[2, 1, 0, 1, 2, 1, 0, 1]]
    """
    rows, columns = (_reflected(start[axis], size[axis], array.shape[axis]) for axis in (0, 1))
    return array[rows[:, None], columns[None, :]]


def _reflected(start: int, count: int, length: int) -> NDArray[np.int64]:
    if length == 1:
        return np.zeros(count, dtype=np.int64)
    period = 2 * (length - 1)
    place = np.arange(start, start + count, dtype=np.int64) % period
    return np.minimum(place, period - place)


def _training_slices(case: Case, normalisation: Normalisation) -> list[tuple[FloatArray, LabelArray]]:
    if case.mask is None:
        raise InputError(
            f"{case.source}: the case {case.id} has no mask, expected one to train on; leave the case out of the training part"
        )
    image, mask = _normalised(case, normalisation), case.mask.array.astype(np.uint8)
    return [(np.ascontiguousarray(image[:, :, k]), np.ascontiguousarray(mask[:, :, k])) for k in range(image.shape[2])]


def _normalised(case: Case, normalisation: Normalisation) -> FloatArray:
    try:
        return normalisation.apply(case.image.array)
    except InputError as error:
        raise InputError(f"{case.source}: {error}") from error
