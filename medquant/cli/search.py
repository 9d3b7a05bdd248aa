"""``medquant search``."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.cli.train import StopOnSignal
from medquant.errors import UsageError


@guarded
def search(
    data: Annotated[Path | None, typer.Option(help="Official download or dataset folder. [default: built-in phantom]")] = None,
    budget: Annotated[str | None, typer.Option(help="Bytes of all parameters as stored: 600KB, 0.5MiB, 38400.")] = None,
    max_dice_drop: Annotated[float | None, typer.Option(help="Points of validation Dice that may be lost; finds the fewest bytes.")] = None,
    activation_budget: Annotated[str | None, typer.Option(help="Bytes of activations alive at once; searches activation bits too.")] = None,
    widths: Annotated[str | None, typer.Option(help="Channels of the first level to try, e.g. 8,12,16. [default: the recipe's]")] = None,
    wbits_choices: Annotated[str | None, typer.Option(help="Bits a layer's weights may have. [default: 1,2,3,4,5,6,8]")] = None,
    abits_choices: Annotated[str | None, typer.Option(help="Bits of what a layer writes. [default: 2,3,4,5,6,8]")] = None,
    seeds: Annotated[str | None, typer.Option(help="Each plan is trained once a seed. [default: 0]")] = None,
    sensitivity: Annotated[str | None, typer.Option(help="measured, hessian or both. [default: measured]")] = None,
    images: Annotated[int | None, typer.Option(help="Validation images measured on, at the most. [default: 8]")] = None,
    vectors: Annotated[int | None, typer.Option(help="Random vectors of the Hessian's trace. [default: 32]")] = None,
    rounds: Annotated[int | None, typer.Option(help="Plans trained for --max-dice-drop, at the most. [default: 6]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration: the recipe.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Finished run whose recipe and float network are used.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search. [default: a new one below runs/]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out; with another budget its measurements are used again.")] = False,
    override: Annotated[
        list[str] | None, typer.Option("-o", help="key=value of the configuration, e.g. model.channels=64; repeatable.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find which bits each layer should have within a budget of bytes, and whether that beats uniform bits of the same size.

    Example: medquant search --data isbi_em --budget 40KB --seeds 0,1,2
    """
    from medquant.cli.progress import TrainingProgress
    from medquant.search.bit_search import run_search
    from medquant.search.byte_size import parse_bytes
    from medquant.search.request import SearchRequest

    voice = Voice(as_json, quiet, verbose)
    if resume and out is None:
        raise UsageError("--resume: name the folder of the search with --out")
    given: dict[str, object] = {
        "budget": None if budget is None else parse_bytes(budget, "--budget"),
        "max_dice_drop": max_dice_drop,
        "activation_budget": None if activation_budget is None else parse_bytes(activation_budget, "--activation-budget"),
        "widths": _numbers(widths, "--widths"),
        "weight_choices": _numbers(wbits_choices, "--wbits-choices"),
        "activation_choices": _numbers(abits_choices, "--abits-choices"),
        "seeds": _numbers(seeds, "--seeds"),
        "sensitivity": sensitivity,
        "images": images,
        "vectors": vectors,
        "rounds": rounds,
    }
    request = SearchRequest(
        {key: value for key, value in given.items() if value is not None},
        out or Path("runs") / f"search-{datetime.now().strftime('%Y%m%d-%H%M%S')}",
        config,
        override or [],
        {} if data is None else {"data.path": str(data)},
        source,
        resume,
        shlex.join(["medquant", *sys.argv[1:]]),
    )
    stop, progress = StopOnSignal(voice), TrainingProgress(voice)
    try:
        result = run_search(request, progress, stop)
    finally:
        progress.close()
    lines = [*result.table().to_text().split("\n"), *result.sentences, f"folder of the search: {request.out}"]
    voice.result(lines, result.to_json())


def _numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Whole numbers between commas."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not (part.isascii() and part.isdigit() and len(part) < 11)]
    if wrong:
        raise UsageError(f"{option} {text!r}: expected whole numbers with commas between them, for example 1,2,4; found {wrong[0]!r}")
    return tuple(int(part) for part in parts)
