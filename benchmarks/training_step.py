"""What quantization adds to a training step: medquant at W4A6 beside the float network and beside Brevitas.

Run from the repository's root: ``python -m benchmarks.training_step [--quick] [--json]``. docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "brevitas", "medquant")
MEBIBYTE = 2**20
WIDTHS = (16, 16, 18, 16, 16, 18, 8, 7)
NOTES = (
    "float is conv + batch norm + ReLU, as users train it; medquant and brevitas have batch norm folded (brevitas-batch-norm keeps it).",
    "Steps run in turns (A B C A B C …); a ratio is formed within each round, then its median, minimum and maximum taken.",
    "Peak memory: highest resident set during three steps less that before the network was built, one process for each variant.",
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default 9)")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before them (default 3; the learned phase of Brevitas needs 2)")
    parser.add_argument("--channels", type=int, default=16, help="width of the first level (default 16)")
    parser.add_argument("--depth", type=int, default=6, help="resolution levels (default 6)")
    parser.add_argument("--size", type=int, default=256, help="image edge in voxels (default 256)")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="only these settings")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these variants; medquant-compiled runs only when named here")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--no-time", action="store_true", help="leave out the times")
    parser.add_argument("--brevitas-jit", action="store_true", help="run Brevitas with BREVITAS_JIT=1 (its default is 0)")
    parser.add_argument("--quick", action="store_true", help="a small network and three rounds: shows that it runs, measures nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.warm_up = 3, 2
        arguments.channels, arguments.depth, arguments.size, arguments.batch = 8, 3, 64, 2
    return arguments


def _known(parser_name: str, asked: list[str] | None, known: Any, default: Any) -> list[str]:
    names = list(default) if asked is None else asked
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"{parser_name} {' '.join(unknown)}: unknown; known: {', '.join(known)}")
    return names


def _methods(asked: list[str] | None, prefix: str) -> list[str]:
    return [name for name in asked or () if name.startswith(prefix)]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _measure_setting(setting: Any, variants: list[str], shape: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.interleaved import Spread, ratios, time_in_turns
    from benchmarks.step_memory import peak_bytes
    from benchmarks.step_variants import build_step

    rows: dict[str, dict[str, Any]] = {name: {} for name in variants}
    if not arguments.no_memory:
        for name in variants:
            rows[name]["peak_bytes"] = peak_bytes(name, setting, shape, arguments.threads)
        for name in variants:
            own, base = rows[name]["peak_bytes"], rows.get("float", {}).get("peak_bytes")
            rows[name]["peak_over_float"] = own / base if own and base else None
    if not arguments.no_time:
        steps = {name: build_step(name, setting, shape) for name in variants}
        clocks = time_in_turns(steps, arguments.rounds, arguments.warm_up)
        for name in variants:
            for clock in ("wall_s", "cpu_s"):
                own = getattr(clocks[name], clock)
                rows[name][clock] = Spread.of(own).as_dict()
                for base in ("float", "medquant"):
                    if base in variants:
                        rows[name][f"{clock}_over_{base}"] = ratios(own, getattr(clocks[base], clock)).as_dict()
    return rows


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.step_variants import DEFAULT_VARIANTS, METHOD_PREFIX, SETTINGS, VARIANTS, Shape

    settings = _known("--settings", arguments.settings, SETTINGS, SETTINGS)
    variants = _known("--variants", arguments.variants, [*VARIANTS, *_methods(arguments.variants, METHOD_PREFIX)], DEFAULT_VARIANTS)
    if _version("brevitas") == "not installed":
        variants = [name for name in variants if not name.startswith("brevitas")]
    torch.set_num_threads(arguments.threads)
    shape = Shape(arguments.channels, arguments.depth, arguments.size, arguments.batch)
    return {
        "schema": 1,
        "benchmark": "training_step",
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        "processor": _processor(),
        "threads": arguments.threads,
        "brevitas_jit": arguments.brevitas_jit,
        "rounds": arguments.rounds,
        "shape": shape.as_dict(),
        "notes": list(NOTES),
        "variants": {name: VARIANTS.get(name, "a method of the registry at these bits") for name in variants},
        "settings": {name: _measure_setting(SETTINGS[name], variants, shape, arguments) for name in settings},
    }


def _spread(values: dict[str, float] | None, digits: int) -> str:
    if values is None:
        return "–"
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}–{values['max']:.{digits}f})"


def _print_table(result: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    jit = " BREVITAS_JIT=1" if result["brevitas_jit"] else ""
    print(f"{versions}; {result['processor']}, {result['threads']} threads{jit}")
    print("U-Net " + ", ".join(f"{key} {value}" for key, value in result["shape"].items()) + f"; {result['rounds']} rounds")
    for name, meaning in result["variants"].items():
        print(f"  {name}: {meaning}")
    for note in result["notes"]:
        print(note)
    for setting, rows in result["settings"].items():
        titles = ("wall s", "× float", "× medquant", "processor s", "× float", "× medquant", "peak MiB", "× float")
        print(f"\n{setting:22}" + "".join(f"  {title:>{width}}" for title, width in zip(titles, WIDTHS, strict=True)))
        for name, row in rows.items():
            cells = [
                _spread(row.get(f"{clock}{base}"), 2) for clock in ("wall_s", "cpu_s") for base in ("", "_over_float", "_over_medquant")
            ]
            peak, ratio = row.get("peak_bytes"), row.get("peak_over_float")
            cells += [f"{peak / MEBIBYTE:.0f}" if peak else "–", f"{ratio:.2f}" if ratio else "–"]
            print(f"{name:22}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))


def main() -> None:
    arguments = _arguments()
    if arguments.brevitas_jit:
        os.environ["BREVITAS_JIT"] = "1"  # Brevitas reads it when it is imported, so before anything else
    result = _measure(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _print_table(result)


if __name__ == "__main__":
    main()
