"""Whether two volumes lie on one grid. Expected: positions in millimetres by the affines, nibabel's reorientation."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.data.grids import GRID_TOLERANCE_VOXELS, AxisOrder, axis_order, lay_on
from medquant.data.stored import ArrayCache
from medquant.data.volume import Volume
from medquant.errors import GeometryError

NAMES = ("mask.nii.gz", "image.nii.gz")
ORIENTATIONS = [np.array(list(zip(axes, signs, strict=True))) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def _oblique() -> NDArray[np.float64]:
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 0.7, 5.0])
    affine[:3, 3] = (-11.0, 20.0, 300.0)
    return affine


def _volume(shape: tuple[int, int, int] = (4, 5, 3), affine: NDArray[np.float64] | None = None, **kinds: bool) -> Volume:
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    return Volume(array=values, affine=_oblique() if affine is None else affine, **kinds)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=["".join(map(str, each.ravel())) for each in ORIENTATIONS])
def test_all_48_orders_are_found_and_undone(orientation: NDArray[np.int64], tmp_path: Path) -> None:
    image = _volume()
    turned = nib.Nifti1Image(np.asarray(image.array), image.affine).as_reoriented(orientation)
    mask = Volume(array=np.asarray(turned.dataobj), affine=turned.affine)
    laid, how = lay_on(mask, image, NAMES, ArrayCache(tmp_path))
    np.testing.assert_array_equal(laid.array, image.array)
    np.testing.assert_allclose(laid.affine, image.affine, atol=1e-12)
    assert how == ("same" if np.array_equal(turned.affine, image.affine) else "reordered")
    again, _ = lay_on(mask, image, NAMES, ArrayCache(tmp_path))
    np.testing.assert_array_equal(again.array, image.array)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("share", "fits"), [(0.8, True), (1.2, False)])
def test_tolerance_is_in_voxels(axis: int, share: float, fits: bool) -> None:
    image = _volume()
    moved = image.affine.copy()
    moved[:3, 3] += share * GRID_TOLERANCE_VOXELS * moved[:3, axis]
    if fits:
        assert axis_order(_volume(affine=moved), image, NAMES).is_identity
    else:
        with pytest.raises(
            GeometryError, match=r"mask\.nii\.gz \(shape .* does not lie on the grid of image\.nii\.gz .* expected at most 0\.05"
        ):
            axis_order(_volume(affine=moved), image, NAMES)


@pytest.mark.parametrize("change", ["stretched", "turned", "cropped", "other shape"])
def test_other_grids_are_refused(change: str) -> None:
    image, affine, shape = _volume(), _oblique(), (4, 5, 3)
    if change == "stretched":
        affine[:3, 2] *= 1.05
    elif change == "turned":
        affine[:3, :3] = affine[:3, :3] @ np.array([[0.99, -0.1, 0], [0.1, 0.99, 0], [0, 0, 1]])
    elif change == "cropped":
        shape = (4, 5, 2)
    else:
        shape = (5, 4, 3)
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        axis_order(_volume(shape, affine), image, NAMES)


def test_without_geometry_only_shapes_count(tmp_path: Path) -> None:
    image, mask = _volume(), _volume(affine=np.eye(4), has_geometry=False)
    laid, how = lay_on(mask, image, NAMES, ArrayCache(tmp_path))
    assert how == "assumed"
    assert laid.has_geometry
    np.testing.assert_array_equal(laid.affine, image.affine)
    both, how = lay_on(mask, mask, NAMES, ArrayCache(None))
    assert (both, how) == (mask, "same")
    with pytest.raises(GeometryError, match="says nothing about its place; expected the same shape"):
        lay_on(_volume((5, 4, 3), np.eye(4), has_geometry=False), image, NAMES, ArrayCache(None))


def test_equal_masks_of_two_images_keep_their_places(tmp_path: Path) -> None:
    empty = Volume(array=np.zeros((4, 5, 3), dtype=np.uint8), affine=np.eye(4), has_geometry=False)
    first, second = _volume(), _volume(affine=_oblique() @ np.diag([2.0, 2.0, 1.0, 1.0]))
    cache = ArrayCache(tmp_path)
    for image in (first, second):
        np.testing.assert_array_equal(lay_on(empty, image, NAMES, cache)[0].affine, image.affine)


def test_axis_order_is_a_view() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    moved = AxisOrder((2, 0, 1), (True, False, False)).apply(array)
    assert moved.shape == (4, 2, 3)
    assert moved[0, 1, 2] == array[1, 2, 3]
    assert np.shares_memory(moved, array)
