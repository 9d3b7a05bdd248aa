"""Which trial comes next: those a file lists, or those its samplers choose; each is told what came of its trials."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from medquant.config.sweep_source import Point, WrittenSweep
from medquant.errors import MedquantError
from medquant.search.ledger import Asked, Ledger
from medquant.search.listing import Listing
from medquant.search.sampling import Study
from medquant.search.trials import Outcome, Trial, digest


class TrialQueue(Protocol):
    """Where the trials of a sweep come from."""

    def next(self) -> Trial | None:
        """The next trial, None where there is none (for now)."""

    def watch(self, trial_id: str, epoch: int, value: float) -> bool:
        """Take in a validation Dice of a trial; whether it is to be ended."""

    def tell(self, trial_id: str, outcome: Outcome) -> None:
        """Take in what came of a trial."""


class Listed:
    """Trials a file lists, in its order; with a pruner, where it asks for one.

    Args:
        sweep: the sweep.
        trials: those of this shard.
        ledger: what has ended already.
    """

    def __init__(self, sweep: WrittenSweep, trials: Iterable[Trial], ledger: Ledger) -> None:
        self._waiting = deque(trials)
        self._study = None if sweep.file.prune is None else Study(digest(sweep.identity()), None, sweep.file.prune)
        self._numbers: dict[str, int] = {}
        for item in list(dict.fromkeys(each for each in ledger.history.order if isinstance(each, str))) if self._study is not None else ():
            if isinstance(item, str) and self._study is not None and ledger.history.ended[item].document.get("curve"):
                self._study.tell(self._study.ask()[0], ledger.history.ended[item])

    def next(self) -> Trial | None:
        """See :class:`TrialQueue`."""
        return self._waiting.popleft() if self._waiting else None

    def watch(self, trial_id: str, epoch: int, value: float) -> bool:
        """See :class:`TrialQueue`."""
        if self._study is None:
            return False
        if trial_id not in self._numbers:
            self._numbers[trial_id] = self._study.ask()[0]
        return self._study.watch(self._numbers[trial_id], epoch, value)

    def tell(self, trial_id: str, outcome: Outcome) -> None:
        """See :class:`TrialQueue`."""
        if self._study is not None and trial_id in self._numbers:
            self._study.tell(self._numbers.pop(trial_id), outcome)


class Sampled:
    """Trials chosen by samplers: a study of its own for each row and point of the grid, one after the other.

    Args:
        listing: makes trials.
        points: rows × grid.
        ledger: what was asked and has ended already, and where questions are noted before they are run.
        shard: number and count of the shard, each taking its share of the trials of every study.
        retry_failed: whether trials that failed are to be run again.
    """

    def __init__(
        self, listing: Listing, points: Iterable[Point], ledger: Ledger, shard: tuple[int, int] | None, retry_failed: bool
    ) -> None:
        sample = listing.sweep.file.sample
        number, count = shard or (1, 1)
        self._listing, self._ledger, self._shard = listing, ledger, 0 if shard is None else number
        self._points = {point.name: point for point in points}
        self._share = 0 if sample is None else sample.trials // count + (number <= sample.trials % count)
        name = digest(listing.sweep.identity())
        self._studies = {group: Study(f"{name} {group}", sample, listing.sweep.file.prune, number - 1) for group in self._points}
        self._open: dict[str, list[tuple[str, int]]] = {}
        self._again: deque[Trial] = deque()
        self._replay(retry_failed)

    def next(self) -> Trial | None:
        """See :class:`TrialQueue`."""
        if self._again:
            return self._again.popleft()
        for group, study in self._studies.items():
            while study.asked < self._share:
                asked_number, parameters = study.ask()
                trial = self._make(group, asked_number, parameters)
                self._ledger.asked(Asked(group, asked_number, parameters, trial.id))
                self._open.setdefault(trial.id, []).append((group, asked_number))
                return trial
        return None

    def watch(self, trial_id: str, epoch: int, value: float) -> bool:
        """See :class:`TrialQueue`."""
        group, number = self._open[trial_id][0]
        return self._studies[group].watch(number, epoch, value)

    def tell(self, trial_id: str, outcome: Outcome) -> None:
        """See :class:`TrialQueue`."""
        for group, number in self._open.pop(trial_id, []):
            self._studies[group].tell(number, outcome)

    def _make(self, group: str, number: int, parameters: dict[str, object]) -> Trial:
        point = self._points[group]
        try:
            trial = self._listing.trial(point, parameters, number)
            # Shards may come to the same values under the same number, and must not share a run folder.
            return replace(trial, name=f"{trial.name} of shard {self._shard}") if self._shard else trial
        except MedquantError as error:
            # Each value is right by itself, and together they are not: a trial that failed, and one the sampler learns from.
            made = digest({"group": group, "number": number, "parameters": parameters})
            return Trial(
                made, f"{point.name} #{number}", {}, {**point.varied, **parameters}, group=group, float_id=None, impossible=str(error)
            )

    def _replay(self, retry_failed: bool) -> None:
        """Teach the samplers what the ledger knows, in its order; what was asked and never ended is run again."""
        history = self._ledger.history
        trials: dict[str, Trial] = {}
        for item in history.order:
            if isinstance(item, Asked):
                if item.group in self._studies:
                    number, _ = self._studies[item.group].ask(item.parameters)
                    trials.setdefault(item.trial_id, self._make(item.group, number, dict(item.parameters)))
                    self._open.setdefault(item.trial_id, []).append((item.group, number))
                continue
            self._tell_known(item, history.ended[item], retry_failed)
        for trial_id in self._open:
            self._again.append(trials[trial_id])

    def _tell_known(self, trial_id: str, outcome: Outcome, retry_failed: bool) -> None:
        settled = outcome.status in ("finished", "pruned") or (outcome.status == "failed" and not retry_failed)
        if settled:
            self.tell(trial_id, outcome)
