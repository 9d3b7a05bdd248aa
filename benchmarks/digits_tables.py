"""Tables and figure of the digits benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medquant.evaluate.intervals import summarise

Runs = Sequence[Mapping[str, object]]


def _errors(runs: Runs, key: str = "test") -> list[float]:
    return [float(str(run[key])) for run in runs]


def print_table(table: Mapping[str, Runs], baseline: str) -> None:
    """A row for each variant: error as mean and standard deviation over seeds, and the difference to the baseline, paired by seed."""
    print("| training | rate | seeds | test error % | difference to baseline % (95 % interval) | validation error % | training loss |")
    print("|---|---|---|---|---|---|---|")
    other = {run["seed"]: float(str(run["test"])) for run in table[baseline]}
    for name, runs in table.items():
        if not runs:
            print(f"| {name} | – | 0 | – | – | – | – |")
            continue
        errors = summarise(_errors(runs))
        pairs = [float(str(run["test"])) - other[run["seed"]] for run in runs if run["seed"] in other]
        watched, loss = summarise(_errors(runs, "validation")), summarise(_errors(runs, "train_loss"))
        spread = "" if errors.std is None else f" ± {errors.std:.2f}"
        print(
            f"| {name} | {runs[0]['rate']} | {len(runs)} | {errors.mean:.2f}{spread} | {'–' if name == baseline else _paired(pairs)} "
            f"| {watched.mean:.2f} | {loss.mean:.4f} |"
        )
    print()


def _paired(pairs: Sequence[float]) -> str:
    difference = summarise(pairs)
    if difference.interval is None:
        return "–"
    return f"{difference.mean:+.2f} ({difference.interval.low:+.2f} to {difference.interval.high:+.2f})"


def print_sweep(
    table: Mapping[str, Runs], baseline: Runs, propagation_widths: Iterable[int], update_widths: Iterable[int], figure: Path | None
) -> None:
    """Error by propagation width at update width 12, and by update width at propagation width 10."""
    rows = {
        "propagation": [(width, f"dynamic fixed point {width}/12") for width in propagation_widths],
        "update": [(width, f"dynamic fixed point 10/{width}") for width in update_widths],
    }
    done = {what: [(width, _errors(table[name])) for width, name in named if table[name]] for what, named in rows.items()}
    means = {what: [(width, sum(errors) / len(errors)) for width, errors in points] for what, points in done.items()}
    for what, points in done.items():
        print(f"| {what} width | " + " | ".join(str(width) for width, _ in points) + " |")
        print("|---" * (len(points) + 1) + "|")
        print("| seeds | " + " | ".join(str(len(errors)) for _, errors in points) + " |")
        print("| test error % | " + " | ".join(f"{error:.2f}" for _, error in means[what]) + " |\n")
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
