"""Overlays: colours of single pixels computed by hand, and the written picture read back with Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medquant.errors import InputError, UsageError
from medquant.report.overlay import MethodPanel, OverlayRow, focus, overlay_figure, overlay_rgb

# four pixels along i, two along j; grey 0 and 100 at the ends fix the window
IMAGE = np.array([[0.0, 0.0], [0.0, 100.0], [100.0, 100.0], [0.0, 100.0]])
TRUTH = np.array([[0, 0], [2, 2], [2, 1], [1, 0]], dtype=np.uint8)
PREDICTION = np.array([[0, 0], [2, 0], [0, 2], [1, 2]], dtype=np.uint8)


def test_colours_by_hand() -> None:
    rgb = overlay_rgb(IMAGE, TRUTH, PREDICTION, 2)
    assert rgb.shape == (2, 4, 3)
    assert rgb.dtype == np.uint8
    # rgb[j, i]: i runs to the right, j downwards
    assert rgb[0, 0].tolist() == [0, 0, 0]  # neither, black
    assert rgb[0, 1].tolist() == [128, 88, 0]  # both on black: half of (255, 175, 0), halves to even
    assert rgb[1, 1].tolist() == [229, 79, 94]  # missed on white: 63.75 + 0.75 · (220, 20, 40)
    assert rgb[0, 2].tolist() == [229, 79, 94]
    assert rgb[1, 2].tolist() == [94, 146, 255]  # false on white: 63.75 + 0.75 · (40, 110, 255)
    assert rgb[0, 3].tolist() == [0, 0, 0]  # another class, right or wrong, is not painted
    assert rgb[1, 3].tolist() == [94, 146, 255]


def test_the_window_leaves_out_the_extreme_half_percent() -> None:
    image = np.linspace(0.0, 1.0, 10_000).reshape(100, 100)
    image[0, 0], image[99, 99] = -50.0, 900.0
    grey = overlay_rgb(image, *np.zeros((2, 100, 100), dtype=np.uint8), 1)[:, :, 0]
    assert grey[0, 0] == 0
    assert grey[99, 99] == 255
    # the middle of the ramp stays in the middle of the greys although one pixel is 900
    assert int(grey[50, 50]) == pytest.approx(128, abs=3)


def test_an_even_image_is_mid_grey_and_a_lone_bright_pixel_is_seen() -> None:
    nothing = np.zeros((20, 20), dtype=np.uint8)
    assert np.unique(overlay_rgb(np.full((20, 20), 7.0), nothing, nothing, 1)).tolist() == [128]
    lone = np.zeros((20, 20))
    lone[3, 4] = 1.0
    rgb = overlay_rgb(lone, nothing, nothing, 1)
    assert rgb[4, 3].tolist() == [255, 255, 255]
    assert rgb.sum() == 3 * 255


def test_anatomy_shows_through_every_colour() -> None:
    image = np.tile([[0.0, 100.0]], (4, 1))
    truth = np.array([[1, 1], [1, 1], [0, 0], [0, 0]])
    prediction = np.array([[1, 1], [0, 0], [1, 1], [0, 0]])
    rgb = overlay_rgb(image, truth, prediction, 1).astype(int)
    assert (rgb[1] - rgb[0] > 50).all()


def test_focus_frames_what_either_mask_holds() -> None:
    truth, prediction = np.zeros((2, 50, 40), dtype=np.uint8)
    truth[10:14, 20:30] = 1
    prediction[12:18, 20:22] = 1
    prediction[0, 0] = 2
    assert focus([truth, prediction], 1) == (slice(6, 22), slice(15, 35))
    assert focus([truth, prediction], 1, margin=10.0) == (slice(0, 50), slice(0, 40))
    assert focus([truth, prediction], 3) is None


def test_unfit_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        overlay_rgb(IMAGE, TRUTH.T, PREDICTION, 1)
    with pytest.raises(InputError, match="1 NaN or infinite"):
        overlay_rgb(np.array([[np.nan, 1.0]]), TRUTH[:1], TRUTH[:1], 1)


def _row(methods: int = 2, **changes: object) -> OverlayRow:
    ramp = np.linspace(0, 1, 64 * 48).reshape(64, 48)
    truth = np.zeros((64, 48), dtype=np.uint8)
    truth[20:40, 10:30] = 1
    panels = tuple(MethodPanel(f"m{n} $x$ _{n}", np.roll(truth, 4 * n, axis=0), 0.9 - 0.1 * n) for n in range(methods))
    values: dict[str, object] = {
        "title": "case $\\frac{$",
        "image": ramp,
        "truth": truth,
        "class_number": 1,
        "class_name": "cell",
        "methods": panels,
    }
    return OverlayRow(**(values | changes))  # type: ignore[arg-type]


def test_figure_holds_every_colour_and_odd_names_are_text(tmp_path: Path) -> None:
    target = tmp_path / "overlay.png"
    overlay_figure([_row(), _row()], target)
    with Image.open(target) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert picture.width > 1200  # four panels
        assert picture.height > 400  # two rows
    present = {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}
    # the three colours of the key, opaque
    assert {(255, 175, 0), (220, 20, 40), (40, 110, 255)} <= present
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.png"]


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        overlay_figure([_row(1)], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_slices_of_any_shape_spacing_and_zoom_are_drawn(tmp_path: Path) -> None:
    thin = OverlayRow(
        "thin",
        np.zeros((300, 8)),
        np.zeros((300, 8), np.uint8),
        1,
        "x",
        (MethodPanel("m", np.zeros((300, 8), np.uint8), None),),
        (1.0, 4.0),
    )
    overlay_figure([thin, _row(1, zoom=(slice(18, 44), slice(8, 32)))], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 300


def test_rows_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for rows in ([], [_row(0)], [_row(1), _row(2)]):
        with pytest.raises(InputError, match="same number of methods"):
            overlay_figure(rows, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        overlay_figure([_row(1)], tmp_path / "nowhere" / "a.png")


def test_no_window_system_and_no_global_figures_are_touched(tmp_path: Path) -> None:
    import sys

    before = "matplotlib.pyplot" in sys.modules
    overlay_figure([_row(1)], tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_real_em_slice_shows_its_membranes(shared_data: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    from scipy import ndimage

    image = tifffile.imread(shared_data / "isbi_em" / "train-volume.tif", key=0).T.astype(np.float32)
    cell = (tifffile.imread(shared_data / "isbi_em" / "train-labels.tif", key=0).T > 0).astype(np.uint8)
    small = ndimage.binary_erosion(cell).astype(np.uint8)
    rgb = overlay_rgb(image, cell, small, 0).astype(int)
    # eroded cells give false membrane and no missed one: blue is stronger than red exactly on the eroded pixels
    bluish = (rgb[..., 2] > rgb[..., 0]).T
    assert (bluish == ((cell == 1) & (small == 0))).all()
    overlay_figure([OverlayRow("slice 0", image, cell, 0, "membrane", (MethodPanel("eroded", small, 0.86),))], tmp_path / "em.png")
    with Image.open(tmp_path / "em.png") as picture:
        assert picture.width >= 3 * 500  # one pixel of the slice is about one of the picture
