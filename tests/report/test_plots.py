"""Plots: axes and texts are read off the figure before it is written, the file is read back with Pillow."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medquant.errors import InputError
from medquant.report import plots
from medquant.report.plots import DicePoint, dice_against_memory, training_curves

MIB = 1024**2
POINTS = [
    DicePoint("float", 8 * MIB, 0.955, 0.941, 0.962, "cell"),
    DicePoint("w8/a8", 2 * MIB, 0.954, 0.945, 0.963, "cell"),
    DicePoint("w4/a6", MIB, 0.953, 0.944, 0.963, "cell"),
    DicePoint("w4/a4", MIB, 0.952, None, None, "cell"),
    DicePoint("w4/a6", MIB, 0.80, None, None, "membrane"),
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written while the test runs."""
    seen: list[Figure] = []
    write = plots.save_png

    def record(figure: Figure, out_path: Path, *, dpi: int = 110) -> None:
        seen.append(figure)
        write(figure, out_path, dpi=dpi)

    monkeypatch.setattr(plots, "save_png", record)
    return seen


def ink(path: Path) -> float:
    """Share of pixels that are not white."""
    with Image.open(path) as picture:
        return float((np.asarray(picture.convert("L")) < 250).mean())


def records(*stages: tuple[str, int]) -> list[dict[str, object]]:
    return [
        {"stage": stage, "epoch": e, "train_loss": 1.0 / (e + 1), "val_dice": {"cell": 0.9, "membrane": 0.5 + 0.01 * e}, "lr": 1e-3}
        for stage, count in stages
        for e in range(count)
    ]


def test_one_panel_a_class_and_sizes_in_binary_units(figures: list[Figure], tmp_path: Path) -> None:
    dice_against_memory(POINTS, tmp_path / "a.png")
    cell, membrane = figures[0].axes
    assert cell.get_title().startswith("cell")
    assert membrane.get_title() == "membrane"
    assert cell.get_xscale() == "log"
    assert {"1 MiB", "2 MiB", "4 MiB", "8 MiB"} <= {tick.get_text() for tick in cell.get_xticklabels()}
    assert "512 KiB" in {tick.get_text() for tick in membrane.get_xticklabels()}
    assert ink(tmp_path / "a.png") > 0.005


def test_the_axis_says_where_it_starts(figures: list[Figure], tmp_path: Path) -> None:
    dice_against_memory(POINTS[:4], tmp_path / "a.png")
    dice_against_memory([DicePoint("bad", MIB, 0.001, None, None, "cell")], tmp_path / "b.png")
    (high,), (low,) = figures[0].axes, figures[1].axes
    assert f"axis starts at {high.get_ylim()[0]:.2f}" in high.get_ylabel()
    assert high.get_ylim()[0] > 90
    assert low.get_ylim()[0] == 0.0
    assert "starts" not in low.get_ylabel()


def test_points_and_bars_stand_where_they_belong(figures: list[Figure], tmp_path: Path) -> None:
    dice_against_memory(POINTS[:2], tmp_path / "a.png", baselines={"cell": 0.876})
    (ax,) = figures[0].axes
    drawn = [container.lines[0].get_xydata()[0].tolist() for container in ax.containers]  # type: ignore[attr-defined]
    assert drawn == [pytest.approx([8 * MIB, 95.5]), pytest.approx([2 * MIB, 95.4])]
    bar = ax.containers[0].lines[2][0].get_segments()[0]  # type: ignore[attr-defined]
    assert bar[:, 1].tolist() == pytest.approx([94.1, 96.2])
    assert ax.get_ylim()[0] < 87.6
    assert any("87.6" in text.get_text() for text in ax.texts)


def test_points_of_equal_size_stand_side_by_side_within_a_few_percent() -> None:
    places = plots._side_by_side([MIB, 2 * MIB, MIB])
    assert places[1] == 2 * MIB
    assert places[0] < MIB < places[2]
    assert places[2] / places[0] == pytest.approx(2**0.08)


def test_every_point_is_named_and_no_name_covers_another(figures: list[Figure], tmp_path: Path) -> None:
    crowd = [DicePoint(f"w{n}/a{n} $_{{$", MIB + n * 9000, 0.95 + 0.0001 * n, None, None, "cell") for n in range(6)]
    dice_against_memory(crowd, tmp_path / "a.png")
    (ax,) = figures[0].axes
    names = [text for text in ax.texts if text.get_text().startswith("w")]
    assert sorted(text.get_text() for text in names) == sorted(point.label for point in crowd)
    from matplotlib.text import Text

    boxes = [Text.get_window_extent(text) for text in names]
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
    assert overlaps == []


def test_points_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model"):
        dice_against_memory([], tmp_path / "a.png")
    for bad in (DicePoint("zero", 0, 0.9, None, None, "cell"), DicePoint("nan", MIB, math.nan, None, None, "cell")):
        with pytest.raises(InputError, match=bad.label):
            dice_against_memory([bad], tmp_path / "a.png")


def test_stages_are_laid_end_to_end_and_lines_break_between_them(figures: list[Figure], tmp_path: Path) -> None:
    training_curves(records(("float", 4), ("fixed_point", 3)), tmp_path / "a.png")
    loss = figures[0].axes[0]
    x = loss.lines[0].get_xdata()
    y = np.asarray(loss.lines[0].get_ydata(), dtype=float)
    assert np.asarray(x, dtype=float).tolist() == [0, 1, 2, 3, 3.5, 4, 5, 6]
    assert np.isnan(y).tolist() == [False] * 4 + [True] + [False] * 3
    assert [text.get_text() for text in loss.texts] == ["float", "fixed_point"]
    assert len(loss.patches) == 1  # the second stage is shaded
    assert ink(tmp_path / "a.png") > 0.01


def test_epochs_counted_through_are_kept(figures: list[Figure], tmp_path: Path) -> None:
    run = records(("float", 6))
    for i in range(3, 6):
        run[i]["stage"] = "fixed_point"
    training_curves(run, tmp_path / "a.png")
    assert figures[0].axes[0].get_xlim() == (-0.5, 5.5)


def test_every_class_has_a_curve_in_percent_with_its_own_dashes(figures: list[Figure], tmp_path: Path) -> None:
    training_curves(records(("float", 4)), tmp_path / "a.png")
    dice = figures[0].axes[1]
    curves = {line.get_label(): line for line in dice.lines}
    assert set(curves) == {"cell", "membrane"}
    assert np.asarray(curves["membrane"].get_ydata(), dtype=float).tolist() == pytest.approx([50, 51, 52, 53])
    assert curves["cell"].get_linestyle() != curves["membrane"].get_linestyle()
    assert "axis starts at" in dice.get_ylabel()


def test_epochs_without_validation_are_left_out(figures: list[Figure], tmp_path: Path) -> None:
    run = records(("float", 4))
    run[1]["val_dice"] = None
    del run[2]["val_dice"]
    run[3]["train_loss"] = math.nan
    run[1]["lr"] = 10**400  # JSON has no largest number
    training_curves(run, tmp_path / "a.png")
    loss, dice, _ = figures[0].axes
    assert np.asarray(dice.lines[0].get_xdata(), dtype=float).tolist() == [0, 3]
    assert np.asarray(loss.lines[0].get_xdata(), dtype=float).tolist() == [0, 1, 2]


def test_a_run_of_one_epoch_without_validation_is_drawn(tmp_path: Path) -> None:
    training_curves([{"stage": "float", "epoch": 1, "train_loss": 0.5, "val_dice": None, "lr": 1e-3}], tmp_path / "a.png")
    assert ink(tmp_path / "a.png") > 0.002


def test_no_record_or_no_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        training_curves([], tmp_path / "a.png")
    with pytest.raises(InputError, match="epoch None"):
        training_curves([{"stage": "float"}], tmp_path / "a.png")
    with pytest.raises(InputError, match="outside 0 to 1e"):
        training_curves([{"stage": "float", "epoch": 10**400}], tmp_path / "a.png")
