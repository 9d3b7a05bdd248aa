"""The smallest plan within a loss: looked for by bisection and chosen, over plans whose bytes are given; budgets worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from medquant.search import bit_search
from medquant.search.bit_search import choose
from medquant.search.candidates import Candidate
from medquant.search.request import SearchSettings
from medquant.search.result import CandidateResult
from medquant.search.space import BitChoice
from medquant.train.reporting import SilentReporter


@dataclass(frozen=True)
class Plan:
    parameter_bytes: int
    channels: int = 8


@dataclass(frozen=True)
class Trained:
    validation: tuple[float, ...]


class FakeNetwork:
    """Its largest plan within a budget is one of four."""

    space = None

    def candidate(self, budget: int, activation_budget: int | None, name: str) -> Plan:
        return Plan(max(size for size in (100, 200, 900, 1000) if size <= budget))


def trained(size: int, validation: float, searched: bool) -> CandidateResult:
    plan = Candidate("plan", "plan", 8, BitChoice({}), size, 0, searched)
    return CandidateResult(plan, (), (validation,))


def test_for_a_given_loss_the_smallest_plan_that_holds_is_chosen() -> None:
    small, smaller, best = trained(1563, 0.895, True), trained(1305, 0.891, False), trained(1556, 0.899, False)
    smallest = trained(700, 0.85, False)
    plans = [small, smaller, best, smallest]
    assert choose(plans, 0.9, 1.0) is smaller
    assert choose(plans, 0.9, 0.2) is best
    # Without a loss to keep to, or where none keeps to it, the best one; of equal ones the uniform one.
    assert choose(plans, 0.9, None) is best
    assert choose(plans, 0.95, 0.0) is best
    assert choose([trained(1, 0.9, True), twin := trained(2, 0.9, False)], 0.9, None) is twin


def test_it_goes_on_where_a_budget_comes_to_the_plan_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_search, "smallest_bytes", lambda space: 100)
    monkeypatch.setattr(bit_search, "largest_bytes", lambda space: 1000)
    monkeypatch.setattr(bit_search._Search, "_predicted", lambda *_: 100)
    # Plans of 900 bytes and more lose nothing, smaller ones ten points.
    monkeypatch.setattr(bit_search._Search, "_train", lambda _, space, plan: Trained((0.9 if plan.parameter_bytes >= 900 else 0.8,)))
    search = object.__new__(bit_search._Search)
    search.settings, search.reporter, search.tried = SearchSettings(max_dice_drop=1.0, rounds=7), SilentReporter(), []
    assert search._smallest(FakeNetwork(), 0.9) == 900  # type: ignore[arg-type]
    # Budgets 100 (the guess), 1000, then the roots of 100, 316, 562, 750 and 866 times 1000: the last is 931.
    assert [each["parameter_bytes"] for each in search.tried] == [100, 1000, 200, 200, 200, 200, 900]
