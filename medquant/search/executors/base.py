"""What runs trials, as the sweep sees it: a place with some slots, into which trials go and out of which outcomes come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from medquant.search.trials import Outcome, Trial

Watch = Callable[[str, int, float], bool]
"""Told trial id, epoch (counted over its stages) and mean validation Dice; True ends the trial as pruned."""


@dataclass(frozen=True)
class Places:
    """Where a trial finds and leaves things: the same for all trials of a sweep, and plain JSON values.

    Args:
        out: folder of the sweep; what is kept of a trial goes below ``runs/`` there, shared float networks beside them.
        watched: whether every epoch is reported and an answer waited for; only where trials are pruned.
        threads: processor threads of a trial that names no number itself, None for torch's own choice.
        floats: name of the folder of shared float networks below ``out``.
    """

    out: str
    watched: bool = False
    threads: int | None = None
    floats: str = "floats"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``Places(**values)`` gives them back."""
        return asdict(self)


@dataclass(frozen=True)
class Ended:
    """A trial that has come to an end."""

    trial_id: str
    outcome: Outcome


class Executor(Protocol):
    """Runs trials.

    Made with ``(places, watch, stop_requested, slots)``. ``watch`` and ``stop_requested`` are called in the process of the sweep, from
    within ``wait``. Once ``stop_requested()`` is true, trials under way end as ``stopped`` as soon as they can.
    """

    slots: int
    """How many trials run at once; more are never submitted."""

    def submit(self, trial: Trial) -> None:
        """Start a trial, in a slot that is free."""

    def wait(self) -> Ended:
        """The next trial that ends; blocks. Never called without a trial under way."""

    def close(self) -> None:
        """Give everything back; trials under way are given up."""
