"""Means over cases with their spread and 95 % interval, and the difference of two runs on the same cases.

A case is one independent unit (a subject, or a slice where a dataset has nothing better). NaN stands for "nothing to
score" and is left out and counted, never taken for a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medquant.errors import InputError

IntervalMethod = Literal["t", "bca", "percentile"]


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval; ends are not clipped to the range of the score."""

    low: float
    high: float
    level: float
    method: IntervalMethod


@dataclass(frozen=True)
class Summary:
    """What a list of case scores comes to.

    Args:
        mean: over the cases that have a score, None where there is none.
        std: sample standard deviation (``ddof=1``), None below two cases.
        interval: of the mean, None below two cases.
        cases: number of cases in the mean.
        empty: number of cases left out because there was nothing to score.
    """

    mean: float | None
    std: float | None
    interval: Interval | None
    cases: int
    empty: int


@dataclass(frozen=True)
class PairedDifference:
    """Second run minus first run, case by case.

    Args:
        summary: of the differences.
        differences: case id → difference, NaN where either run had nothing to score.
        significant: True or False as the interval leaves out or holds 0; None where there is no interval.
    """

    summary: Summary
    differences: Mapping[str, float]
    significant: bool | None


def summarise(
    values: Sequence[float], *, level: float = 0.95, method: IntervalMethod = "t", resamples: int = 9999, seed: int = 0
) -> Summary:
    """Mean, standard deviation and interval of the mean.

    Args:
        values: one score a case; NaN marks a case with nothing to score.
        level: coverage of the interval, between 0 and 1.
        method: Student's t, or the bootstrap (bias-corrected and accelerated, or plain percentile). The bootstrap is too
            narrow below about ten cases; t is the safer choice there.
        resamples: bootstrap draws.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        InputError: ``level`` is not between 0 and 1, or a value is infinite.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"the level of an interval lies between 0 and 1, found {level}")
    given = np.asarray(values, dtype=np.float64).reshape(-1)
    if np.isinf(given).any():
        raise InputError("a score is infinite: no mean can be taken; check the metric of that case")
    scored = given[~np.isnan(given)]
    count, empty = int(scored.size), int(given.size - scored.size)
    mean = float(scored.mean()) if count else None
    if count < 2:
        return Summary(mean=mean, std=None, interval=None, cases=count, empty=empty)
    std = float(scored.std(ddof=1))
    low, high = _t_ends(scored, level) if method == "t" else _bootstrap_ends(scored, level, method, resamples, seed)
    return Summary(mean=mean, std=std, interval=Interval(low, high, level, method), cases=count, empty=empty)


def paired_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    level: float = 0.95,
    method: IntervalMethod = "t",
    resamples: int = 9999,
    seed: int = 0,
) -> PairedDifference:
    """Mean of ``second − first`` over the same cases, with its interval.

    Differences of the same case cancel what makes a case easy or hard, so the interval is narrower than that of two means.

    Args:
        first: case id → score of the run compared against.
        second: case id → score of the other run.
        level: as :func:`summarise`.
        method: as :func:`summarise`.
        resamples: as :func:`summarise`.
        seed: as :func:`summarise`.

    Raises:
        InputError: the two runs were not scored on the same cases.
    """
    odd = sorted(set(first) ^ set(second))
    if odd:
        named = ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")
        raise InputError(f"the runs were scored on different cases, {len(odd)} are in one only ({named}): evaluate both on one split")
    differences = {case: second[case] - first[case] for case in first}
    summary = summarise(list(differences.values()), level=level, method=method, resamples=resamples, seed=seed)
    significant = None if summary.interval is None else not summary.interval.low <= 0.0 <= summary.interval.high
    return PairedDifference(summary=summary, differences=differences, significant=significant)


def _t_ends(scored: NDArray[np.float64], level: float) -> tuple[float, float]:
    """``mean ± t · s / √n`` with n − 1 degrees of freedom."""
    from scipy import stats

    mean = float(scored.mean())
    half = float(stats.t.ppf(0.5 + level / 2.0, df=scored.size - 1)) * float(scored.std(ddof=1)) / math.sqrt(scored.size)
    return mean - half, mean + half


def _bootstrap_ends(scored: NDArray[np.float64], level: float, method: IntervalMethod, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile ends of the mean's bootstrap distribution, or the BCa ends (Efron 1987)."""
    from scipy import stats

    if np.ptp(scored) == 0.0:  # every resample is the same: the interval is a point, and BCa would divide by zero
        return float(scored[0]), float(scored[0])
    rng = np.random.default_rng(seed)
    means = rng.choice(scored, size=(resamples, scored.size)).mean(axis=1)
    shares = np.asarray([0.5 - level / 2.0, 0.5 + level / 2.0])
    if method == "bca":
        mean = scored.mean()
        below = (np.count_nonzero(means < mean) + 0.5 * np.count_nonzero(means == mean)) / resamples
        bias = stats.norm.ppf(below)
        left_out = (scored.sum() - scored) / (scored.size - 1)
        lean = left_out.mean() - left_out
        acceleration = (lean**3).sum() / (6.0 * (lean**2).sum() ** 1.5)
        reach = bias + stats.norm.ppf(shares)
        shares = stats.norm.cdf(bias + reach / (1.0 - acceleration * reach))
    low, high = np.quantile(means, shares)
    return float(low), float(high)
