"""BinaryConnect as a regularizer, and training at 10 and 12 bits, on scikit-learn's handwritten digits (8 × 8 pixels).

Run from the repository's root: ``python -m benchmarks.digits [--results FILE] [--figure FILE] [--epochs N] [--only PART …]``.
Finished runs are kept in the results file and not made again. docs/digits.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.digits_network import DigitsNetwork, Variant
from benchmarks.digits_tables import print_sweep, print_table
from medquant.quant.dynamic_fixed_point import NumberFormat

SEEDS = 10
TUNING_SEEDS = 3
SWEEP_SEEDS = 2
BATCH = 100
REGULARIZER_RATES = (3e-3, 1e-2, 3e-2)
FORMAT_RATES = (0.1, 0.3)
DECAY = 0.01
PROPAGATION_WIDTHS = range(6, 13)
UPDATE_WIDTHS = range(8, 15)

REGULARIZERS = (
    Variant("no regularizer"),
    Variant("dropout 0.5", dropout=0.5),
    Variant("BinaryConnect deterministic", "deterministic"),
    Variant("BinaryConnect stochastic", "stochastic"),
    Variant("deterministic, no rate scaling", "deterministic", rate_scaling=False),
    Variant("stochastic, no rate scaling", "stochastic", rate_scaling=False),
)


def dynamic(propagation_bits: int, update_bits: int) -> Variant:
    numbers = NumberFormat("dynamic", propagation_bits, update_bits, initial_integer_bits=None)
    return Variant(f"dynamic fixed point {propagation_bits}/{update_bits}", numbers=numbers)


FORMATS = (
    Variant("float 32/32", numbers=NumberFormat("float", 32, 32)),
    Variant("half 16/16", numbers=NumberFormat("half", 16, 16)),
    Variant("fixed point 20/20", numbers=NumberFormat("fixed", 20, 20, initial_integer_bits=5)),
    dynamic(10, 12),
)


Run = dict[str, object]


@dataclass(frozen=True)
class Split:
    """Images (N, 64) and labels (N,) of one part."""

    images: Tensor
    labels: Tensor


@cache
def splits(seed: int) -> tuple[Split, Split, Split]:
    """Train, validation and test, 60, 20 and 20 %, with all digits in equal shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 8.0 - 1.0).astype(np.float32)
    rest, test, rest_labels, test_labels = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    train, watched, train_labels, watched_labels = train_test_split(
        rest, rest_labels, test_size=0.25, stratify=rest_labels, random_state=seed
    )
    parts = ((train, train_labels), (watched, watched_labels), (test, test_labels))
    first, second, third = (Split(torch.from_numpy(x), torch.from_numpy(y).long()) for x, y in parts)
    return first, second, third


def error_percent(network: DigitsNetwork, part: Split) -> float:
    network.eval()
    with torch.no_grad():
        wrong = (network(part.images).argmax(1) != part.labels).float().mean()
    return 100.0 * float(wrong)


def train_once(variant: Variant, rate: float, seed: int, epochs: int) -> Run:
    """Errors in percent at the epoch of least validation error, the earliest of several."""
    started = time.process_time()
    train, watched, test = splits(seed)
    torch.manual_seed(seed)
    network = DigitsNetwork(variant)
    optimizer = network.optimizer(rate)
    best, loss = (101.0, 101.0), 0.0
    for epoch in range(epochs):
        network.train()
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"] * DECAY ** (epoch / max(epochs - 1, 1))
        order = torch.randperm(len(train.labels))
        # The last, smaller batch is left out, as batch norm wants batches of one size.
        batches = [order[start : start + BATCH] for start in range(0, len(order) - BATCH + 1, BATCH)]
        loss = sum(network.train_step(train.images[each], train.labels[each], optimizer) for each in batches) / len(batches)
        best = min(best, (error_percent(network, watched), error_percent(network, test)), key=lambda errors: errors[0])
    return {
        **{"variant": variant.name, "rate": rate, "seed": seed, "epochs": epochs, "validation": best[0], "test": best[1]},
        **{"train_loss": loss, "train": error_percent(network, train), "cpu_s": round(time.process_time() - started, 2)},
    }


class Results:
    """The finished runs, one JSON object a line."""

    def __init__(self, file: Path, epochs: int, only_finished: bool = False) -> None:
        self.file, self.epochs, self.only_finished, self.runs = file, epochs, only_finished, {}
        if file.exists():
            for run in map(json.loads, file.read_text().splitlines()):
                self.runs[run["variant"], run["rate"], run["seed"], run["epochs"]] = run

    def run(self, variant: Variant, rate: float, seed: int) -> Run | None:
        """The run, made now if it is not finished; None where only finished ones are wanted."""
        key = variant.name, rate, seed, self.epochs
        if key not in self.runs and not self.only_finished:
            self.runs[key] = train_once(variant, rate, seed, self.epochs)
            with self.file.open("a") as file:
                file.write(json.dumps(self.runs[key]) + "\n")
        return self.runs.get(key)

    def seeds(self, variant: Variant, rate: float, count: int) -> list[Run]:
        return [run for seed in range(count) if (run := self.run(variant, rate, seed)) is not None]

    def best_rate(self, variant: Variant, rates: Iterable[float]) -> float:
        """By the mean validation error of the tuning seeds alone; the smallest of equals."""
        tuning = {rate: self.seeds(variant, rate, TUNING_SEEDS) for rate in rates}
        complete = [rate for rate, runs in tuning.items() if len(runs) == TUNING_SEEDS]
        return min(complete or rates, key=lambda rate: sum(float(str(run["validation"])) for run in tuning[rate]))

    def tuned(self, variants: Sequence[Variant], rates: Sequence[float]) -> dict[str, list[Run]]:
        """All seeds of each variant at its own best rate."""
        chosen = {variant: self.best_rate(variant, rates) for variant in variants}
        return {variant.name: self.seeds(variant, rate, SEEDS) for variant, rate in chosen.items()}


def sweep(results: Results) -> dict[str, list[Run]]:
    """Dynamic fixed point of other widths, all at the rate that float has chosen, so that widths alone differ."""
    rate = results.best_rate(FORMATS[0], FORMAT_RATES)
    variants = {dynamic(width, 12) for width in PROPAGATION_WIDTHS} | {dynamic(10, width) for width in UPDATE_WIDTHS}
    ordered = sorted(variants, key=lambda variant: variant.name)
    return {variant.name: results.seeds(variant, rate, SWEEP_SEEDS) for variant in ordered}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("digits.jsonl"), help="finished runs (default digits.jsonl)")
    parser.add_argument("--figure", type=Path, help="file for the figure of the sweep")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of a run (default 60)")
    parser.add_argument("--finished", action="store_true", help="tables of the finished runs alone, however many seeds there are")
    parser.add_argument("--only", nargs="+", choices=("regularizers", "formats", "sweep"), default=["regularizers", "formats", "sweep"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(arguments.results, arguments.epochs, arguments.finished)
    if "regularizers" in arguments.only:
        print_table(results.tuned(REGULARIZERS, REGULARIZER_RATES), "no regularizer")
    if "formats" in arguments.only:
        print_table(results.tuned(FORMATS, FORMAT_RATES), "float 32/32")
    if "sweep" in arguments.only:
        rate = results.best_rate(FORMATS[0], FORMAT_RATES)
        baseline = results.seeds(FORMATS[0], rate, SWEEP_SEEDS)
        print_sweep(sweep(results), baseline, PROPAGATION_WIDTHS, UPDATE_WIDTHS, arguments.figure)


if __name__ == "__main__":
    main()
