"""Pictures of a mask: which slices, which way up. Expected: counted by hand, and corners marked in the scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, PreparedCase, prepare_case
from medquant.data.prepared_grid import GridRule, SliceAxis
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
from medquant.report import preview as preview_module
from medquant.report.preview import chosen_slices, write_preview, zoom_box

CLASSES = {0: "background", 1: "organ", 2: "lesion"}


def prepared(array: NDArray[np.generic], affine: NDArray[np.float64], rule: GridRule, has_geometry: bool = True) -> PreparedCase:
    case = Case("c", "c", "", Volume(array, affine, has_geometry), None, "made")
    return prepare_case(case, Preparation(Normalisation("range", 0.0, 100.0), rule), ArrayCache(None))


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [([0, 0, 0, 0], [0, 1, 2, 3]), ([0, 5, 0, 0], [1]), ([1] * 12, [0, 2, 4, 6, 8, 10]), ([0, 0, 9, 9, 9, 0], [2, 3, 4]), ([7], [0])],
)
def test_slices_are_spread_over_the_mask(voxels: list[int], expected: list[int]) -> None:
    assert chosen_slices(np.array(voxels)) == expected


def test_a_picture_is_written_and_is_the_same_each_time(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    case = prepared(random.normal(50, 20, (40, 30, 9)).astype(np.float32), np.diag([1.0, 1.0, 3.0, 1.0]), GridRule("axial"))
    mask = np.zeros((40, 30, 9), dtype=np.uint8)
    mask[10:20, 8:18, 2:7], mask[12:15, 9:12, 4] = 1, 2
    write_preview(tmp_path / "a.png", case, mask, CLASSES)
    write_preview(tmp_path / "b.png", case, mask, CLASSES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    write_preview(tmp_path / "empty.png", case, np.zeros_like(mask), CLASSES)
    shown, empty = (np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("a.png", "empty.png"))
    # Colour is in outlines alone.
    assert np.ptp(shown, axis=2).max() > 100
    assert np.ptp(empty, axis=2).max() == 0


@pytest.mark.parametrize("axis", ["axial", "stored"])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)])
def test_the_patients_right_is_on_the_left_and_the_front_above(
    axis: SliceAxis, flips: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bright where x is large (right) and y is large (front), whichever way the array runs.
    shape = (20, 16, 4)
    places = [np.arange(length) if flip > 0 else np.arange(length)[::-1] for length, flip in zip(shape, flips, strict=True)]
    array = np.zeros(shape, np.float32)
    array[np.ix_(places[0] >= 15, places[1] >= 12, places[2] >= 0)] = 100
    case = prepared(array, np.diag([*np.multiply((1.0, 1.0, 2.0), flips), 1.0]), GridRule(axis))
    seen: list[NDArray[np.generic]] = []
    monkeypatch.setattr(preview_module, "_outline", lambda ax, labels: seen.append(ax.images[0].get_array()))
    write_preview(tmp_path / "a.png", case, np.ones(shape, np.uint8), CLASSES)
    for picture in seen:
        assert picture.shape == (16, 20)
        assert np.argwhere(picture > 50).max(axis=0).tolist() == [3, 4]


def test_a_scan_without_a_place_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((20, 16, 4), np.float32)
    array[:5, :4] = 100
    case = prepared(array, np.eye(4), GridRule("stored"), has_geometry=False)
    seen: list[NDArray[np.generic]] = []
    monkeypatch.setattr(preview_module, "_outline", lambda ax, labels: seen.append(ax.images[0].get_array()))
    write_preview(tmp_path / "a.png", case, np.ones((20, 16, 4), np.uint8), CLASSES)
    assert np.argwhere(seen[0] > 50).max(axis=0).tolist() == [3, 4]


def test_voxels_keep_their_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = prepared(np.zeros((20, 16, 4), np.float32), np.diag([0.5, 2.0, 5.0, 1.0]), GridRule("axial"))
    aspects: list[float] = []
    monkeypatch.setattr(preview_module, "_outline", lambda ax, labels: aspects.append(ax.get_aspect()))
    write_preview(tmp_path / "a.png", case, np.ones((20, 16, 4), np.uint8), CLASSES)
    # A pixel is 0.5 mm wide and 2 mm high.
    assert set(aspects) == {4.0}


@pytest.mark.parametrize(
    ("rows", "columns", "width_to_height", "expected"),
    [
        # 10 by 6 of 100 by 80 pixels around (25, 43): 20 rows and columns.
        ((20, 30), (40, 46), 1.0, (slice(15, 35), slice(33, 53))),
        # Pixels twice as wide as high: half as many columns.
        ((20, 30), (40, 44), 2.0, (slice(15, 35), slice(37, 47))),
        # At the border what the picture has; small masks are not shown voxel by voxel.
        ((0, 2), (79, 80), 1.0, (slice(0, 7), slice(73, 80))),
        # A quarter of one side, or more than that.
        ((20, 45), (40, 46), 1.0, None),
        ((20, 30), (40, 60), 1.0, None),
        ((0, 0), (0, 0), 1.0, None),
    ],
)
def test_small_masks_are_shown_larger(
    rows: tuple[int, int], columns: tuple[int, int], width_to_height: float, expected: tuple[slice, slice] | None
) -> None:
    held = np.zeros((100, 80), dtype=bool)
    held[slice(*rows), slice(*columns)] = True
    assert zoom_box(held, width_to_height) == expected


def test_a_small_mask_has_a_second_panel_below_each_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(50, 10, (60, 50, 3)).astype(np.float32)
    mask = np.zeros(array.shape, np.uint8)
    # (I, J) of the scan: columns and rows of the picture.
    mask[30:36, 20:28, :] = 1
    case = prepared(array, np.eye(4), GridRule("stored"), has_geometry=False)
    seen: list[tuple[NDArray[np.generic], NDArray[np.uint8]]] = []
    monkeypatch.setattr(preview_module, "_outline", lambda ax, labels: seen.append((ax.images[0].get_array(), labels)))
    write_preview(tmp_path / "a.png", case, mask, CLASSES)
    whole, closer = seen[::2], seen[1::2]
    assert [picture.shape for picture, _ in whole] == [(50, 60)] * 3
    # 8 rows and 6 columns: 16 of each, around (24, 33).
    for k, (picture, labels) in enumerate(closer):
        np.testing.assert_array_equal(picture, array[25:41, 16:32, k].T)
        assert labels.sum() == 48
