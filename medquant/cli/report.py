"""``medquant report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished run folders, of one data set.")],
    out: Annotated[Path, typer.Option(help="Folder for table.md, table.csv and dice_memory.png.")] = Path("report"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare runs: Dice beside memory, seeds averaged, each against its own float twin; or join folds and held-out sites.

    Example: medquant report runs/em-* --out report
    """
    from medquant.data.atomic import write_text
    from medquant.errors import UsageError
    from medquant.report.comparison import comparison_table, draw_comparison, group_runs
    from medquant.report.folds import are_folds, folds_table
    from medquant.train.run_folder import RunFolder

    voice = Voice(as_json, quiet, verbose)
    documents = [RunFolder.open(run).evaluation for run in dict.fromkeys(path.resolve() for path in runs)]
    folds = None
    if are_folds(documents):
        table, folds = folds_table(documents)
        groups = []
    else:
        groups = group_runs(documents)
        table = comparison_table(groups)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: the report folder cannot be made ({error.strerror}); choose another --out") from error
    write_text(out / "table.md", table.to_markdown() + "\n")
    write_text(out / "table.csv", table.to_csv())
    if groups:
        draw_comparison(groups, out / "dice_memory.png")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    document: dict[str, object] = {"rows": rows, "out": str(out)}
    if folds is not None:
        document["folds"] = folds
    voice.result([*table.to_text().split("\n"), f"written to {out}/"], document)
