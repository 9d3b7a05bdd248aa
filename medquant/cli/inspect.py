"""``medquant inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say what a file or folder is: kind, shape, spacing, orientation, values, dataset; or why it is refused.

    Example: medquant inspect isbi_em/train-volume.tif
    """
    from medquant.data.inspection import inspect_path
    from medquant.errors import InputError

    voice = Voice(as_json, quiet, verbose)
    found = inspect_path(path)
    width = max(len(key) for key in found)
    lines = [f"{key:<{width}}  {value if isinstance(value, str) else json.dumps(value)}" for key, value in found.items()]
    voice.result(lines, found)
    refused = found.get("refused")
    if refused:
        raise InputError(str(refused))
