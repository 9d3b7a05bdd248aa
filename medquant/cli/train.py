"""``medquant train``."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.errors import MedquantError


class StopOnSignal:
    """Asks the run to save and stop at the first ctrl-C or SIGTERM; the second ctrl-C ends it at once."""

    def __init__(self, voice: Voice) -> None:
        self.requested = False
        self._voice = voice
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._voice.say("stopping after this step; once more to stop at once (loses the epoch under way)")

    def __call__(self) -> bool:
        return self.requested


@guarded
def train(
    data: Annotated[Path | None, typer.Option(help="Official download or dataset folder. [default: built-in phantom]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration.")] = None,
    wbits: Annotated[int | None, typer.Option(help="Bits of weights: 1 to 8, or 32 for float. [default: 4]")] = None,
    abits: Annotated[int | None, typer.Option(help="Bits of activations: 1 to 8, or 32 for float. [default: 6]")] = None,
    init: Annotated[Path | None, typer.Option(help="MONAI bundle or nnU-Net result to start from, instead of a float warm start.")] = None,
    method: Annotated[str | None, typer.Option(help="Quantization method. [default: fixed_point]")] = None,
    layer_bits: Annotated[list[str] | None, typer.Option(help="PATTERN=W/A for some layers, W or A may be left out; repeatable.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs in all: float warm start and quantized training.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: a new one below runs/]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out (or the newest), to the same bits.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, patches and augmentation. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [default: auto]")] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", help="key=value of the configuration, e.g. model.channels=64; repeatable.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a network, its float twin, score both on the test part, and write a model file.

    Example: medquant train --data isbi_em --wbits 4 --abits 6 --layer-bits 'dec*=8/'
    """
    from medquant.cli.progress import TrainingProgress
    from medquant.report.plan_table import plan_table
    from medquant.report.scoreboard import scoreboard
    from medquant.train.distributed import join
    from medquant.train.finish import finish
    from medquant.train.start import TrainRequest, start_training

    group = join()
    # Of several processes the first one speaks.
    voice = Voice(as_json, quiet or not group.is_first, verbose)
    stop = StopOnSignal(voice)
    given: dict[str, object] = {
        "data.path": None if data is None else str(data),
        "quant.wbits": wbits,
        "quant.abits": abits,
        "quant.method": method,
        "quant.layer_bits": layer_bits or None,
        "train.init": None if init is None else str(init),
        "train.epochs": epochs,
        "train.seed": seed,
        "train.device": device,
    }
    options = {key: value for key, value in given.items() if value is not None}
    command = shlex.join(["medquant", *sys.argv[1:]])
    progress = TrainingProgress(voice)
    try:
        session = start_training(TrainRequest(config, override or [], options, out, resume, command), progress, stop, group)
        if not session.plan.is_float:
            voice.say(*plan_table(session.plan).to_text().split("\n"))
        voice.say(f"run folder: {session.run_folder.path}")
        session.run()
        group.leave()
        if not group.is_first:
            return
        finished = finish(session)
    except MedquantError as error:
        if group.told:
            raise typer.Exit(error.exit_code) from error
        raise
    finally:
        progress.close()
    folder = session.run_folder.path
    lines = [*scoreboard(finished.document).to_text().split("\n"), f"run folder: {folder}", f"pictures:   {session.run_folder.pictures}/"]
    voice.result(lines, finished.document)
