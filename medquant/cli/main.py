"""The ``medquant`` command. Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import os

import typer

from medquant.cli.doctor import doctor
from medquant.cli.evaluate import evaluate
from medquant.cli.export import export
from medquant.cli.info import info
from medquant.cli.inspect import inspect
from medquant.cli.plan import plan
from medquant.cli.predict import predict
from medquant.cli.prepare import prepare
from medquant.cli.quantize import quantize
from medquant.cli.report import report
from medquant.cli.search import search
from medquant.cli.sweep import sweep
from medquant.cli.train import train
from medquant.cli.verify import verify

app = typer.Typer(
    name="medquant",
    help="Medical segmentation networks whose every layer computes with a few bits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("plan")(plan)
app.command("export")(export)
app.command("verify")(verify)
app.command("predict")(predict)
app.command("quantize")(quantize)
app.command("search")(search)
app.command("sweep")(sweep)
app.command("report")(report)
app.command("info")(info)
app.command("doctor")(doctor)
app.command("inspect")(inspect)
app.command("prepare")(prepare)


@app.callback()
def _root() -> None:
    """Medical segmentation networks whose every layer computes with a few bits."""


def main() -> None:
    """Entry point of the console script."""
    # Threads that wait for each other by spinning make a run many times slower as soon as another job shares the machine;
    # sleeping costs a quiet machine a few percent. OpenMP reads this when torch is imported, which happens in the commands.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


if __name__ == "__main__":
    main()
