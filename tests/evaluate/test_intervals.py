"""Intervals: expected values come from printed t tables, from scipy.stats, and from a coverage count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medquant.errors import InputError
from medquant.evaluate.intervals import paired_difference, summarise

SCORES = [0.951, 0.962, 0.948, 0.913, 0.957, 0.944, 0.966, 0.902, 0.939, 0.955]


def test_three_values_by_hand() -> None:
    # mean 2, s = 1, and a printed t table gives t(0.975; 2) = 4.3027
    summary = summarise([1.0, 2.0, 3.0])
    assert (summary.mean, summary.std, summary.cases, summary.empty) == (2.0, 1.0, 3, 0)
    assert summary.interval is not None
    assert summary.interval.low == pytest.approx(2.0 - 4.3027 / math.sqrt(3), abs=1e-4)
    assert summary.interval.high == pytest.approx(2.0 + 4.3027 / math.sqrt(3), abs=1e-4)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_t_interval_equals_scipy(level: float) -> None:
    expected = stats.ttest_1samp(SCORES, 0.0).confidence_interval(level)
    interval = summarise(SCORES, level=level).interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert (interval.level, interval.method) == (level, "t")


@pytest.mark.parametrize(("method", "scipy_name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_bootstrap_agrees_with_scipy(method: str, scipy_name: str) -> None:
    expected = stats.bootstrap((SCORES,), np.mean, n_resamples=20000, method=scipy_name, rng=np.random.default_rng(5)).confidence_interval
    interval = summarise(SCORES, method=method, resamples=20000).interval  # type: ignore[arg-type]
    assert interval is not None
    # both draw at random: the ends differ by their own sampling error, far below the width of about 0.025
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=7e-4)


def test_bca_leans_the_way_the_skew_does() -> None:
    percentile, bca = summarise(SCORES, method="percentile").interval, summarise(SCORES, method="bca").interval
    assert percentile is not None
    assert bca is not None
    assert stats.skew(SCORES) < 0
    assert bca.low < percentile.low - 5e-4


def test_bootstrap_is_the_same_for_the_same_seed() -> None:
    first, second = summarise(SCORES, method="bca", seed=1), summarise(SCORES, method="bca", seed=1)
    other = summarise(SCORES, method="bca", seed=2)
    assert first == second
    assert first != other


def test_nothing_to_score_is_left_out_and_counted() -> None:
    summary = summarise([0.5, math.nan, 0.7, math.nan])
    assert (summary.mean, summary.cases, summary.empty) == (pytest.approx(0.6), 2, 2)


def test_one_case_has_a_mean_but_no_interval() -> None:
    summary = summarise([0.5, math.nan])
    assert (summary.mean, summary.std, summary.interval, summary.cases, summary.empty) == (0.5, None, None, 1, 1)


def test_no_case_has_no_mean() -> None:
    assert (summarise([]).mean, summarise([math.nan]).mean, summarise([math.nan]).empty) == (None, None, 1)


@pytest.mark.parametrize("method", ["t", "bca", "percentile"])
def test_equal_scores_give_a_point(method: str) -> None:
    interval = summarise([0.25, 0.25, 0.25], method=method).interval  # type: ignore[arg-type]
    assert interval is not None
    assert (interval.low, interval.high) == (0.25, 0.25)


def test_t_interval_holds_the_mean_95_times_in_100() -> None:
    # 2000 draws: the count's own standard deviation is 0.5 %, so 2 % is four of them
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        interval = summarise(rng.normal(3.0, 2.0, 5).tolist()).interval
        held += interval is not None and interval.low <= 3.0 <= interval.high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_paired_difference_equals_scipys_paired_test() -> None:
    rng = np.random.default_rng(2)
    first = {f"case{i}": value for i, value in enumerate(SCORES)}
    second = {case: value + 0.01 + rng.normal(0, 0.004) for case, value in first.items()}
    second = dict(reversed(second.items()))  # order of cases must not matter
    result = paired_difference(first, second)
    expected = stats.ttest_rel([second[case] for case in first], list(first.values())).confidence_interval(0.95)
    assert result.summary.interval is not None
    assert (result.summary.interval.low, result.summary.interval.high) == pytest.approx((expected.low, expected.high))
    assert result.summary.mean == pytest.approx(0.01, abs=0.004)
    assert result.significant is True
    assert paired_difference(first, first | {"case0": 0.9515}).significant is False


def test_paired_difference_counts_cases_without_a_score() -> None:
    result = paired_difference({"a": 0.5, "b": math.nan}, {"a": 0.75, "b": 0.5})
    assert (result.summary.mean, result.summary.cases, result.summary.empty, result.significant) == (0.25, 1, 1, None)
    assert math.isnan(result.differences["b"])


def test_different_cases_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"2 are in one only \(b, c\)"):
        paired_difference({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        summarise([1.0, 2.0], level=95.0)
    with pytest.raises(InputError, match="infinite"):
        summarise([1.0, -math.inf])
