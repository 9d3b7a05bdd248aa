"""What all commands share: exit codes of errors, results on stdout, the rest on stderr."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import typer

from medquant import errors
from medquant.cli.output import Voice, guarded

# The codes that scripts rely on, as the documentation lists them.
CODES: dict[type[BaseException], int] = {
    errors.MedquantError: 1,
    errors.UsageError: 2,
    errors.ConfigError: 3,
    errors.InputError: 4,
    errors.GeometryError: 5,
    errors.CheckpointError: 6,
    errors.EngineMismatchError: 7,
    errors.QualityGateError: 8,
    errors.InterruptedRunError: 130,
    KeyboardInterrupt: 130,
    MemoryError: 1,
    BrokenPipeError: 0,
    ZeroDivisionError: 1,
}


def _raising(error: BaseException) -> Callable[..., None]:
    @guarded
    def command(verbose: bool = False) -> None:
        raise error

    return command


@pytest.mark.parametrize("kind", [kind for kind in CODES if kind is not BrokenPipeError])
def test_every_error_has_its_exit_code(kind: type[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        _raising(kind("what was found"))()
    assert ended.value.exit_code == CODES[kind]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1 if kind is not ZeroDivisionError else -2].startswith("medquant: ")
    if issubclass(kind, errors.MedquantError):
        assert said.err == "medquant: what was found\n"


class _ClosedPipe(io.StringIO):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return self.file.fileno()


def test_a_reader_that_has_seen_enough_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @guarded
    def command() -> None:
        Voice().result("a long table", {})

    with (tmp_path / "pipe").open("wb") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", _ClosedPipe(file))
        with pytest.raises(typer.Exit) as ended:
            command()
    assert ended.value.exit_code == CODES[BrokenPipeError]
    assert capsys.readouterr().err == ""


def test_every_kind_of_error_is_listed_above() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds <= CODES.keys()


def test_a_fault_of_medquant_says_so_and_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        _raising(ZeroDivisionError("by nothing"))()
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "internal error: ZeroDivisionError: by nothing\nThis is a fault of medquant" in said


def test_a_mistake_of_the_user_shows_where_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        with pytest.raises(typer.Exit):
            _raising(errors.InputError("a bad scan"))(verbose=verbose)
        assert ("Traceback" in capsys.readouterr().err) is verbose


def test_results_go_to_stdout_and_words_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        voice = Voice(quiet=quiet)
        voice.say("working")
        voice.result("a table", {"figure": 1})
        said = capsys.readouterr()
        assert (said.out, said.err) == ("a table\n", "" if quiet else "working\n")


def test_json_is_one_document_with_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    Voice(as_json=True).result("a table", {"figure": 1.5, "name": "Å"})
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "figure": 1.5, "name": "Å"}
    Voice(as_json=True).result("", {"figures": [float("nan"), {"high": float("inf")}, 2.0]})
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "figures": [None, {"high": None}, 2.0]}


def test_options_and_names_survive_the_guard() -> None:
    @guarded
    def command(first: int, second: str = "x") -> None:
        """What it does."""

    assert (command.__name__, command.__doc__) == ("command", "What it does.")
    command(1, second="y")
