"""Tables and figure of the digits benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medquant.evaluate.intervals import summarise

Runs = Sequence[Mapping[str, object]]


def _errors(runs: Runs, key: str = "test") -> list[float]:
    return [float(str(run[key])) for run in runs]


def print_table(table: Mapping[str, Runs], baseline: str) -> None:
    """A row for each variant: error as mean and standard deviation over seeds, and the paired difference to the baseline."""
    print("| training | rate | test error % | difference to baseline % (95 % interval) | validation error % | training loss |")
    print("|---|---|---|---|---|---|")
    for name, runs in table.items():
        errors = summarise(_errors(runs))
        pairs = [own - other for own, other in zip(_errors(runs), _errors(table[baseline]), strict=True)]
        difference = summarise(pairs)
        interval = difference.interval
        paired = "–" if name == baseline else f"{difference.mean:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
        watched, loss = summarise(_errors(runs, "validation")), summarise(_errors(runs, "train_loss"))
        print(f"| {name} | {runs[0]['rate']} | {errors.mean:.2f} ± {errors.std:.2f} | {paired} | {watched.mean:.2f} | {loss.mean:.4f} |")
    print()


def print_sweep(
    table: Mapping[str, Runs], baseline: Runs, propagation_widths: Iterable[int], update_widths: Iterable[int], figure: Path | None
) -> None:
    """Error by propagation width at update width 12, and by update width at propagation width 10."""
    rows = {
        "propagation": [(width, f"dynamic fixed point {width}/12") for width in propagation_widths],
        "update": [(width, f"dynamic fixed point 10/{width}") for width in update_widths],
    }
    means = {what: [(width, summarise(_errors(table[name])).mean) for width, name in named] for what, named in rows.items()}
    for what, points in means.items():
        print(f"| {what} width | " + " | ".join(str(width) for width, _ in points) + " |")
        print("|---" * (len(points) + 1) + "|")
        print("| test error % | " + " | ".join(f"{error:.2f}" for _, error in points) + " |\n")
    float_error = summarise(_errors(baseline)).mean
    print(f"float, same seeds: {float_error:.2f} %")
    if figure is not None:
        _draw(means, float_error, figure)


def _draw(means: Mapping[str, Sequence[tuple[int, float]]], float_error: float, file: Path) -> None:
    import matplotlib.pyplot as plt

    plot, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    labels = {"propagation": "propagation width (update 12)", "update": "update width (propagation 10)"}
    for what, marker in (("propagation", "o"), ("update", "s")):
        axes.plot(*zip(*means[what], strict=True), marker=marker, label=labels[what])
    axes.axhline(float_error, color="grey", linestyle="--", label="float")
    axes.set_yscale("log")
    axes.set_xlabel("bits, sign included")
    axes.set_ylabel("test error (%)")
    axes.legend()
    plot.savefig(file, dpi=120)
