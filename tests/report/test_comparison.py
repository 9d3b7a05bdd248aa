"""Runs side by side, from made-up documents; means, deviations and intervals by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from medquant.errors import InputError
from medquant.report import comparison as comparison_module
from medquant.report.comparison import comparison_table, draw_comparison, group_runs
from medquant.report.plots import DicePoint


def _document(bits: tuple[int, int], cell: float | None, twin: float | None = None, **memory: int) -> dict[str, object]:
    sizes = {"parameter_bytes": 1024, "paper_bytes": 512, "float_bytes": 8192, "activation_peak_bytes": 2048, "process_peak_bytes": None}
    return {
        "bits": {"weights": bits[0], "activations": bits[1], "method": "fixed_point"},
        "data": {"content_sha256": "abc"},
        "split": {"cases": ["a", "b"]},
        "dice": {"cell": {"mean": cell}},
        "metrics": {"v_rand": {"mean": 0.5}},
        "float_twin": None if twin is None else {"dice": {"cell": {"mean": twin}}},
        "memory": {**sizes, "model_file_bytes": 3072, **memory},
    }


THREE = [_document((4, 6), 0.90, 0.93), _document((4, 6), 0.92, 0.92), _document((4, 6), 0.94, 0.96, model_file_bytes=4096)]


def test_runs_of_one_width_are_one_row_widest_first() -> None:
    groups = group_runs([_document((2, 6), 0.8), _document((4, 8), 0.9), *THREE, _document((32, 32), 0.95)])
    assert [(group.label, len(group.documents)) for group in groups] == [("float", 1), ("W4A8", 1), ("W4A6", 3), ("W2A6", 1)]


def test_means_deviations_and_losses_by_hand() -> None:
    table = comparison_table(group_runs([*THREE, _document((32, 32), 0.95)]))
    assert table.columns == (
        *("network", "seeds", "Dice cell", "vs float", "v_rand", "parameters", "paper's count", "file", "activations", "process"),
    )
    # 90, 92, 94 deviate by 2; losses of 3, 0 and 2 are 5/3 on average; the largest of the files counts.
    assert table.rows == (
        ("float", "1", "95.00", "", "0.5000", "1.00 KiB", "512 B", "3.00 KiB", "2.00 KiB", "–"),
        ("W4A6", "3", "92.00 ± 2.00", "-1.67", "0.5000 ± 0.0000", "1.00 KiB", "512 B", "4.00 KiB", "2.00 KiB", "–"),
    )


def test_a_gain_over_the_twin_carries_its_sign() -> None:
    assert comparison_table(group_runs([_document((4, 6), 0.95, 0.94)])).rows[0][3] == "+1.00"


def test_points_carry_t_intervals_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[DicePoint] = []
    monkeypatch.setattr(comparison_module, "dice_against_memory", lambda points, _: drawn.extend(points))
    draw_comparison(group_runs([*THREE, _document((32, 32), 0.95)]), Path("unused.png"))
    single, seeds = drawn
    assert single == DicePoint("float", 8192, 0.95, None, None, "cell")
    # Three values with deviation 0.02; Student's t at 97.5 % with two degrees of freedom is 4.302653.
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert (seeds.label, seeds.low, seeds.high) == ("W4A6", pytest.approx(0.92 - half, abs=1e-6), pytest.approx(0.92 + half, abs=1e-6))


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw_comparison(group_runs([*THREE, _document((32, 32), 0.95)]), tmp_path / "dice.png")
    with Image.open(tmp_path / "dice.png") as image:
        assert min(image.size) > 200


def test_runs_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="no run to compare"):
        group_runs([])
    base = _document((4, 6), 0.9)
    for key, value in (("data", {"content_sha256": "other"}), ("split", {"cases": ["a"]}), ("dice", {"nucleus": {"mean": 0.9}})):
        with pytest.raises(InputError, match="different data, cases or classes"):
            group_runs([base, {**base, key: value}])


def test_runs_that_were_scored_otherwise_are_no_seeds_of_each_other() -> None:
    plain = {**_document((4, 6), 0.9), "network": {"name": "unet"}}
    other = {**plain, "scoring": {"threshold": 0.999, "protocol": "paper", "batch_statistics": False, "hard_ternary": False}}
    # An older run does not say how it was scored: at one half, by case.
    said = {**plain, "scoring": {"threshold": 0.5, "protocol": "ours", "batch_statistics": False, "hard_ternary": False}}
    groups = [(group.label, len(group.documents)) for group in group_runs([plain, said, other])]
    assert groups == [("W4A6 protocol=ours, threshold=0.5", 2), ("W4A6 protocol=paper, threshold=0.999", 1)]


def test_a_class_nothing_could_be_scored_for_is_a_dash(tmp_path: Path) -> None:
    groups = group_runs([_document((4, 6), None, None), _document((4, 6), None, None), _document((2, 6), 0.5, 0.75)])
    assert [row[2:4] for row in comparison_table(groups).rows] == [("–", ""), ("50.00", "-25.00")]
    draw_comparison(groups, tmp_path / "dice.png")
    assert (tmp_path / "dice.png").exists()


def test_a_run_without_a_score_does_not_spoil_the_others() -> None:
    row = comparison_table(group_runs([_document((4, 6), None, 0.5), _document((4, 6), 0.9, 0.95)])).rows[0]
    assert row[:4] == ("W4A6", "2", "90.00", "-5.00")


def test_runs_of_different_networks_are_not_averaged() -> None:
    small, large = ({**_document((4, 6), 0.9), "network": {"channels": channels, "layer_bits": []}} for channels in (2, 8))
    assert len(group_runs([small, dict(small)])[0].documents) == 2
    groups = group_runs([small, large, small])
    assert [(group.label, len(group.documents)) for group in groups] == [("W4A6 channels=2", 2), ("W4A6 channels=8", 1)]
    named = [{**each, "network": {**each["network"], "name": name}} for each, name in ((small, "unet"), (large, "dynunet"))]
    assert [group.label for group in group_runs(named)] == ["W4A6 dynunet, channels=8", "W4A6 unet, channels=2"]
    assert [group.label for group in group_runs([small, large, _document((4, 6), 0.9)])][2] == "W4A6 network not recorded"


def test_runs_of_different_methods_or_options_are_rows_of_their_own() -> None:
    def run(bits: tuple[int, int], dice: float, method: str, **options: object) -> dict[str, object]:
        stated = {"weights": bits[0], "activations": bits[1], "method": method, "options": options}
        return {**_document(bits, dice), "bits": stated}

    groups = group_runs(
        [
            run((8, 8), 0.9, "fixed_point"),
            run((8, 8), 0.5, "uniform"),
            run((8, 8), 0.4, "uniform", scale="real"),
            run((8, 8), 0.7, "fixed_point"),
            run((32, 32), 0.9, "fixed_point"),
            run((32, 32), 0.9, "binary"),
        ]
    )
    assert [(group.label, len(group.documents)) for group in groups] == [
        ("float", 2),
        ("W8A8", 2),
        ("W8A8 uniform", 1),
        ("W8A8 uniform scale=real", 1),
    ]
