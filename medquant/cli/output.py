"""What every command shares: options, errors as one or two lines with an exit code, JSON on stdout, the rest on stderr."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from medquant.errors import InterruptedRunError, MedquantError, UsageError

SCHEMA = 1

_OPTIONAL = ("torch", "monai", "safetensors", "tensorboard", "openvino", "onnx", "onnxruntime")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print more, and a traceback on errors.")]


@dataclass
class Voice:
    """How loud a command is."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def say(self, *lines: str) -> None:
        """Information, on stderr."""
        if not self.quiet:
            print(_harmless(lines), file=sys.stderr, flush=True)

    def result(self, text: str | list[str], document: Mapping[str, object]) -> None:
        """The result, on stdout: the text (a table, or lines that may hold names of files), or the document where JSON is asked for."""
        if self.as_json:
            print(json.dumps(_plain({"schema": SCHEMA, **document}), indent=1, sort_keys=True, allow_nan=False))
        else:
            print(_harmless(text.split("\n") if isinstance(text, str) else text))


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity: a figure that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """End a command with the exit code of the error it meets, and one or two lines on stderr."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except MedquantError as error:
            _complain(*error.lines, verbose=bool(kwargs.get("verbose")))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _complain("stopped", verbose=False)
            raise typer.Exit(InterruptedRunError.exit_code) from error
        except BrokenPipeError as error:
            # The reader (head, a pager) has seen enough; nothing is wrong. Python would complain again when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from error
        except ModuleNotFoundError as error:
            # Servers that only predict have no torch.
            if error.name is None or error.name.split(".")[0] not in _OPTIONAL:
                raise
            _complain(
                f"this command needs {error.name}, which is not installed here; install medquant with it, or use a machine that has it",
                verbose=bool(kwargs.get("verbose")),
            )
            raise typer.Exit(UsageError.exit_code) from error
        except MemoryError as error:
            _complain("out of memory; lower data.batch_size, data.patch_size or model.channels", verbose=bool(kwargs.get("verbose")))
            raise typer.Exit(1) from error
        except Exception as error:
            _complain(
                f"internal error: {type(error).__name__}: {error}",
                "This is a fault of medquant; run again with --verbose and report it.",
                verbose=True,
            )
            raise typer.Exit(1) from error

    return run


def _complain(*lines: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    print(f"medquant: {_harmless(lines)}", file=sys.stderr, flush=True)


def _harmless(lines: Iterable[str]) -> str:
    """Lines a terminal shows and does not obey, nor breaks: names of files and of classes come from anywhere."""
    return "\n".join(
        "".join(each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode() for each in line) for line in lines
    )
