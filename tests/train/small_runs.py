"""A run small enough to be trained many times in a test."""

from __future__ import annotations

import sys
from pathlib import Path

SMALL = (
    "train.epochs=4",
    "train.warm_fraction=0.5",
    "train.steps_per_epoch=3",
    "train.threads=1",
    "data.batch_size=2",
    "data.patch_size=[32,32]",
    "model.channels=4",
    "model.depth=3",
)
"""Overrides of a run of four epochs of three steps on the phantom: 2 warm, 2 float, 2 quantized."""

STEPS = 18


def train_command(out: Path, *extra: str) -> list[str]:
    """The command line of a small run in a process of its own."""
    overrides = [part for text in SMALL for part in ("-o", text)]
    return [sys.executable, "-m", "medquant.cli.main", "train", "--wbits", "4", "--abits", "6", "--out", str(out), *overrides, *extra]


def resume_command(out: Path) -> list[str]:
    """The command line that continues it."""
    return [sys.executable, "-m", "medquant.cli.main", "train", "--resume", "--out", str(out)]
