"""``medquant export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="Run folder or model file.")],
    out: Annotated[Path, typer.Argument(help="What to write: .mq (packed), .onnx, or .xml (OpenVINO).")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a trained model for another tool; it gives the same masks there (check with medquant verify --against).

    Example: medquant export runs/my-run model.onnx
    """
    from medquant.deploy.exporting import export_model

    voice = Voice(as_json, quiet, verbose)
    exported = export_model(source, out, overwrite)
    for note in exported.notes:
        voice.say(f"note: {note}")
    lines = [f"{path}  {size} bytes" for path, size in exported.files.items()]
    voice.result(lines, {"files": {str(path): size for path, size in exported.files.items()}, "notes": list(exported.notes)})
