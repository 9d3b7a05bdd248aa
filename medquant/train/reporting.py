"""What a training run says while it works: an interface, because only the command line prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Reporter(Protocol):
    """Receives the events of a run."""

    def message(self, text: str) -> None:
        """One line of information."""

    def stage_started(self, stage: str, steps: int, done: int) -> None:
        """A stage of ``steps`` optimiser steps begins, ``done`` of them already done before."""

    def stepped(self, loss: float) -> None:
        """One optimiser step is done."""

    def epoch_finished(self, record: Mapping[str, object]) -> None:
        """An epoch is done and saved; ``record`` is its line of metrics.jsonl."""

    def stage_finished(self) -> None:
        """The stage is done."""


class SilentReporter:
    """Says nothing; for tests and for use as a library."""

    def message(self, text: str) -> None:
        """Nothing."""

    def stage_started(self, stage: str, steps: int, done: int) -> None:
        """Nothing."""

    def stepped(self, loss: float) -> None:
        """Nothing."""

    def epoch_finished(self, record: Mapping[str, object]) -> None:
        """Nothing."""

    def stage_finished(self) -> None:
        """Nothing."""
