"""Every quantization method beside the others: one small network, one recipe, one float twin, on a real dataset.

Run from the repository's root: ``python -m benchmarks.methods --data isbi_em --out methods-em [--only PATTERN] [-o key=value]...``.
First one float run is made (warm start and float twin), then each row of :data:`ROWS` from the same warm start. Finished runs are
kept: a second call makes what is missing and prints the table. docs/methods.md says how to read it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLOAT = "float"


@dataclass(frozen=True)
class Row:
    """One run: its name, bits, method, and the settings that differ from the others'."""

    name: str
    wbits: int
    abits: int
    method: str
    settings: tuple[str, ...] = field(default=())


def _grid(name: str, method: str, bits: tuple[tuple[int, int], ...], *settings: str) -> list[Row]:
    return [Row(f"{name}-w{wbits}a{abits}", wbits, abits, method, settings) for wbits, abits in bits]


_ALL = ((8, 8), (4, 6), (2, 4), (1, 4))
_LOW = ((4, 6), (2, 4), (1, 4))
_PAPER = ((8, 8), (4, 6), (2, 4))

_EXACT_TERNARY = tuple(f"quant.options.{option}" for option in ("scale=power_of_two", "batch_norm=folded", "edges=quantized"))
_SCRATCH = ("train.warm_fraction=0", "train.float_twin=false", "train.quant_lr=1e-3")

# What fits a method is named by its paper: binary weights go with real or binary activations, ternary ones with its own tanh.
ROWS: tuple[Row, ...] = (
    *_grid("fixed_point", "fixed_point", _ALL),
    *_grid("fixed_point-distilled", "fixed_point", _LOW, "quant.distillation=1.0"),
    *_grid("fixed_point-averaged", "fixed_point", _LOW, "quant.options.average_from=0.75"),
    *_grid("fixed_point-frozen", "fixed_point", _LOW, "quant.options.freeze_above=0.02"),
    *_grid("lsq", "learned_step", _ALL),
    *_grid("lsq_plus", "learned_step", _PAPER, "quant.options.variant=lsq_plus"),
    # As printed, from U(-1, 1): after the warm start of the others, and from the beginning over all epochs, as the paper trained.
    *_grid("paper", "paper", _PAPER),
    *_grid("paper-scratch", "paper", ((4, 6), (2, 4)), *_SCRATCH),
    *_grid("paper-warm", "paper", _PAPER, "quant.options.init=warm"),
    *_grid("paper-scaled", "paper", ((4, 6), (2, 4)), "quant.options.init=warm", "quant.options.activation_scale=auto"),
    *_grid("paper-power_of_two", "paper", ((4, 6), (2, 4)), "quant.options.init=warm", "quant.options.quantizer=power_of_two"),
    # Below three bits the method refuses.
    *_grid("dynamic_fixed_point", "dynamic_fixed_point", ((8, 8), (4, 6))),
    *_grid("uniform", "uniform", _PAPER),
    *_grid("binary", "binary", ((1, 32), (1, 8))),
    *_grid("binary-stochastic", "binary", ((1, 32),), "quant.options.binarization=stochastic", "quant.options.test_weights=real"),
    *_grid("bnn", "binary", ((1, 1),)),
    *_grid("ternary", "ternary", ((2, 2),)),
    *_grid("twn", "ternary", ((2, 8),), "quant.options.activation=fixed_point"),
    *_grid("twn-exact", "ternary", ((2, 4),), "quant.options.activation=fixed_point", *_EXACT_TERNARY),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="official download or dataset folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="rows whose name matches; repeatable")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th row from the I-th, for several processes side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--table-only", action="store_true", help="train nothing; print what there is")
    parser.add_argument("-o", action="append", default=[], metavar="key=value", dest="settings", help="setting of every run; repeatable")
    return parser.parse_args()


def train(row: Row, folder: Path, data: Path, seed: int, settings: list[str], twin: Path | None) -> None:
    """Make one run, or end one that was stopped; a failure is reported and leaves the others alone."""
    if (folder / "eval.json").exists():
        return
    command = [sys.executable, "-P", "-m", "medquant.cli.main", "train", "--quiet", "--out", str(folder)]
    if folder.exists():
        command.append("--resume")
    else:
        command += ["--data", str(data), "--wbits", str(row.wbits), "--abits", str(row.abits), "--method", row.method, "--seed", str(seed)]
        command += [part for setting in (*settings, *row.settings) for part in ("-o", setting)]
        alone = twin is None or "train.float_twin=false" in row.settings
        command += [] if alone else ["-o", f"train.twin_from={twin}"]
    print(row.name, file=sys.stderr, flush=True)
    ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if ended.returncode:
        print(f"{row.name}: ended with {ended.returncode}", file=sys.stderr)


def read(row: Row, folder: Path) -> dict[str, Any] | None:
    """A finished run as one row of figures, None where it is not finished."""
    if not (folder / "eval.json").exists():
        return None
    found = json.loads((folder / "eval.json").read_text())
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    memory, agreement = found["memory"], found.get("agreement")
    return {
        "name": row.name,
        "dice": {name: value["mean"] for name, value in found["dice"].items()},
        "difference": found.get("dice_minus_twin"),
        "metrics": {name: value["mean"] for name, value in found.get("metrics", {}).items()},
        "parameter_bytes": memory["parameter_bytes"],
        "activation_peak_bytes": memory["activation_peak_bytes"],
        "model_file_bytes": memory["model_file_bytes"] if agreement else None,
        "differing": None if agreement is None else agreement["differing"],
        "epoch_s": [epoch["elapsed_s"] for epoch in epochs if epoch["stage"] == "quantized"],
    }


def main() -> None:
    """Train what is missing and print the table."""
    arguments = _arguments()
    chosen = [row for row in ROWS if not arguments.only or any(fnmatch.fnmatch(row.name, pattern) for pattern in arguments.only)]
    index, _, parts = arguments.part.partition("/")
    twin = arguments.out / FLOAT
    if not arguments.table_only:
        if int(index) == 0:
            train(Row(FLOAT, 32, 32, "fixed_point"), twin, arguments.data, arguments.seed, arguments.settings, None)
        for row in chosen[int(index) :: int(parts)]:
            train(row, arguments.out / row.name, arguments.data, arguments.seed, arguments.settings, twin)
    rows = [found for row in (Row(FLOAT, 32, 32, ""), *chosen) if (found := read(row, arguments.out / row.name)) is not None]
    print(json.dumps(rows, indent=1) if arguments.json else to_table(rows))


def to_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    classes = list(rows[0]["dice"]) if rows else []
    metrics = [name for name in ("v_rand", "v_info") if rows and name in rows[0]["metrics"]]
    heads = [
        "method",
        *(text for name in classes for text in (f"Dice {name}", "vs float")),
        *metrics,
        "parameters",
        "activations",
        "integers",
    ]
    lines = [" | ".join(heads), " | ".join(["---", *["--:"] * (len(heads) - 1)])]
    for row in rows:
        cells = [row["name"]]
        for name in classes:
            # A run without a twin of its own stands beside the float run of the same part.
            lost = None if row is rows[0] else (row["difference"] or {}).get(name, row["dice"][name] - rows[0]["dice"][name])
            cells += [f"{100 * row['dice'][name]:.2f}", "" if lost is None else f"{100 * lost:+.2f}"]
        cells += [f"{row['metrics'][name]:.4f}" for name in metrics]
        cells += [f"{row['parameter_bytes'] / 1024:.1f} KiB", f"{row['activation_peak_bytes'] / 2**20:.2f} MiB"]
        cells.append("–" if row["differing"] is None else f"{row['differing']} differ")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
