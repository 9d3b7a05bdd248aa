"""``medquant quantize``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.cli.train import StopOnSignal


@guarded
def quantize(
    source: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="Finished run, MONAI bundle or nnU-Net result folder.")],
    data: Annotated[Path | None, typer.Option(help="Official download or dataset folder. [default: the run's own]")] = None,
    wbits: Annotated[int | None, typer.Option(help="Bits of weights: 1 to 8. [default: 8]")] = None,
    abits: Annotated[int | None, typer.Option(help="Bits of activations: 1 to 8. [default: 8]")] = None,
    method: Annotated[str | None, typer.Option(help="Method that learns nothing. [default: uniform]")] = None,
    layer_bits: Annotated[list[str] | None, typer.Option(help="PATTERN=W/A for some layers, W or A may be left out; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="New run folder. [default: one below runs/]")] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", help="key=value of the configuration, e.g. quant.options.range=percentile; repeatable.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Quantize a trained network without training, calibrated on its training cases, and score it beside the float network.

    Example: medquant quantize runs/my-run --wbits 8 --abits 8 --layer-bits 'dec*=6/'
    """
    from medquant.cli.progress import TrainingProgress
    from medquant.report.plan_table import plan_table
    from medquant.report.scoreboard import scoreboard
    from medquant.train.finish import finish
    from medquant.train.quantize import QuantizeRequest, start_quantizing

    voice = Voice(as_json, quiet, verbose)
    stop = StopOnSignal(voice)
    given: dict[str, object] = {
        "quant.wbits": wbits,
        "quant.abits": abits,
        "quant.method": method,
        "quant.layer_bits": layer_bits or None,
    }
    options = {key: value for key, value in given.items() if value is not None}
    command = shlex.join(["medquant", *sys.argv[1:]])
    progress = TrainingProgress(voice)
    try:
        session = start_quantizing(QuantizeRequest(source, data, override or [], options, out, command), progress, stop)
        voice.say(*plan_table(session.plan).to_text().split("\n"))
        voice.say(f"run folder: {session.run_folder.path}")
        session.run()
        finished = finish(session)
    finally:
        progress.close()
    folder = session.run_folder
    lines = [*scoreboard(finished.document).to_text().split("\n"), f"run folder: {folder.path}", f"pictures:   {folder.pictures}/"]
    voice.result(lines, finished.document)
