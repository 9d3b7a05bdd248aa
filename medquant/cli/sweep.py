"""``medquant sweep``."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded

if TYPE_CHECKING:
    from medquant.search.sweep import ListedSweep, MakeExecutor

_MOST_SHOWN = 40


@guarded
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="What to vary; see docs/sweeps.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; one that holds it already goes on. [default: sweeps/NAME]")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Trials at once, each in a process of its own; 1: in this one.")] = 1,
    shard: Annotated[str | None, typer.Option(help="i/n: only the i-th of n shares, beside others that share the folder.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run trials that failed once more.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the trials; run none.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Run on a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT.")] = None,
    cpus_per_trial: Annotated[float, typer.Option(min=0.01, help="With --cluster: processors of a trial.")] = 1.0,
    gpus_per_trial: Annotated[float, typer.Option(min=0.0, help="With --cluster: GPUs of a trial; 0.5: two trials share one.")] = 0.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run every trial of a sweep once, whatever happens in between, and compare them in one table.

    Example: medquant sweep bits.yaml --out sweeps/bits --jobs 2
    """
    from medquant.cli.train import StopOnSignal
    from medquant.errors import InterruptedRunError, MedquantError, QualityGateError
    from medquant.search.sweep import Sweep, SweepRequest, list_sweep
    from medquant.search.table import count_by_status, sweep_rows, write_tables

    voice = Voice(as_json, quiet, verbose)
    part = _shard(shard)
    make_executor = _executor(jobs, cluster, cpus_per_trial, gpus_per_trial)
    listed = list_sweep(file)
    if dry_run:
        _list(voice, listed, part)
        return
    folder = out or Path("sweeps") / file.stem
    stop = StopOnSignal(voice)
    threads = max(1, int(cpus_per_trial)) if cluster is not None else 1 if jobs > 1 else None
    running = Sweep(SweepRequest(file, folder, part, retry_failed, threads), listed, voice.say, stop)
    try:
        running.run(make_executor)
    except BaseException:
        # What went wrong first is what is told, and not that on a full disk the table cannot be written either.
        with contextlib.suppress(MedquantError):
            write_tables(folder, sweep_rows(folder, listed))
        raise
    finally:
        running.close()
    rows = sweep_rows(folder, listed)
    table = write_tables(folder, rows)
    counts = count_by_status(rows)
    lines = table.to_text().split("\n")
    if len(lines) > _MOST_SHOWN + 2:
        lines = [*lines[: _MOST_SHOWN + 2], f"and {len(lines) - _MOST_SHOWN - 3} more in {folder / 'table.md'}"]
    failed = [row for row in rows if row.status == "failed"]
    lines += [
        f"failed: {row.name}: {row.outcome.error.splitlines()[0]}" for row in failed[:_MOST_SHOWN] if row.outcome and row.outcome.error
    ]
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    document: dict[str, Any] = {"out": str(folder), "counts": counts, "trials": [row.to_json() for row in rows]}
    voice.result([*lines, f"{said}; written to {folder}/"], document)
    if stop():
        raise InterruptedRunError("stopped; the same command goes on")
    if failed:
        raise QualityGateError(f"{len(failed)} trials failed, see {folder / 'table.csv'}; --retry-failed runs them once more")


def _shard(text: str | None) -> tuple[int, int] | None:
    from medquant.errors import UsageError

    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}: expected i/n with i from 1 to n, for example 2/4")
    return int(match[1]), int(match[2])


def _executor(jobs: int, cluster: str | None, cpus: float, gpus: float) -> MakeExecutor:
    """How trials are run."""
    from medquant.errors import UsageError
    from medquant.search.executors.here import Here
    from medquant.search.executors.processes import Processes

    if cluster is not None:
        from medquant.search.executors.ray_cluster import Cluster, RayCluster

        if jobs > 1:
            raise UsageError("--cluster and --jobs: the cluster decides how many trials run at once; leave --jobs out")
        wanted = Cluster(cluster, cpus, gpus)
        return lambda places, watch, stop_requested: RayCluster(places, watch, stop_requested, wanted)
    if jobs == 1:
        return Here
    return lambda places, watch, stop_requested: Processes(places, watch, stop_requested, jobs)


def _list(voice: Voice, listed: ListedSweep, shard: tuple[int, int] | None) -> None:
    from medquant.report.tables import Table, format_bytes

    trials = listed.of_shard(shard)
    facts = [listed.listing.known_facts(trial) for trial in trials]
    rows = tuple((t.id, t.name, str(f.parameters), format_bytes(f.parameter_bytes)) for t, f in zip(trials, facts, strict=True))
    table = Table(("id", "trial", "numbers", "parameters"), rows, ("left", "left", "right", "right"))
    sample = listed.written.file.sample
    said = f"{len(trials)} trials" if sample is None else f"{len(listed.points)} studies of {sample.trials} trials; shown is one of each"
    named = [{**vars(f), "id": t.id, "name": t.name, "varied": dict(t.varied)} for t, f in zip(trials, facts, strict=True)]
    voice.result([*table.to_text().split("\n"), said], {"trials": named})
