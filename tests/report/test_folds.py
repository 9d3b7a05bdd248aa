"""Runs that tested different cases, joined into one table; means, deviations and ranges by hand."""

from __future__ import annotations

import pytest

from medquant.errors import InputError
from medquant.report.folds import are_folds, folds_table


def _document(cases: dict[str, float], twin: dict[str, float] | None = None, bits: tuple[int, int] = (4, 6)) -> dict[str, object]:
    def listed(values: dict[str, float]) -> list[dict[str, object]]:
        return [{"id": name, "dice": {"organ": value}} for name, value in values.items()]

    return {
        "bits": {"weights": bits[0], "activations": bits[1]},
        "data": {"content_sha256": "abc"},
        "split": {"cases": list(cases), "rule": f"site {next(iter(cases))} held out for testing"},
        "dice": {"organ": {"mean": 0.5}},
        "cases": listed(cases),
        "float_twin": None if twin is None else {"cases": listed(twin)},
        "memory": {"parameter_bytes": 1024, "float_bytes": 8192},
    }


def test_one_row_over_all_cases() -> None:
    documents = [_document({"a": 0.8, "b": 0.9}, {"a": 0.9, "b": 0.9}), _document({"c": 0.4}, {"c": 0.6})]
    assert are_folds(documents)
    table, figures = folds_table(documents)
    # 80, 90, 40: mean 70, deviations 10, 20, -30, so the variance is 1400 / 2. 90, 90, 60: mean 80, variance 600 / 2.
    assert table.rows == (
        ("W4A6", "2", "3", "70.00 ± 26.46 (40.0–90.0)", "1.00 KiB"),
        ("float twin of W4A6", "2", "3", "80.00 ± 17.32 (60.0–90.0)", "8.00 KiB"),
    )
    assert [fold["name"] for fold in figures["W4A6"]["folds"]] == ["site a", "site c"]  # type: ignore[index]


def test_runs_of_the_same_cases_are_no_folds() -> None:
    assert not are_folds([_document({"a": 0.8}), _document({"a": 0.9})])


def test_a_case_is_tested_once_by_each_bit_width() -> None:
    table, _ = folds_table([_document({"a": 0.8}), _document({"b": 0.6}), _document({"a": 0.7}, bits=(2, 4))])
    assert [row[0] for row in table.rows] == ["W4A6", "W2A4"]
    with pytest.raises(InputError, match="case b is tested by"):
        folds_table([_document({"a": 0.8, "b": 0.1}), _document({"b": 0.6})])
