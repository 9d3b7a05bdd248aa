"""The learning rate against its formula."""

from __future__ import annotations

from math import cos, pi

import pytest

from medquant.train.schedule import learning_rate


def test_it_rises_linearly_over_a_twentieth_of_the_steps() -> None:
    rates = [learning_rate(1.0, step, 100) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_it_falls_along_half_a_cosine_to_a_hundredth() -> None:
    # 105 steps: 5 rising, 100 falling, so step 55 is half way down.
    assert learning_rate(2.0, 5, 105) == pytest.approx(2.0)
    assert learning_rate(2.0, 55, 105) == pytest.approx(2.0 * 0.505)
    assert learning_rate(2.0, 104, 105) == pytest.approx(2.0 * (0.01 + 0.99 * (1 + cos(pi * 99 / 100)) / 2))
    assert learning_rate(2.0, 105, 105) == pytest.approx(0.02)


def test_the_peak_is_never_exceeded_and_the_fall_never_turns() -> None:
    rates = [learning_rate(1e-3, step, 240) for step in range(240)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[12:] == sorted(rates[12:], reverse=True)
    assert min(rates) > 0


def test_a_stage_of_one_step_runs_at_the_peak() -> None:
    assert learning_rate(0.5, 0, 1) == 0.5


def test_the_paper_divides_by_ten_at_every_fifth() -> None:
    rates = [learning_rate(1.0, step, 200, "paper_steps") for step in (0, 39, 40, 80, 120, 160, 199)]
    assert rates == pytest.approx([1, 1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-4])


def test_a_cosine_to_zero_has_no_warm_up() -> None:
    assert [learning_rate(2.0, step, 4, "cosine_to_zero") for step in (0, 2, 4)] == pytest.approx([2.0, 1.0, 0.0])
