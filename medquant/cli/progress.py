"""Progress of a training run on stderr: a bar with the time left on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medquant.cli.output import Voice
from medquant.report.tables import format_dice


class TrainingProgress:
    """A :class:`medquant.train.reporting.Reporter` that writes to stderr."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._console = Console(stderr=True)

    def message(self, text: str) -> None:
        """A line of information."""
        self.voice.say(text)

    def stage_started(self, stage: str, steps: int, done: int) -> None:
        """Open the bar of a stage."""
        if self.voice.quiet or not sys.stderr.isatty():
            self.voice.say(f"{stage}: {steps} steps" + (f", {done} done before" if done else ""))
            return
        columns = (
            TextColumn("{task.description:>9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
        self._bar.start()
        self._task = self._bar.add_task(stage, total=steps, completed=done, note="")

    def stepped(self, loss: float) -> None:
        """Advance the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def epoch_finished(self, record: Mapping[str, object]) -> None:
        """Show loss and validation Dice of the epoch."""
        scores = record["val_dice"]
        dice = " ".join(f"{name} {format_dice(score)}" for name, score in scores.items()) if isinstance(scores, Mapping) else ""
        watched = f"validation Dice {dice}" if dice else "nothing to validate on"
        text = f"epoch {int(str(record['epoch'])) + 1}  loss {record['train_loss']:.4f}  {watched}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=text)
        else:
            self.voice.say(f"  {text}  ({record['elapsed_s']} s)")

    def stage_finished(self) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, whatever happened."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task = None, None
