"""The table a run ends with, from made-up documents; figures counted by hand."""

from __future__ import annotations

import pytest

from medquant.report.scoreboard import scoreboard

MEMORY = {
    "parameter_bytes": 1536,
    "paper_bytes": 512,
    "float_bytes": 4096,
    "model_file_bytes": 2048,
    "activation_peak_bytes": 1000,
    "float_activation_peak_bytes": 3072,
    "process_peak_bytes": 3 * 1024**2,
    "input_shape": [1, 1, 8, 8],
    "layers": [],
}


def _summary(mean: float | None, interval: list[float] | None = None) -> dict[str, object]:
    return {"mean": mean, "std": None, "interval_95": interval, "cases": 3, "empty": 0}


def _document(**changes: object) -> dict[str, object]:
    document: dict[str, object] = {
        "bits": {"weights": 4, "activations": 6, "method": "fixed_point"},
        "dice": {"cell": _summary(0.9534, [0.9412, 0.9661]), "membrane": _summary(None)},
        "metrics": {"v_rand": _summary(0.98765)},
        "float_twin": {"dice": {"cell": _summary(0.96), "membrane": _summary(0.5)}, "metrics": {"v_rand": _summary(None)}},
        "baseline": {"all_cell": {"cell": 0.877, "membrane": 0.0}, "all_membrane": {"cell": 0.0, "membrane": 0.36}},
        "memory": MEMORY,
    }
    return {**document, **changes}


def test_a_network_that_is_float_in_part_says_so() -> None:
    # Of the five layers one has float weights, one writes real values; the last one's accumulators are no float.
    bits = [(None, 8), (4, 6), (32, 6), (None, 32), (8, None)]
    layers = [{"weight_bits": weights, "activation_bits": activations} for weights, activations in bits]
    rows = scoreboard(_document(memory={**MEMORY, "layers": layers}, float_twin=None)).rows
    assert rows[0][0] == "W4A6, float in 2 of 5 layers"
    assert scoreboard(_document(memory={**MEMORY, "layers": layers[:2]}, float_twin=None)).rows[0][0] == "W4A6"


def test_network_twin_and_baselines_stand_below_each_other() -> None:
    table = scoreboard(_document())
    assert table.columns == (
        *("network", "Dice cell", "Dice membrane", "v_rand", "parameters", "paper's count", "file", "activations", "process"),
    )
    assert table.rows == (
        ("float twin", "96.00", "50.00", "–", "4.00 KiB", "4.00 KiB", "", "3.00 KiB", ""),
        ("W4A6", "95.34 (94.1–96.6)", "–", "0.9877", "1.50 KiB", "512 B", "2.00 KiB", "1000 B", "3.00 MiB"),
        ("all cell", "87.70", "0.00", "", "", "", "", "", ""),
        ("all membrane", "0.00", "36.00", "", "", "", "", "", ""),
    )


@pytest.mark.parametrize(("weights", "activations", "name"), [(32, 32, "float"), (32, 6, "W32A6"), (4, 32, "W4A32"), (1, 1, "W1A1")])
def test_a_row_is_called_by_its_bits(weights: int, activations: int, name: str) -> None:
    document = _document(bits={"weights": weights, "activations": activations}, float_twin=None)
    assert [row[0] for row in scoreboard(document).rows] == [name, "all cell", "all membrane"]


def test_what_was_not_measured_stays_empty() -> None:
    memory = {**MEMORY, "model_file_bytes": None, "process_peak_bytes": None}
    row = scoreboard(_document(memory=memory, float_twin=None)).rows[0]
    assert row[-5:] == ("1.50 KiB", "512 B", "", "1000 B", "")


def test_a_class_name_with_underscores_keeps_all_but_the_first() -> None:
    document = _document(
        dice={"gray_matter": _summary(0.5)},
        metrics={},
        float_twin=None,
        baseline={"all_background": {"gray_matter": 0.0}, "all_gray_matter": {"gray_matter": 0.017}, "all_void": {"gray_matter": None}},
    )
    # A constant that scores nothing anywhere tells nothing and is left out.
    assert [row[:2] for row in scoreboard(document).rows] == [("W4A6", "50.00"), ("all gray_matter", "1.70")]
