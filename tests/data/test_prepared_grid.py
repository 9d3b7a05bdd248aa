"""The grid a network sees: orientation, in-plane resampling, and the way back.

Expected: nibabel's own reorientation, closed forms (ramps, positions, discs), counts by hand.
"""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medquant.data.prepared_grid import SLICE_AXES, GridRule, Plane, PreparedGrid, SliceAxis, choose_slice_axis
from medquant.data.volume import Volume
from medquant.errors import CheckpointError, GeometryError

ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for letters in itertools.product(*order)
]  # fmt: skip
SHAPE = (4, 5, 6)


def _affine(orientation: str, spacing: tuple[float, float, float] = (0.5, 0.75, 3.0)) -> NDArray[np.float64]:
    """Stored axes run towards these letters; spacing along the stored axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(orientation):
        anatomical = next(number for number, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[anatomical, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    affine[:3, 3] = (-20.0, 13.5, 7.0)
    return affine


def _volume(orientation: str, shape: tuple[int, int, int] = SHAPE, **options: object) -> Volume:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return Volume(array, _affine(orientation, **options))  # type: ignore[arg-type]


def _plane(stored: int, factor: float, *, width: int = 8) -> Plane:
    """Rows resampled to ``factor`` times their spacing, columns as they are."""
    plane = GridRule("stored", (factor, 1.0)).grid(Volume(np.zeros((stored, width, 1)), np.eye(4))).plane
    assert plane is not None
    return plane


# --- orientation ------------------------------------------------------------------------------------------------------


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48
    assert all(nib.orientations.aff2axcodes(_affine(name)) == tuple(name) for name in ORIENTATIONS)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_axial_is_the_closest_canonical_of_nibabel(orientation: str) -> None:
    volume = _volume(orientation)
    canonical = nib.funcs.as_closest_canonical(nib.nifti1.Nifti1Image(volume.array, volume.affine))
    grid = GridRule("axial").grid(volume)
    np.testing.assert_array_equal(grid.image(volume.array), np.asarray(canonical.dataobj))
    assert grid.shape == canonical.shape
    assert grid.spacing_mm == pytest.approx(canonical.header.get_zooms())


@pytest.mark.parametrize(("slice_axis", "order"), [("axial", (0, 1, 2)), ("coronal", (0, 2, 1)), ("sagittal", (1, 2, 0))])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_lie_last_in_every_orientation_and_masks_go_back_exactly(
    orientation: str, slice_axis: SliceAxis, order: tuple[int, int, int]
) -> None:
    volume = _volume(orientation)
    canonical = np.asarray(nib.funcs.as_closest_canonical(nib.nifti1.Nifti1Image(volume.array, volume.affine)).dataobj)
    grid = GridRule(slice_axis).grid(volume)
    prepared = grid.image(volume.array)
    np.testing.assert_array_equal(prepared, canonical.transpose(order))
    assert np.shares_memory(prepared, volume.array)
    mask = (volume.array % 7).astype(np.uint8)
    restored = grid.restore(grid.mask(mask))
    np.testing.assert_array_equal(restored, mask)
    assert (restored.dtype, restored.flags.c_contiguous) == (np.uint8, True)


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "ILA"])
def test_stored_means_nothing_is_moved(orientation: str) -> None:
    volume = _volume(orientation)
    grid = GridRule("stored").grid(volume)
    assert grid.is_identity
    np.testing.assert_array_equal(grid.image(volume.array), volume.array)
    assert grid.spacing_mm == volume.spacing_mm


def test_oblique_volumes_go_to_the_nearest_orientation() -> None:
    turn = np.deg2rad(20)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0, 0], [np.sin(turn), np.cos(turn), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    straight = _volume("PIR")
    oblique = Volume(straight.array, rotation @ straight.affine)
    grid, expected = GridRule("axial").grid(oblique), GridRule("axial").grid(straight)
    assert (grid.axes, grid.flipped) == (expected.axes, expected.flipped)
    assert grid.spacing_mm == pytest.approx(expected.spacing_mm)


def test_without_geometry_nothing_is_moved_or_resampled() -> None:
    volume = Volume(np.zeros(SHAPE, np.uint8), _affine("PIR"), has_geometry=False)
    assert GridRule("axial", (0.1, 0.1)).grid(volume).is_identity


def test_a_mask_of_another_grid_does_not_go_back() -> None:
    grid = GridRule("axial").grid(_volume("PIR"))
    with pytest.raises(GeometryError, match=r"\(4, 5, 6\) cannot go back to the scan: the network's grid has \(6, 4, 5\)"):
        grid.restore(np.zeros(SHAPE, np.uint8))


# --- in-plane resampling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("stored", [40, 41])
def test_ramps_are_exact_away_from_the_border(stored: int, factor: float) -> None:
    # Pixel p of the resampled grid lies factor * (p - middle) from the middle: a ramp along the rows has that value there.
    plane = _plane(stored, factor)
    assert plane.prepared == (int(np.ceil(stored / factor - 1e-6)), 8)
    ramp = np.repeat(np.arange(stored, dtype=np.float32)[:, None], 8, axis=1)
    places = (stored - 1) / 2 + factor * (np.arange(plane.prepared[0]) - (plane.prepared[0] - 1) / 2)
    far = (places > 8) & (places < stored - 9)
    assert far.sum() > 5
    np.testing.assert_allclose(plane.image(ramp)[far], np.repeat(places[far, None], 8, axis=1), atol=2e-3)


@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.floats(0.5, 3.0), st.floats(0.5, 3.0)),
    st.integers(0, 2**32 - 1),
)
def test_flipping_commutes_and_labels_are_never_invented(size: tuple[int, int], spacing: tuple[float, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    plane = GridRule("stored", spacing).grid(Volume(np.zeros((*size, 1)), np.eye(4))).plane
    if plane is None:
        return
    pixels = rng.normal(100, 30, size).astype(np.float32)
    mask = rng.choice(np.array([0, 3, 200], np.uint8), size)
    for axes in ((0,), (1,), (0, 1)):
        np.testing.assert_allclose(plane.image(np.flip(pixels, axes)), np.flip(plane.image(pixels), axes), atol=1e-3)
    prepared = plane.mask(mask)
    assert prepared.shape == plane.prepared == plane.image(pixels).shape
    assert (prepared.dtype, plane.image(pixels).dtype) == (np.uint8, np.float32)
    restored = plane.restore(prepared)
    assert restored.shape == size
    assert set(np.unique(restored)) <= set(np.unique(prepared)) <= set(np.unique(mask))
    assert np.isfinite(plane.image(pixels)).all()


@pytest.mark.parametrize("value", [0.0, -1024.0, 3071.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("factor", [0.5, 0.9, 2.0, 3.0])
def test_flat_images_stay_flat_down_to_a_single_pixel(size: tuple[int, int], factor: float, value: float) -> None:
    plane = GridRule("stored", (factor, factor)).grid(Volume(np.zeros((*size, 1)), np.eye(4))).plane
    assert plane is not None
    np.testing.assert_allclose(plane.image(np.full(size, value, np.float32)), value, rtol=1e-5)
    assert (plane.restore(plane.mask(np.full(size, 4, np.uint8))) == 4).all()


def test_the_middle_stays_where_it_is() -> None:
    # A symmetric blob in the middle of an odd grid, resampled to an even one: its centre of mass is the middle again.
    i, j = np.mgrid[:31, :31] - 15.0
    blob = np.exp(-(i**2 + j**2) / 18)
    for factor in (0.6, 0.7, 1.7, 2.2):
        plane = GridRule("stored", (factor, factor)).grid(Volume(np.zeros((31, 31, 1)), np.eye(4))).plane
        assert plane is not None
        found = plane.image(blob)
        for axis in (0, 1):
            weight = found.sum(axis=1 - axis)
            centre = float((weight * np.arange(len(weight))).sum() / weight.sum())
            assert centre == pytest.approx((found.shape[axis] - 1) / 2, abs=1e-3)


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.8, 1.0 / 3.0])
def test_a_blob_survives_the_way_there_and_back(factor: float) -> None:
    i, j = np.mgrid[:80, :70]
    angle = np.arctan2(j - 33, i - 41)
    blob = (np.hypot(i - 41, j - 33) < 20 + 4 * np.cos(3 * angle)).astype(np.uint8)
    plane = GridRule("stored", (factor, factor)).grid(Volume(np.zeros((80, 70, 1)), np.eye(4))).plane
    assert plane is not None
    back = plane.restore(plane.mask(blob))
    assert 2 * np.count_nonzero(back & blob) / (np.count_nonzero(back) + np.count_nonzero(blob)) > 0.98


@pytest.mark.parametrize("factor", [1.3, 2.0, 3.0])
def test_a_blob_on_a_coarser_grid_is_right_to_a_pixel_of_it(factor: float) -> None:
    i, j = np.mgrid[:80, :70]
    distance = np.hypot(i - 41, j - 33)
    plane = GridRule("stored", (factor, factor)).grid(Volume(np.zeros((80, 70, 1)), np.eye(4))).plane
    assert plane is not None
    back = plane.restore(plane.mask((distance < 20).astype(np.uint8)))
    assert back[distance < 20 - factor].all()
    assert not back[distance > 20 + factor].any()


def test_on_a_tie_the_lower_class_wins() -> None:
    # Three rows of class a and three of class b, seen by an odd number of rows: the middle one lies halfway.
    for first, second in ((0, 1), (2, 1), (5, 9), (9, 0)):
        mask = np.array([[first]] * 3 + [[second]] * 3, np.uint8)
        plane = Plane((6, 1), (3, 1), (2.0, 1.0))
        assert plane.mask(mask)[:, 0].tolist() == [first, min(first, second), second]


def test_spacings_that_are_the_same_change_nothing() -> None:
    volume = _volume("RAS")
    for spacing in ((0.5, 0.75), (0.5 * 1.0009, 0.75 * 0.9991)):
        grid = GridRule("axial", spacing).grid(volume)
        assert grid.is_identity
        assert grid.spacing_mm == pytest.approx((0.5, 0.75, 3.0))
    assert not GridRule("axial", (0.5 * 1.002, 0.75)).grid(volume).is_identity


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SAL", "IRP"])
def test_the_spacing_asked_for_is_that_of_the_anatomical_axes(orientation: str) -> None:
    volume = _volume(orientation, (12, 14, 16), spacing=(1.0, 1.0, 1.0))
    grid = GridRule("sagittal", (0.5, 2.0)).grid(volume)
    canonical = nib.funcs.as_closest_canonical(nib.nifti1.Nifti1Image(volume.array, volume.affine)).shape
    # In-plane are back–front and foot–head.
    assert grid.shape == (2 * canonical[1], canonical[2] // 2, canonical[0])
    assert grid.spacing_mm == (0.5, 2.0, 1.0)


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "SAL"])
def test_slices_are_resampled_one_by_one(orientation: str) -> None:
    rng = np.random.default_rng(0)
    volume = _volume(orientation, (12, 14, 10), spacing=(1.0, 1.0, 1.0))
    grid = GridRule("axial", (0.7, 1.6)).grid(volume)
    assert grid.plane is not None
    image = rng.normal(size=volume.shape)
    mask = rng.integers(0, 3, volume.shape).astype(np.uint8)
    oriented, prepared, labels = grid.orient(image), grid.image(image), grid.mask(mask)
    assert prepared.shape == labels.shape == grid.shape
    assert prepared.dtype == np.float32
    for k in range(grid.shape[2]):
        np.testing.assert_array_equal(prepared[:, :, k], grid.plane.image(oriented[:, :, k]))
        np.testing.assert_array_equal(labels[:, :, k], grid.plane.mask(np.asarray(grid.orient(mask)[:, :, k], np.uint8)))
    restored = grid.restore(labels)
    assert restored.shape == volume.shape
    # A voxel in the middle of a uniform block comes back as it was.
    block = np.zeros(volume.shape, np.uint8)
    block[3:9, 3:9, 3:9] = 2
    assert (grid.restore(grid.mask(block))[5:7, 5:7, 5:7] == 2).all()


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slice_axis", SLICE_AXES)
@pytest.mark.parametrize("spacing", [None, (0.25, 0.1 + 0.2)])
def test_json_round_trip(slice_axis: SliceAxis, spacing: tuple[float, float] | None) -> None:
    rule = GridRule(slice_axis, spacing)
    assert GridRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    assert GridRule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"slice_axis": "axial"},
        {"slice_axis": "transverse", "spacing_mm": None},
        {"slice_axis": 2, "spacing_mm": None},
        {"slice_axis": "axial", "spacing_mm": None, "more": 1},
        {"slice_axis": "axial", "spacing_mm": 0.5},
        {"slice_axis": "axial", "spacing_mm": [0.5]},
        {"slice_axis": "axial", "spacing_mm": [0.5, 0.5, 0.5]},
        {"slice_axis": "axial", "spacing_mm": [0.5, "0.5", 0.5]},
        {"slice_axis": "axial", "spacing_mm": [0.5, 0.0]},
        {"slice_axis": "axial", "spacing_mm": [0.5, -1.0]},
        {"slice_axis": "axial", "spacing_mm": [0.5, float("nan")]},
        {"slice_axis": "axial", "spacing_mm": [0.5, float("inf")]},
        {"slice_axis": "axial", "spacing_mm": [0.5, True]},
        {"slice_axis": "axial", "spacing_mm": "00"},
    ],
)
def test_damaged_json_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"stored grid rule .* expected slice_axis and spacing_mm"):
        GridRule.from_json(data)


# --- the axis across which slices are cut -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        # Along right, front, head.
        ((0.5, 0.5, 5.0), "axial"),
        ((1.0, 1.0, 1.0), "axial"),
        ((0.5, 5.0, 0.5), "coronal"),
        ((3.0, 0.6, 0.6), "sagittal"),
        ((1.9, 1.0, 1.0), "axial"),
        ((2.0, 1.0, 1.0), "sagittal"),
        ((3.0, 3.0, 0.5), "axial"),
    ],
)
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "LSP", "IAL"])
def test_thick_slices_decide(spacing: tuple[float, float, float], expected: str, orientation: str) -> None:
    anatomical = {letter: spacing[number] for number, pair in enumerate(("LR", "PA", "IS")) for letter in pair}
    first, second, third = (anatomical[letter] for letter in orientation)
    assert choose_slice_axis([_volume(orientation, spacing=(first, second, third))]) == expected


def test_the_most_common_axis_wins_and_unknown_places_stay_as_stored() -> None:
    sagittal, axial = _volume("RAS", spacing=(4.0, 1.0, 1.0)), _volume("RAS", spacing=(1.0, 1.0, 4.0))
    assert choose_slice_axis([sagittal, axial, axial]) == "axial"
    assert choose_slice_axis([sagittal, sagittal, axial]) == "sagittal"
    plain = Volume(np.zeros(SHAPE), np.eye(4), has_geometry=False)
    assert choose_slice_axis([plain]) == "stored"
    assert choose_slice_axis([sagittal, sagittal, plain]) == "stored"


def test_a_grid_is_a_plain_value() -> None:
    # The cache names resampled arrays by it.
    grids = [GridRule("axial", (0.3, 0.3)).grid(_volume("PIR")) for _ in range(2)]
    assert grids[0] == grids[1]
    assert repr(grids[0]) == repr(grids[1])
    assert isinstance(grids[0], PreparedGrid)
