"""Timing several things side by side on a machine that others use too: in turns, with medians and ratios within each round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median and extremes of repeated measurements."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": self.lowest, "max": self.highest}


@dataclass(frozen=True)
class Clocks:
    """What one variant took in each round: on the wall clock, and of processor time (all threads of the process)."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def time_in_turns(steps: Mapping[str, Callable[[], None]], rounds: int, warm_up: int) -> dict[str, Clocks]:
    """Time each step in each round; a round runs every step once, so that a busy moment meets all of them alike.

    Processor time is the steadier of the two beside other jobs, as it does not run while a step waits for a core. It counts
    threads that spin while they wait for each other, so it means most with one thread.
    """
    for _ in range(warm_up):
        for step in steps.values():
            step()
    clocks = {name: Clocks() for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            clocks[name].wall_s.append(time.perf_counter() - wall)
            clocks[name].cpu_s.append(time.process_time() - cpu)
    return clocks


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """``values`` over ``base``, formed round by round."""
    return Spread.of([value / reference for value, reference in zip(values, base, strict=True)])
