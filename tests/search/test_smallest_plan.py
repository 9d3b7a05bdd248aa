"""The bisection for the smallest plan that holds, over plans whose bytes are given: budgets worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from medquant.search import bit_search
from medquant.search.request import SearchSettings
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
