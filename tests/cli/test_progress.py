"""Progress: a bar on a terminal, a line an epoch elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import sys

import pytest

from medquant.cli.output import Voice
from medquant.cli.progress import TrainingProgress
from medquant.train.reporting import Reporter, SilentReporter

RECORD = {"stage": "warm", "epoch": 0, "train_loss": 1.25, "val_dice": {"cell": 0.9534}, "elapsed_s": 1.5}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run(reporter: Reporter) -> None:
    reporter.message("recognised")
    reporter.stage_started("warm", 4, 2)
    reporter.stepped(1.0)
    reporter.stepped(0.5)
    reporter.epoch_finished(RECORD)
    reporter.stage_finished()


def _said(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, voice: Voice) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    progress = TrainingProgress(voice)
    _run(progress)
    progress.close()
    return stream.getvalue()


def test_without_a_terminal_there_is_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = _said(monkeypatch, io.StringIO(), Voice())
    assert said == "recognised\nwarm: 4 steps, 2 done before\n  epoch 1  loss 1.2500  validation Dice cell 95.34  (1.5 s)\n"
    assert capsys.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar_that_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = _said(monkeypatch, _Terminal(), Voice())
    assert "━" in said
    assert "4/4" in said
    assert "validation Dice cell 95.34" in said
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # the cursor is hidden and shown again
    assert capsys.readouterr().out == ""


def test_quiet_says_nothing_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), _Terminal()):
        assert _said(monkeypatch, stream, Voice(quiet=True)) == ""


def test_the_terminal_is_given_back_when_a_stage_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    progress = TrainingProgress(Voice())
    progress.stage_started("warm", 4, 0)
    progress.close()
    progress.close()
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_a_silent_reporter_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _run(SilentReporter())
    assert capsys.readouterr() == ("", "")
