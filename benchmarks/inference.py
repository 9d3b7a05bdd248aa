"""One image through a network: torch, ONNX Runtime, OpenVINO, NNCF int8 and medquant's engines, side by side in one run.

Run from the repository's root: ``python -m benchmarks.inference [--networks paper unet64] [--threads 2] [--rounds 9]``.
Latency is taken in turns within one process, so that a busy moment meets all alike; a ratio is formed within each round.
The process peak is measured apart: a fresh process opens one variant and runs three images, and the highest resident set less
that of the same process with the same imports before it opened anything is its figure. docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.inference_networks import WORKLOADS, Workload
from benchmarks.inference_variants import DEFAULT_VARIANTS, VARIANTS
from benchmarks.interleaved import Spread, ratios, time_in_turns
from benchmarks.training_step import PACKAGES as _PACKAGES
from benchmarks.training_step import _processor, _version

PACKAGES = tuple(dict.fromkeys((*_PACKAGES, "openvino", "nncf", "onnxruntime")) - {"brevitas": None}.keys())
# Under which heading a table shows the speed over each: of engines of ours, the engine's name.
BASES = {"nncf-int8": "× NNCF", "openvino-float": "× float", "medquant-openvino": "× openvino", "medquant-torch": "× torch"}
DEFAULT_NETWORKS = ("paper", "unet64", "unet16", "unet3d")
MEBIBYTE = 2**20
_LIMIT_S = 1800
_MEASURED_RUNS = 3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(WORKLOADS), default=list(DEFAULT_NETWORKS), metavar="NAME")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(DEFAULT_VARIANTS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=2, help="threads of every variant (default 2)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default 9)")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them (default 2)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--no-time", action="store_true", help="leave out the times")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _prepare(workload: Workload, names: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, variant in VARIANTS.items():
        # A variant without a preparation of its own uses another's file.
        needed = name in names or any(VARIANTS[each].file == variant.file for each in names)
        if variant.prepare is not None and needed and not (folder / variant.file).exists():
            variant.prepare(workload, folder)


def _time(workload: Workload, names: list[str], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    opened = {name: VARIANTS[name].open(workload, folder, arguments.threads) for name in names}
    clocks = time_in_turns(opened, arguments.rounds, arguments.warm_up)
    rows: dict[str, Any] = {}
    for name in names:
        wall = clocks[name].wall_s
        rows[name] = {"latency_s": Spread.of(wall).as_dict(), "images_per_s": Spread.of([1 / each for each in wall]).as_dict()}
        for base in BASES:
            if base in names:
                # Over one: faster than the base.
                rows[name][f"speed_over_{base}"] = ratios(clocks[base].wall_s, wall).as_dict()
    return rows


def _peak(name: str, workload: Workload, folder: Path, threads: int) -> int | None:
    """Highest resident bytes above idle, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inference_peak", name, workload.name, str(folder), str(threads), str(_MEASURED_RUNS)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    child = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env=environment)
    if child.returncode != 0:
        print(f"{name}: not measured: {child.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return int(child.stdout.split()[-1])


def _measure(workload: Workload, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    names = list(arguments.variants)
    _prepare(workload, names, folder)
    # What a process runs before its peak is counted.
    _prepare(WORKLOADS["quick"], names, folder / "idle")
    rows: dict[str, Any] = {name: {} for name in names}
    if not arguments.no_time:
        rows = _time(workload, names, folder, arguments)
    for name in names:
        rows[name]["file_bytes"] = (folder / VARIANTS[name].file).stat().st_size
        if not arguments.no_memory:
            rows[name]["peak_bytes"] = _peak(name, workload, folder, arguments.threads)
    for name in names:
        base = rows.get("nncf-int8", {}).get("peak_bytes")
        if base and rows[name].get("peak_bytes"):
            rows[name]["peak_over_nncf-int8"] = rows[name]["peak_bytes"] / base
    return rows


def _spread(values: dict[str, float] | None, scale: float = 1.0, digits: int = 2) -> str:
    if values is None:
        return "–"
    median, lowest, highest = (f"{values[key] * scale:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({lowest}–{highest})"


def _ratio(values: dict[str, float] | None) -> str:
    """From ten on with one digit, so that the column stays narrow."""
    return _spread(values, digits=2 if values is None or values["max"] < 10 else 1)


def _print_rows(workload: Workload, rows: dict[str, Any]) -> None:
    left = max(len(name) for name in rows) + 1
    titles = ("ms", *BASES.values(), "images/s", "peak MiB", "× NNCF's", "file MiB")
    widths = (23, *[17] * len(BASES), 10, 9, 9, 9)
    print(f"\n{workload.name}: {workload.meaning}")
    print(" " * left + "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True)))
    for name, row in rows.items():
        peak, over, images = row.get("peak_bytes"), row.get("peak_over_nncf-int8"), row.get("images_per_s")
        cells = [
            _spread(row.get("latency_s"), 1000, 1),
            *(_ratio(row.get(f"speed_over_{base}")) for base in BASES),
            f"{images['median']:.1f}" if images else "–",
            f"{peak / MEBIBYTE:.0f}" if peak else "–",
            f"{over:.2f}" if over else "–",
            f"{row['file_bytes'] / MEBIBYTE:.2f}",
        ]
        print(f"{name:{left}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def restart_with_sleeping_threads(threads: int) -> None:
    """Start this process anew with waiting threads that sleep, unless it has been: spinning ones slow down whoever comes next.

    OpenMP reads its settings once, when torch is imported, which has happened by now.
    """
    wanted = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})


def main() -> None:
    arguments = _arguments()
    restart_with_sleeping_threads(arguments.threads)
    versions = {package: _version(package) for package in PACKAGES}
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.folder or Path(temporary)
        results = {name: _measure(WORKLOADS[name], arguments, place / name) for name in arguments.networks}
    if arguments.json:
        document = {"schema": 1, "benchmark": "inference", "versions": versions, "processor": _processor(), "threads": arguments.threads}
        print(json.dumps({**document, "rounds": arguments.rounds, "networks": results}, indent=2, ensure_ascii=False))
        return
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + f"; {_processor()}, {arguments.threads} threads")
    for name, meaning in ((each, VARIANTS[each].meaning) for each in arguments.variants):
        print(f"  {name}: {meaning}")
    print("× NNCF, × float, × openvino, × torch: times the speed of nncf-int8, openvino-float, medquant-openvino, medquant-torch")
    for name, rows in results.items():
        _print_rows(WORKLOADS[name], rows)


if __name__ == "__main__":
    main()
