"""``medquant report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Finished run folders, of one data set, or the folder of a sweep or a search.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER|FILE.html", help="Folder for table.md, table.csv, dice_memory.png and report.html; or one page.")
    ] = Path("report"),
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare runs: one page, Dice beside memory, seeds averaged, each against its own float twin; or join folds and held-out sites.

    Example: medquant report runs/em-* --out report.html
    """
    from medquant.data.atomic import write_text
    from medquant.report.comparison import comparison_table, draw_comparison, group_runs
    from medquant.report.folds import are_folds, fold_groups, folds_table
    from medquant.report.page import make_report
    from medquant.report.record import ReportInput
    from medquant.train.report_details import with_details
    from medquant.train.report_runs import find_runs, read_run

    voice = Voice(as_json, quiet, verbose)
    page = _page(out)
    found = find_runs(runs)
    records = tuple(read_run(run) for run in found.folders)
    documents = [record.evaluation for record in records]
    folds = None
    if joined := are_folds(documents):
        table, folds = folds_table(documents)
        groups = fold_groups(documents)
    else:
        groups = group_runs(documents)
        table = comparison_table(groups)
    if page is None:
        _make_folder(out)
    asked = ReportInput(title or "Segmentation networks, compared", records, tuple(groups), notes=_left_out(found.unfinished), folds=joined)
    made = make_report(with_details(asked, found.folders, voice.say))
    if page is None:
        write_text(out / "table.md", table.to_markdown() + "\n")
        write_text(out / "table.csv", table.to_csv())
        if not joined:
            draw_comparison(groups, out / "dice_memory.png")
    made.write(out / "report.html" if page is None else page)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    document: dict[str, object] = {"rows": rows, "out": str(out), "unfinished": found.unfinished}
    if folds is not None:
        document["folds"] = folds
    voice.result([*table.to_text().split("\n"), *_left_out(found.unfinished), f"written to {out}{'/' if page is None else ''}"], document)


def _page(out: Path) -> Path | None:
    """The page where one is asked for, None where ``out`` is a folder; found out before minutes are spent."""
    from medquant.errors import UsageError

    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        return None
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist; make it first or choose another --out")
    return out


def _make_folder(out: Path) -> None:
    from medquant.errors import UsageError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: the report folder cannot be made ({error.strerror}); choose another --out") from error


def _left_out(unfinished: int) -> tuple[str, ...]:
    if not unfinished:
        return ()
    return (f"{unfinished} {'run' if unfinished == 1 else 'runs'} left out: not finished",)
