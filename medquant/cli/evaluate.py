"""``medquant eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def evaluate(
    target: Annotated[Path | None, typer.Argument(metavar="[RUN|MODEL]", help="Run folder or model file. [default: newest run]")] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset folder. [default: the run's own]")] = None,
    split: Annotated[str, typer.Option(help="Part to score: train, validation or test.")] = "test",
    engine: Annotated[str, typer.Option(help="Engine, see medquant doctor; auto: the fastest exact one.")] = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score a trained run or a model file: Dice by class with intervals, the dataset's own metrics, memory.

    Example: medquant eval runs/my-run --split validation --engine reference
    """
    from medquant.cli.progress import TrainingProgress
    from medquant.report.scoreboard import scoreboard
    from medquant.train.rescore import EvalRequest, rescore

    voice = Voice(as_json, quiet, verbose)
    document = rescore(EvalRequest(target, data, split, engine), TrainingProgress(voice))
    voice.result(scoreboard(document).to_text(), document)
