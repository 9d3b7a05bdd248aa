"""Training patches drawn from the slices of prepared cases."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medquant.data.augment import Augmenter
from medquant.data.prepared import PreparedCase
from medquant.data.volume import FloatArray, LabelArray
from medquant.errors import ConfigError, InputError

Number = TypeVar("Number", bound=np.generic)

_ATTEMPTS = 4
# What a random number is for, so that no two uses share one.
_FOR_ORDER, _FOR_FOREGROUND_ORDER, _FOR_PATCH = 0, 1, 2

_KEPT_BYTES = 256 * 1024**2
"""Normalised slices are kept up to this many bytes: a small data set whole, of a large one the latest."""


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Augmented patches, of one slice or of several neighbouring ones.

    Sample ``index`` of an epoch depends on (seed, epoch, index) alone, so a resumed run sees the same.
    Slices are taken in shuffled passes, each once a pass (with several raters: once for each of them). Every even sample is
    cut around a pixel that is not class 0 and holds such a pixel after augmentation; where some slices have none, even
    samples pass over those that do, odd ones over all. A patch of several slices is laid around the slice whose turn it is.
    Images smaller than the patch are continued by reflection.

    Args:
        cases: training cases, with masks.
        patch_size: ``(H, W)``, along ``i`` and ``j``.
        augmenter: made for the same patch size.
        samples_per_epoch: length of the dataset.
        seed: non-negative.
        depth: slices of a patch, for networks that take volumes; None for networks that take slices.

    Raises:
        InputError: no case, or a case without a mask.
        ConfigError: ``samples_per_epoch`` below 1, a negative seed, or patch sizes that differ.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        patch_size: tuple[int, int],
        augmenter: Augmenter,
        samples_per_epoch: int,
        seed: int,
        depth: int | None = None,
    ) -> None:
        if samples_per_epoch < 1 or seed < 0 or tuple(patch_size) != tuple(augmenter.patch_size):
            raise ConfigError(
                f"patches: found {samples_per_epoch} samples an epoch, seed {seed}, patch size {patch_size} with an augmenter for "
                f"{augmenter.patch_size}; expected at least 1, at least 0 and equal sizes"
            )
        if not cases:
            raise InputError("patches: found no training case, expected at least one; check the split")
        self._cases = list(cases)
        self._slices = [item for number, case in enumerate(cases) for item in _slices_of(number, case)]
        holds = {(number, rater): case.foreground_slices(rater) for number, case in enumerate(cases) for rater in range(len(case.masks))}
        self._foreground = [number for number, (case, k, rater) in enumerate(self._slices) if holds[(case, rater)][k]]
        self._patch_size = patch_size
        self._depth = depth
        self._augmenter = augmenter
        self._samples_per_epoch = samples_per_epoch
        self._seed = seed
        self._order: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self._kept: OrderedDict[tuple[int, int], FloatArray] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return self._samples_per_epoch

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image float32 ``(C, H, W)`` and label int64 ``(H, W)`` of an epoch and an index in it; ``(C, H, W, D)`` and ``(H, W, D)``
        for patches of several slices.

        Raises:
            IndexError: the index is not in 0 .. len - 1.
        """
        epoch, index = place
        if not 0 <= index < self._samples_per_epoch:
            raise IndexError(f"patch {index} of {self._samples_per_epoch}")
        position = epoch * self._samples_per_epoch + index
        wants_foreground = position % 2 == 0 and bool(self._foreground)
        number = self._slice_number(position, wants_foreground)
        for attempt in range(_ATTEMPTS):
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, _FOR_PATCH, epoch, index, attempt])))
            image, label, turn = self._slab(number, random)
            start = self._draw_start(label[turn], wants_foreground, random)
            patch, target = self._cut(image, label, start, int(random.integers(2**32)))
            if not wants_foreground or target.any():
                break
        else:
            # A deformation may push a small structure out of the patch; the plain cut certainly holds it.
            patch = np.stack([cut_window(channel, start, self._patch_size) for channel in image])
            target = np.stack([cut_window(one, start, self._patch_size) for one in label])
        return self._as_tensors(patch, target)

    def _as_tensors(self, patch: FloatArray, target: LabelArray) -> tuple[Tensor, Tensor]:
        """Image (C·D, H, W) and label (D, H, W) in the order a network takes them."""
        if self._depth is None:
            return torch.from_numpy(patch), torch.from_numpy(target[0].astype(np.int64))
        image = patch.reshape(-1, self._depth, *self._patch_size).transpose(0, 2, 3, 1)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(target.transpose(1, 2, 0).astype(np.int64))

    def _slab(self, number: int, random: np.random.Generator) -> tuple[FloatArray, LabelArray, int]:
        """Image (C·D, I, J) and label (D, I, J) of the slices of a patch, and which of them it is laid around."""
        case, k, rater = self._slices[number]
        chosen = np.array([k], dtype=np.int64)
        if self._depth is not None:
            available = self._cases[case].slices
            spare = max(0, available - self._depth)
            lowest, highest = max(0, k - self._depth + 1), min(k, spare)
            first = int(random.integers(lowest, highest + 1)) if available > self._depth else -((self._depth - available) // 2)
            chosen = _reflected(first, self._depth, available)
        # Neighbouring slices become channels: the augmentation then moves all of them alike.
        image = np.stack([self._image(case, int(each)) for each in chosen], axis=1)
        label = np.stack([self._cases[case].label(int(each), rater) for each in chosen])
        return image.reshape(-1, *image.shape[2:]), label, int(np.flatnonzero(chosen == k)[0])

    def _image(self, case: int, k: int) -> FloatArray:
        """Normalised slice (C, I, J), kept for a while."""
        image = self._kept.pop((case, k), None)
        if image is None:
            image = self._cases[case].image(k)
            self._kept_bytes += image.nbytes
            while self._kept and self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept[(case, k)] = image
        return image

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
        window = np.stack([cut_window(channel, origin, size) for channel in image])
        return self._augmenter(window, np.stack([cut_window(one, origin, size) for one in label]), seed)


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


def _slices_of(number: int, case: PreparedCase) -> list[tuple[int, int, int]]:
    """Case, slice and rater of every sample that can be drawn from a case."""
    if not case.masks:
        raise InputError(
            f"{case.case.source}: the case {case.id} has no mask, expected one to train on; leave the case out of the training part"
        )
    return [(number, k, rater) for k in range(case.slices) for rater in range(len(case.masks))]
