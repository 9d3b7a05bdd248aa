"""The table of the 2019 paper from finished runs: size as the paper counts it and as it is, Dice with ReLU and with ternary tanh.

Usage: python -m benchmarks.paper_table SWEEP_OUT [--paper-drop 2.21] [--class cell]. SWEEP_OUT is the folder of a sweep (its ledgers
are read), or one that holds run folders of ``medquant train``. docs/paper-table.md says how to make them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medquant.report.tables import Table, format_bytes

RELU, TANH = "relu", "ternary_tanh"
_MIB = 2**20
_NOTHING = "–"


@dataclass(frozen=True)
class Result:
    """One finished run.

    Args:
        row: name of its row.
        bits: of a weight and of an activation, as the paper counts.
        activation: ``relu`` or ``ternary_tanh``.
        dice: of the class the table is about, 0 to 1.
        float_bytes: all parameters at 32 bits.
        parameter_bytes: all that is stored, signs and float leftovers included.
    """

    row: str
    bits: tuple[int, int]
    activation: str
    dice: float
    float_bytes: int
    parameter_bytes: int

    @property
    def paper_mib(self) -> float:
        """All parameters at the weights' bits, which is how the paper counts."""
        return self.float_bytes * self.bits[0] / 32 / _MIB


def read_results(folder: Path, class_name: str | None, at_half: bool = False) -> list[Result]:
    """Every finished run in a folder, from ledgers and from run folders.

    Args:
        folder: of a sweep, or of runs.
        class_name: whose Dice; None for the first class of a run.
        at_half: Dice at a probability of one half, where a run was scored at another threshold as well.
    """
    found = []
    for activation, document in (*_from_ledgers(folder), *_from_runs(folder)):
        scores = document.get("at_half", document) if at_half else document
        dice = {name: value["mean"] if isinstance(value, Mapping) else value for name, value in scores["dice"].items()}
        value = dice[class_name or next(iter(dice))]
        row, bits = classify(document["bits"])
        memory = document["memory"]
        if value is not None:
            found.append(Result(row, bits, activation, float(value), int(memory["float_bytes"]), int(memory["parameter_bytes"])))
    return found


def classify(bits: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    """Name of the row of a run, and its bits without signs: of what its records say it was quantized with."""
    weights, activations, method, options = int(bits["weights"]), int(bits["activations"]), str(bits["method"]), bits.get("options", {})
    if weights == activations == 32:
        return "full precision", (32, 32)
    if method == "paper":
        whole, fraction = int(options.get("weight_integer_bits", 0)), int(options.get("activation_fraction_bits", 0))
        return f"Q{activations}.{fraction} Q{whole}.{weights}", (whole + weights, activations + fraction)
    names = {"binary": "BNN", "ternary": "Ternary"}
    return names.get(method, f"W{weights}A{activations}"), (weights, activations)


def _from_ledgers(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    ended: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("ledger*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:  # a last line that a power cut left torn
                continue
            if event.get("event") == "ended":
                ended[event["id"]] = event
    for event in ended.values():
        if event["outcome"]["status"] == "finished" and "dice" in event["outcome"]["document"]:
            yield (TANH if f"activation={TANH}" in event["name"] else RELU), event["outcome"]["document"]


def _from_runs(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in sorted(folder.glob("*/eval.json")):
        document = json.loads(path.read_text())
        yield (TANH if document["network"]["activation"] == TANH else RELU), document


def paper_table(results: Sequence[Result], paper_drop: float | None = None) -> Table:
    """Rows in the order they first occur, mean over seeds with its deviation, in points; a drop is full precision less the row.

    Args:
        results: finished runs.
        paper_drop: the drop the paper states for four-bit weights and six-bit activations.
    """
    floats = {activation: _mean(results, _float_row(results), activation) for activation in (RELU, TANH)}
    columns = ("row", "W/A bits", "size, paper's count (MiB)", "size, all stored", "Dice ReLU", "drop", "Dice Tanh", "drop", "paper's drop")
    rows = []
    for name in dict.fromkeys(result.row for result in results):
        one = next(result for result in results if result.row == name)
        cells = [name, f"{one.bits[0]}/{one.bits[1]}", f"{one.paper_mib:.2f}", format_bytes(one.parameter_bytes)]
        for activation in (RELU, TANH):
            mean, whole = _mean(results, name, activation), floats[activation]
            drop = None if mean is None or whole is None else whole - mean
            cells += [_spread(results, name, activation), _NOTHING if drop is None else f"{100 * drop:+.2f}"]
        cells.append(f"{paper_drop:.2f}" if paper_drop is not None and one.bits == (4, 6) else "")
        rows.append(tuple(cells))
    return Table(columns, tuple(rows))


def _float_row(results: Sequence[Result]) -> str:
    return next((result.row for result in results if result.bits == (32, 32)), "")


def _dice(results: Sequence[Result], row: str, activation: str) -> list[float]:
    return [result.dice for result in results if (result.row, result.activation) == (row, activation)]


def _mean(results: Sequence[Result], row: str, activation: str) -> float | None:
    found = _dice(results, row, activation)
    return statistics.fmean(found) if found else None


def _spread(results: Sequence[Result], row: str, activation: str) -> str:
    found = _dice(results, row, activation)
    if not found:
        return _NOTHING
    spread = f" ± {100 * statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{100 * statistics.fmean(found):.2f}{spread} (n={len(found)})"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of a sweep, or of run folders")
    parser.add_argument("--paper-drop", type=float, help="drop the paper states for Q6.0 Q0.4: EM 2.21, GM 0.57, NIH 2.09")
    parser.add_argument("--class", dest="class_name", help="class whose Dice is shown; the first one unless given")
    parser.add_argument("--at-half", action="store_true", help="Dice at a probability of one half instead of the paper's 0.999")
    arguments = parser.parse_args()
    results = read_results(arguments.folder, arguments.class_name, arguments.at_half)
    if not results:
        print(f"{arguments.folder}: no finished run; expected ledger*.jsonl of a sweep, or run folders with eval.json", file=sys.stderr)
        return 2
    print(paper_table(results, arguments.paper_drop).to_markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
