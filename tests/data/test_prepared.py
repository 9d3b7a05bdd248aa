"""Cases on the network's grid. Expected: the same steps done by NumPy on whole arrays, and counts by hand."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medquant.data.augment import Augmenter
from medquant.data.normalise import Normalisation
from medquant.data.patches import PatchDataset
from medquant.data.prepared import Preparation, PreparedCase, Window, check_same_place, prepare_case, prepare_cases
from medquant.data.prepared_grid import GridRule
from medquant.data.stored import ArrayCache, StoredVolume
from medquant.data.volume import Case, Volume
from medquant.errors import CheckpointError, GeometryError, InputError

# Stored axes run back, foot and right: none is where the network wants it.
AFFINE = np.array([[0.0, 0, 0.5, 3], [-0.5, 0, 0, 4], [0, -2.0, 0, 5], [0, 0, 0, 1]])
SHAPE = (12, 5, 10)
ZSCORE = Normalisation("zscore_slice")
NO_CACHE = ArrayCache(None)


def _case(seed: int = 0, channels: int = 1, affine: NDArray[np.float64] = AFFINE) -> Case:
    rng = np.random.default_rng(seed)
    images = [Volume(rng.normal(100, 20, SHAPE).astype(np.float32), affine) for _ in range(channels)]
    mask = Volume(rng.integers(0, 3, SHAPE).astype(np.uint8), affine)
    return Case("c1", "c1", "", images[0], mask, "made c1", further_channels=tuple(images[1:]))


def _prepare(case: Case, normalisation: Normalisation = ZSCORE, rule: GridRule | None = None) -> PreparedCase:
    return prepare_case(case, Preparation(normalisation, rule or GridRule("axial")), NO_CACHE)


def _mask(case: Case) -> NDArray[np.uint8]:
    assert case.mask is not None
    return np.asarray(case.mask.array, dtype=np.uint8)


# --- grids that are not one -------------------------------------------------------------------------------------------


def _shifted(voxels: float) -> NDArray[np.float64]:
    moved = AFFINE.copy()
    moved[:3, 3] += voxels * AFFINE[:3, 0]
    return moved


def _stretched(share: float) -> NDArray[np.float64]:
    # 12 voxels along the first axis: the last one lies 11 times the difference away.
    moved = AFFINE.copy()
    moved[:3, 0] *= 1 + share
    return moved


def _flipped() -> NDArray[np.float64]:
    moved = AFFINE.copy()
    moved[:3, 3] += (SHAPE[2] - 1) * AFFINE[:3, 2]
    moved[:3, 2] *= -1
    return moved


ON_CASE: dict[str, Callable[[Case, Volume], Case]] = {
    "mask": lambda case, volume: replace(case, mask=volume),
    "rater": lambda case, volume: replace(case, raters=(case.mask, volume)),
    "channel": lambda case, volume: replace(case, further_channels=(volume,)),
}


@pytest.mark.parametrize("which", ON_CASE)
@pytest.mark.parametrize(
    ("affine", "apart"), [(_shifted(0.25), "0.25"), (_stretched(0.02), "0.22"), (_flipped(), "9.00"), (_shifted(300), "300")]
)
def test_volumes_on_another_grid_are_refused(which: str, affine: NDArray[np.float64], apart: str) -> None:
    case = _case()
    moved = ON_CASE[which](case, Volume(_mask(case), affine))
    with pytest.raises(GeometryError, match=rf"made c1: (mask|channel) and image lie up to {apart}.* voxels apart by their affines"):
        _prepare(moved)


@pytest.mark.parametrize("affine", [AFFINE, _shifted(0.09), _stretched(0.008), AFFINE + 1e-7])
def test_rounding_of_a_header_is_no_other_grid(affine: NDArray[np.float64]) -> None:
    case = _case()
    check_same_place(replace(case, mask=Volume(_mask(case), affine)))


def test_a_place_that_is_not_known_cannot_contradict() -> None:
    case = _case()
    check_same_place(replace(case, mask=Volume(_mask(case), _shifted(5), has_geometry=False)))


# --- slices -----------------------------------------------------------------------------------------------------------


def test_slices_are_those_of_the_whole_array_normalised() -> None:
    case = _case()
    prepared = _prepare(case)
    # Stored (back, foot, right) → right, front, head.
    image = case.image.array.transpose(2, 0, 1)[:, ::-1, ::-1]
    expected = ZSCORE.apply(image)
    assert prepared.window == Window((0, 0, 0), (10, 12, 5))
    assert prepared.slices == 5
    for k in range(5):
        assert prepared.image(k).shape == (1, 10, 12)
        np.testing.assert_array_equal(prepared.image(k)[0], expected[:, :, k])
        np.testing.assert_array_equal(prepared.label(k), _mask(case).transpose(2, 0, 1)[:, ::-1, ::-1][:, :, k])
    assert prepared.image(0).flags.c_contiguous
    assert prepared.label(0).flags.c_contiguous


def test_groups_of_slices_leave_none_out() -> None:
    prepared = _prepare(_case())
    groups = list(prepared.images(2))
    assert [group.shape for group in groups] == [(2, 1, 10, 12), (2, 1, 10, 12), (1, 1, 10, 12)]
    np.testing.assert_array_equal(np.concatenate(groups), np.stack([prepared.image(k) for k in range(5)]))


def test_channels_are_normalised_each_by_its_own() -> None:
    case = _case(channels=3)
    for kind in ("zscore_slice", "zscore_volume"):
        rule = Normalisation(kind)  # type: ignore[arg-type]
        prepared = _prepare(case, rule)
        for number, channel in enumerate(case.channels):
            expected = rule.apply(channel.array.transpose(2, 0, 1)[:, ::-1, ::-1])
            np.testing.assert_array_equal(np.stack([prepared.image(k)[number] for k in range(5)], axis=2), expected)


@pytest.mark.parametrize("rule", [GridRule("axial"), GridRule("stored"), GridRule("coronal", (0.7, 0.7))])
@pytest.mark.parametrize("kind", ["zscore_volume", "zscore_slice", "range"])
def test_inside_a_window_it_is_as_if_nothing_else_were_there(rule: GridRule, kind: str) -> None:
    case = _case(channels=2)
    normalisation = Normalisation("range", 60.0, 150.0) if kind == "range" else Normalisation(kind)  # type: ignore[arg-type]
    prepared = _prepare(case, normalisation, rule)
    window = Window((2, 1, 1), (6, 4, 4))
    cut = prepared.with_window(window)
    assert cut.slices == 3
    for number, channel in enumerate(case.channels):
        expected = normalisation.apply(prepared.grid.image(channel.array)[2:6, 1:4, 1:4])
        found = np.stack([cut.image(k)[number] for k in range(3)], axis=2)
        assert found.tobytes() == expected.tobytes()
    # The window of a window is counted from the whole grid, and the first one is forgotten.
    again = cut.with_window(Window.whole(prepared.grid.shape))
    np.testing.assert_array_equal(again.image(0), prepared.image(0))


def test_statistics_are_those_of_the_window_alone() -> None:
    case = _case()
    image = np.zeros(SHAPE, np.float32)
    image[:6] = 10
    image[:3] = 20
    image[7, 0, 0] = np.nan
    case = replace(case, image=Volume(image, AFFINE))
    whole = prepare_case(case, Preparation(ZSCORE, GridRule("stored")), NO_CACHE)
    assert whole.statistics == (None,)
    volume = Normalisation("zscore_volume")
    with pytest.raises(InputError, match="made c1: found 1 NaN or Inf"):
        prepare_case(case, Preparation(volume, GridRule("stored")), NO_CACHE)
    # A hole outside the window does not matter; half of the window holds 20, half 10.
    cut = replace(whole, normalisation=volume).with_window(Window((0, 0, 0), (6, 5, 10)))
    assert cut.statistics == ((15.0, 5.0),)


def test_a_hole_in_the_image_is_named() -> None:
    case = _case()
    image = np.array(case.image.array)
    image[0, 0, 0] = np.inf
    prepared = _prepare(replace(case, image=Volume(image, AFFINE)))
    prepared.image(0)
    with pytest.raises(InputError, match="made c1: found 1 NaN or Inf"):
        prepared.image(4)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_raters_are_what_training_takes_and_the_mask_is_what_is_scored() -> None:
    case = _case()
    raters = tuple(Volume(np.full(SHAPE, number, np.uint8), AFFINE) for number in (0, 1, 2))
    prepared = _prepare(replace(case, raters=raters))
    assert [int(prepared.label(0, rater).max()) for rater in range(3)] == [0, 1, 2]
    assert [prepared.foreground_slices(rater) for rater in range(3)] == [[False] * 5, [True] * 5, [True] * 5]
    assert prepared.case.mask is case.mask
    assert len(_prepare(case).masks) == 1
    assert _prepare(replace(case, mask=None)).masks == ()


def test_each_rater_is_a_sample() -> None:
    # 3 slices of 2 raters: in a pass of 6 samples each pair comes once; what a patch shows names the slice, its label the rater.
    image = np.broadcast_to(np.array([1.0, 2.0, 3.0], np.float32), (16, 16, 3))
    raters = tuple(Volume(np.full((16, 16, 3), number, np.uint8), np.eye(4)) for number in (1, 2))
    case = Case("c", "c", "", Volume(image, np.eye(4)), raters[0], "made", raters=raters)
    prepared = _prepare(case, Normalisation("range", 0.0, 10.0), GridRule("stored"))
    dataset = PatchDataset([prepared], (16, 16), Augmenter("none", (16, 16)), 6, 0)
    for epoch in range(3):
        samples = [dataset[epoch, index] for index in range(6)]
        pairs = sorted((round(float(image.mean()) * 10), int(label[0, 0])) for image, label in samples)
        assert pairs == [(k, rater) for k in (1, 2, 3) for rater in (1, 2)]
    assert torch.equal(dataset[1, 4][0], dataset[1, 4][0])


def test_foreground_is_looked_for_in_the_window_alone() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 3, 5] = mask[0, 1, 0] = 1
    case = replace(_case(), mask=Volume(mask, AFFINE))
    whole = _prepare(case, rule=GridRule("stored"))
    assert [k for k, found in enumerate(whole.foreground_slices()) if found] == [0, 5]
    cut = whole.with_window(Window((4, 2, 3), (8, 5, 9)))
    assert cut.foreground_slices() == [False, False, True, False, False, False]
    assert cut.label(2)[1, 1] == 1


@pytest.mark.parametrize("rule", [GridRule("axial"), GridRule("sagittal"), GridRule("stored")])
def test_beyond_the_window_everything_is_background(rule: GridRule) -> None:
    case = _case()
    prepared = _prepare(case, rule=rule)
    window = Window((1, 2, 1), (4, 5, 3))
    cut = prepared.with_window(window, scored_inside=True)
    inside = np.zeros(prepared.grid.shape, bool)
    inside[1:4, 2:5, 1:3] = True
    restored = cut.restore(np.stack([cut.label(k) for k in range(cut.slices)], axis=2))
    visible = cut.visible()
    assert restored.shape == visible.shape == SHAPE
    assert np.count_nonzero(visible) == inside.sum() == 3 * 3 * 2
    np.testing.assert_array_equal(prepared.grid.orient(visible), inside)
    np.testing.assert_array_equal(restored, np.where(visible, _mask(case), 0))
    assert cut.scored_inside
    assert not cut.with_window(window).scored_inside


def test_the_whole_window_restores_the_mask_itself() -> None:
    case = _case()
    prepared = _prepare(case)
    labels = np.stack([prepared.label(k) for k in range(prepared.slices)], axis=2)
    np.testing.assert_array_equal(prepared.restore(labels), _mask(case))
    assert prepared.visible().all()
    with pytest.raises(GeometryError, match=r"made c1: a mask of shape \(10, 12, 4\) does not fit the region \(10, 12, 5\)"):
        prepared.restore(labels[:, :, 1:])


# --- the cache --------------------------------------------------------------------------------------------------------


def test_resampled_arrays_are_made_once_and_named_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, case = ArrayCache(tmp_path), _case(channels=2)
    preparation = Preparation(ZSCORE, GridRule("axial", (0.3, 0.4)))
    first = prepare_case(case, preparation, cache)
    assert all(isinstance(volume, StoredVolume) for volume in (*first.channels, *first.masks))
    plain = prepare_case(case, preparation, NO_CACHE)
    other = prepare_case(case, Preparation(ZSCORE, GridRule("axial", (0.3, 0.5))), cache)
    assert other.channels[0].shape != first.channels[0].shape
    # Voxels that are the same, once as an image, once as a mask, are resampled by different rules.
    as_image = prepare_case(replace(case, image=Volume(_mask(case), AFFINE)), preparation, cache)
    assert (as_image.channels[0].dtype, as_image.masks[0].dtype) == (np.float32, np.uint8)
    monkeypatch.setattr("scipy.ndimage.affine_transform", None)
    again = prepare_case(case, preparation, cache)
    for k in range(5):
        np.testing.assert_array_equal(again.image(k), plain.image(k))
        np.testing.assert_array_equal(again.label(k), plain.label(k))


def test_what_is_not_resampled_is_not_copied(tmp_path: Path) -> None:
    case = _case()
    prepared = prepare_case(case, Preparation(ZSCORE, GridRule("axial")), ArrayCache(tmp_path))
    assert np.shares_memory(prepared.channels[0].array, case.image.array)
    assert (prepared.channels[0].shape, prepared.channels[0].dtype) == ((10, 12, 5), np.float32)
    assert prepared.channels[0].spacing_mm == (0.5, 0.5, 2.0)
    assert list(tmp_path.rglob("*.npy")) == []


@pytest.mark.parametrize("spacing", [None, (0.3, 0.4)])
def test_workers_can_take_it_along(tmp_path: Path, spacing: tuple[float, float] | None) -> None:
    prepared = prepare_case(_case(), Preparation(ZSCORE, GridRule("axial", spacing)), ArrayCache(tmp_path))
    again = pickle.loads(pickle.dumps(prepared))
    np.testing.assert_array_equal(again.image(2), prepared.image(2))
    np.testing.assert_array_equal(again.label(2), prepared.label(2))


def test_cases_keep_their_order() -> None:
    cases = [replace(_case(number), id=f"c{number}") for number in (3, 1, 2)]
    prepared = prepare_cases(cases, Preparation(ZSCORE), NO_CACHE)
    assert [case.id for case in prepared] == ["c3", "c1", "c2"]


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [GridRule(), GridRule("coronal", (0.5, 0.25))])
def test_json_round_trip(rule: GridRule) -> None:
    preparation = Preparation(Normalisation("range", -100.0, 240.0), rule)
    assert Preparation.from_json(json.loads(json.dumps(preparation.to_json()))) == preparation


@pytest.mark.parametrize("key", ["normalisation", "grid"])
@pytest.mark.parametrize("value", [None, [], {}, "zscore_slice", {"kind": 1}])
def test_damaged_json_is_refused(key: str, value: object) -> None:
    stored = {**Preparation(ZSCORE).to_json(), key: value}
    with pytest.raises(CheckpointError, match=r"stored (preparation|normalisation|grid rule)"):
        Preparation.from_json(stored)
    with pytest.raises(CheckpointError, match="stored preparation has the keys"):
        Preparation.from_json({**Preparation(ZSCORE).to_json(), "more": 1})
