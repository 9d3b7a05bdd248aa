"""Patches. Expected: counts by hand, np.pad for reflections, and repetition."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medquant.data.augment import Augmenter
from medquant.data.datasets.phantom import make_phantom
from medquant.data.normalise import Normalisation
from medquant.data.patches import PatchDataset, cut_window
from medquant.data.prepared import Preparation, PreparedCase, prepare_case
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
from medquant.errors import ConfigError, InputError

IDENTITY = Normalisation("range", 0.0, 1000.0)
ZSCORE = Normalisation("zscore_slice")


def _case(values: list[int], size: tuple[int, int] = (40, 30), foreground: tuple[int, ...] | None = None) -> Case:
    """One slice for each value, of that value all over; class 1 in one corner pixel of the slices in ``foreground``."""
    image = np.stack([np.full(size, value, np.float32) for value in values], axis=2)
    mask = np.zeros(image.shape, np.uint8)
    for k in range(len(values)) if foreground is None else foreground:
        mask[-1, 0, k] = 1
    return Case("c", "c", "", Volume(image, np.eye(4)), Volume(mask, np.eye(4)), "made")


def _prepared(case: Case, normalisation: Normalisation = IDENTITY) -> PreparedCase:
    return prepare_case(case, Preparation(normalisation), ArrayCache(None))


def _phantom(sites: int = 1, slices: int = 2) -> list[PreparedCase]:
    return [_prepared(case, ZSCORE) for case in make_phantom(subjects_per_site=1, sites=sites, slices=slices).cases]


def _plain(case: Case, samples: int, size: tuple[int, int] = (16, 16), seed: int = 0) -> PatchDataset:
    return PatchDataset([_prepared(case)], size, Augmenter("none", size), samples, seed)


def _values(dataset: PatchDataset, epoch: int = 0) -> list[int]:
    return [round(float(dataset[epoch, n][0].mean()) * 1000) for n in range(len(dataset))]


def test_types_and_shapes() -> None:
    image, label = _plain(_case([1, 2]), 4, (16, 24))[0, 0]
    assert (image.shape, image.dtype) == (torch.Size([1, 16, 24]), torch.float32)
    assert (label.shape, label.dtype) == (torch.Size([16, 24]), torch.int64)


def test_slices_come_in_shuffled_passes() -> None:
    dataset = _plain(_case(list(range(10, 17))), 21)
    values = _values(dataset)
    passes = [values[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(10, 17)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_passes_go_on_over_epochs() -> None:
    # 5 samples an epoch, 7 slices: after 7 epochs every slice was seen exactly 5 times.
    dataset = _plain(_case(list(range(10, 17))), 5)
    seen: Counter[int] = Counter()
    for epoch in range(7):
        seen.update(_values(dataset, epoch))
    assert set(seen.values()) == {5}


def test_half_of_the_patches_hold_foreground() -> None:
    # A single foreground pixel in 40×30, patches of 16×16: a random cut would rarely find it. Two of six slices have none at all.
    dataset = _plain(_case([1, 2, 3, 4, 5, 6], foreground=(0, 1, 2, 5)), 60)
    holds = [bool(dataset[0, n][1].any()) for n in range(60)]
    assert all(holds[::2])
    assert not all(holds)
    assert set(_values(dataset)) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("kind", ["em", "mr"])
def test_foreground_survives_augmentation(kind: str) -> None:
    size = (16, 16)
    dataset = PatchDataset([_prepared(_case([1, 2, 3]))], size, Augmenter(kind, size), 40, 0)  # type: ignore[arg-type]
    assert all(bool(dataset[0, n][1].any()) for n in range(0, 40, 2))


def test_no_foreground_anywhere_is_no_trouble() -> None:
    assert not any(bool(label.any()) for _, label in (_plain(_case([1, 2], foreground=()), 6)[0, n] for n in range(6)))


def test_a_sample_is_a_function_of_seed_epoch_and_index() -> None:
    cases = _phantom(sites=2)
    augmenter = Augmenter("mr", (48, 48))
    first = PatchDataset(cases, (48, 48), augmenter, 12, seed=4)
    again = PatchDataset(cases, (48, 48), Augmenter("mr", (48, 48)), 12, seed=4)
    wanted = [first[3, n] for n in range(12)]
    # A resumed run starts at epoch 3, and may ask in another order.
    for n in (7, 0, 11, 3, 7):
        assert torch.equal(again[3, n][0], wanted[n][0])
        assert torch.equal(again[3, n][1], wanted[n][1])
    assert not torch.equal(first[2, 0][0], wanted[0][0])
    other = PatchDataset(cases, (48, 48), augmenter, 12, seed=5)
    assert not torch.equal(other[3, 0][0], wanted[0][0])


def test_each_epoch_and_index_cuts_anew() -> None:
    # One slice only, so that nothing but the cut and the augmentation can differ.
    dataset = PatchDataset(_phantom(slices=1), (48, 48), Augmenter("mr", (48, 48)), 4, seed=0)
    assert len({dataset[epoch, n][0].numpy().tobytes() for epoch in range(3) for n in range(4)}) == 12


def test_workers_do_not_matter() -> None:
    dataset = PatchDataset(_phantom(), (48, 48), Augmenter("mr", (48, 48)), 8, seed=0)
    order = [[(epoch, n) for n in range(first, first + 4)] for epoch in (0, 1) for first in (0, 4)]
    alone = [batch for batch, _ in DataLoader(dataset, batch_sampler=order)]
    shared = [batch for batch, _ in DataLoader(dataset, batch_sampler=order, num_workers=2)]
    assert len(alone) == 4
    assert all(torch.equal(one, two) for one, two in zip(alone, shared, strict=True))


def test_what_is_kept_in_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = _phantom(sites=2, slices=3)
    kept = PatchDataset(cases, (48, 48), Augmenter("none", (48, 48)), 12, seed=0)
    wanted = [kept[0, n][0] for n in range(12)]
    # Room for one slice of 96×96 float32, and for none.
    for room in (96 * 96 * 4, 0):
        monkeypatch.setattr("medquant.data.patches._KEPT_BYTES", room)
        forgetful = PatchDataset(cases, (48, 48), Augmenter("none", (48, 48)), 12, seed=0)
        assert all(torch.equal(forgetful[0, n][0], wanted[n]) for n in range(12))
        assert len(forgetful._kept) <= 1


def test_every_channel_is_cut_at_the_same_place() -> None:
    image = np.arange(1200, dtype=np.float32).reshape(40, 30, 1) / 2
    case = replace(_case([1]), image=Volume(image, np.eye(4)), further_channels=(Volume(image + 100, np.eye(4)),))
    patch, _ = _plain(case, 2)[0, 1]
    assert patch.shape == (2, 16, 16)
    np.testing.assert_allclose((patch[1] - patch[0]) * 1000, 100, atol=1e-3)


@pytest.mark.parametrize("kind", ["none", "mr"])
def test_patches_of_several_slices_hold_neighbours(kind: str) -> None:
    # Slice k holds k + 10 all over: a patch of 4 of 7 slices holds 4 neighbours, the one whose turn it is among them.
    size = (16, 16)
    augmenter = Augmenter("none", size) if kind == "none" else Augmenter("mr", size)
    dataset = PatchDataset([_prepared(_case(list(range(10, 17))))], size, augmenter, 14, 0, depth=4)
    plain = PatchDataset([_prepared(_case(list(range(10, 17))))], size, Augmenter("none", size), 14, 0)
    for n in range(14):
        image, label = dataset[0, n]
        assert (image.shape, label.shape) == ((1, 16, 16, 4), (16, 16, 4))
        if kind == "none":
            found = [round(float(image[0, :, :, k].mean()) * 1000) for k in range(4)]
            assert found == list(range(found[0], found[0] + 4))
            assert round(float(plain[0, n][0].mean()) * 1000) in found


def test_fewer_slices_than_the_patch_are_reflected() -> None:
    dataset = PatchDataset([_prepared(_case([10, 11, 12]))], (16, 16), Augmenter("none", (16, 16)), 3, 0, depth=6)
    for n in range(3):
        image, _ = dataset[0, n]
        # np.pad(mode="reflect") of 10 11 12 by 1 and 2.
        assert [round(float(image[0, :, :, k].mean()) * 1000) for k in range(6)] == [11, 10, 11, 12, 11, 10]


def test_small_slices_are_reflected() -> None:
    case = _case([1], (10, 7))
    random = np.random.default_rng(0)
    image, mask = random.random((10, 7, 1)).astype(np.float32), random.integers(0, 3, (10, 7, 1)).astype(np.uint8)
    case = replace(case, image=Volume(image, np.eye(4)), mask=Volume(mask, np.eye(4)))
    dataset = PatchDataset([_prepared(case, Normalisation("range", 0.0, 1.0))], (16, 16), Augmenter("none", (16, 16)), 2, 0)
    for patch, label in (dataset[0, 0], dataset[0, 1]):
        np.testing.assert_array_equal(patch[0], np.pad(image[:, :, 0], ((3, 3), (4, 5)), mode="reflect"))
        np.testing.assert_array_equal(label, np.pad(mask[:, :, 0], ((3, 3), (4, 5)), mode="reflect"))


def test_cut_window_against_numpy() -> None:
    array = np.random.default_rng(0).random((6, 5))
    np.testing.assert_array_equal(cut_window(array, (1, 2), (3, 2)), array[1:4, 2:4])
    padded = np.pad(array, 23, mode="reflect")
    np.testing.assert_array_equal(cut_window(array, (-23, -23), padded.shape), padded)
    np.testing.assert_array_equal(cut_window(array[:1, :1], (-2, -2), (5, 5)), np.full((5, 5), array[0, 0]))


def test_patches_do_not_share_memory_with_the_slices() -> None:
    dataset = _plain(_case([5]), 2)
    patch, _ = dataset[0, 0]
    patch += 1
    assert _values(dataset) == [5, 5]


def test_random_cuts_reach_every_place() -> None:
    size = (20, 20)
    image = np.arange(400, dtype=np.float32).reshape(20, 20, 1) / 400
    case = Case("c", "c", "", Volume(image, np.eye(4)), Volume(np.ones((20, 20, 1), np.uint8), np.eye(4)), "made")
    dataset = PatchDataset([_prepared(case, Normalisation("range", 0.0, 1.0))], (16, 16), Augmenter("none", (16, 16)), 400, 0)
    starts = {divmod(round(float(dataset[0, n][0][0, 0, 0]) * 400), 20) for n in range(400)}
    assert starts == {(row, column) for row in range(size[0] - 15) for column in range(size[1] - 15)}


def test_mistakes_are_named() -> None:
    case = _case([1])
    with pytest.raises(InputError, match="no training case"):
        PatchDataset([], (16, 16), Augmenter("none", (16, 16)), 1, 0)
    with pytest.raises(InputError, match="case c has no mask"):
        PatchDataset([_prepared(replace(case, mask=None))], (16, 16), Augmenter("none", (16, 16)), 1, 0)
    with pytest.raises(ConfigError, match="equal sizes"):
        PatchDataset([_prepared(case)], (16, 16), Augmenter("none", (16, 8)), 1, 0)
    with pytest.raises(ConfigError, match="0 samples"):
        _plain(case, 0)
    with pytest.raises(IndexError):
        _plain(case, 2)[0, 2]
    broken = replace(case, image=Volume(np.full((40, 30, 1), np.nan, np.float32), np.eye(4)))
    with pytest.raises(InputError, match="made: found 1200 NaN"):
        _plain(broken, 1)[0, 0]
