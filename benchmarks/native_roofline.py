"""A picture of what the native engine reaches of what the processor could do: docs/images/native-roofline.svg.

Run from the repository's root: ``python -m benchmarks.native_roofline [--threads 1] [--rounds 9] [--out FILE]``.
Each 3x3 layer of ``benchmarks.native_single`` is a point for each kernel: operations of the direct form for each byte of input,
output and 4-bit weights, and operations a second. Above it are the measured peak of byte products, what Winograd makes of it
(36/16 as many operations), and the slopes of L2, L3 and memory, all measured in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import atan2, degrees
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.native_layers import WINOGRAD_GAIN, parse_layer
from benchmarks.native_probe import Peaks, measure_peaks
from benchmarks.native_single import KERNELS, LAYERS, SingleLayer, has_winograd, time_single
from benchmarks.plot_labels import label_points

DEFAULT_OUT = Path("docs/images/native-roofline.svg")
_STYLES: dict[str, dict[str, Any]] = {
    "winograd": {"label": "Winograd, 8-bit products", "marker": "o", "color": "#0b5fa5", "markersize": 8},
    "direct": {"label": "our direct kernel", "marker": "s", "color": "#d9822b", "markersize": 6},
    "openvino": {"label": "OpenVINO, 8-bit", "marker": "^", "color": "#4d9221", "markersize": 7},
}
_CEILING = "#222222"
_SLOPE = "#9a9a9a"


@dataclass(frozen=True)
class Point:
    """One layer by one kernel."""

    layer: SingleLayer
    kernel: str
    gops: float

    @property
    def intensity(self) -> float:
        return 2 * self.layer.multiplications / self.layer.traffic_bytes


def measure_points(layers: Sequence[SingleLayer], threads: int, rounds: int) -> list[Point]:
    """Every kernel of every layer, in its fastest round: peaks are what was ever reached, too."""
    points = []
    for layer in layers:
        times = time_single(layer, threads, rounds, KERNELS if has_winograd() else KERNELS[1:])
        points += [Point(layer, kernel, 2 * layer.multiplications / min(values)) for kernel, values in times.items()]
    return points


def draw(points: Sequence[Point], peaks: Peaks, title: str, out: Path) -> None:
    """Write the picture; the file's ending says in which format."""
    matplotlib.rcParams["svg.hashsalt"] = "medquant"
    figure = Figure(figsize=(10, 6.5), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    roof = peaks.products * WINOGRAD_GAIN
    lowest, highest = 0.15 * roof / peaks.l2, max(each.intensity for each in points) * 2.5
    axes.set(xscale="log", yscale="log", xlim=(lowest, highest), ylim=(min(each.gops for each in points) / 2.5, roof * 1.3))
    for kernel, style in _STYLES.items():
        chosen = [each for each in points if each.kernel == kernel]
        if chosen:
            axes.plot([each.intensity for each in chosen], [each.gops for each in chosen], linestyle="none", zorder=3, **style)
    axes.set_xlabel("operations of the direct form a byte of input, output and weights")
    axes.set_ylabel("operations of the direct form, billions a second")
    axes.set_title(title, fontsize=11)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(LogLocator(subs=(3, 4, 6, 7, 8, 9)))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="both", color="#ececec", linewidth=0.6, zorder=0)
    axes.legend(loc="lower right", framealpha=1.0)
    _draw_roofs(axes, peaks, (lowest, highest))
    fastest = {each.layer.name: (each.intensity, each.gops) for each in sorted(points, key=lambda each: each.gops)}
    label_points(figure, axes, fastest, [(each.intensity, each.gops) for each in points], (peaks.products, roof))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)


def _draw_roofs(axes: Axes, peaks: Peaks, span: tuple[float, float]) -> None:
    roof = peaks.products * WINOGRAD_GAIN
    for name, height in (("peak of byte products", peaks.products), ("with Winograd, × 36/16", roof)):
        axes.plot(span, (height, height), color=_CEILING, linewidth=1.4, zorder=2)
        axes.text(span[1] / 1.05, height * 1.04, f"{name}: {height:.0f}", fontsize=9, color=_CEILING, ha="right")
    bottom = axes.get_ylim()[0]
    figure = axes.get_figure(root=True)
    if isinstance(figure, Figure):
        figure.draw_without_rendering()  # angles on the page are known when it is laid out
    for name, key in (("memory", "memory"), ("L3", "l3"), ("L2", "l2")):
        bandwidth = asdict(peaks)[key]
        axes.plot((span[0] / 10, roof / bandwidth), (span[0] / 10 * bandwidth, roof), color=_SLOPE, linewidth=1.2, linestyle="--", zorder=1)
        where = max(bottom * 1.3 / bandwidth, span[0] * 1.15)
        axes.annotate(
            f"{name} {bandwidth:.0f} GB/s",
            (where, where * bandwidth),
            xytext=(-5, 3),
            textcoords="offset points",
            rotation=_angle(axes, bandwidth),
            rotation_mode="anchor",
            fontsize=8.5,
            color="#5a5a5a",
        )


def _angle(axes: Axes, bandwidth: float) -> float:
    """Of a slope, on the page."""
    (x0, y0), (x1, y1) = axes.transData.transform([(10, 10 * bandwidth), (100, 100 * bandwidth)])
    return degrees(atan2(y1 - y0, x1 - x0))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native_roofline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", nargs="+", type=parse_layer, default=list(LAYERS), metavar="IN-OUT-SIDE")
    parser.add_argument("--threads", type=int, default=1, help="threads of the kernels and of the peaks (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default 9)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"default {DEFAULT_OUT}")
    chosen = parser.parse_args(arguments)
    before = measure_peaks(chosen.threads)
    points = measure_points(chosen.layers, chosen.threads, chosen.rounds)
    after = measure_peaks(chosen.threads)
    # A peak is what was ever reached: the machine may have been busy at one of the two times.
    peaks = Peaks(*(max(pair) for pair in zip(asdict(before).values(), asdict(after).values(), strict=True)))
    draw(points, peaks, f"3×3 layers with 4-bit weights and 6-bit activations, {chosen.threads} thread(s)", chosen.out)
    for point in points:
        print(f"{point.layer.name:18} {point.kernel:9} {point.intensity:7.0f} operations a byte {point.gops:7.0f} GOP/s")
    print(f"{chosen.out}: {peaks}")


if __name__ == "__main__":
    main()
