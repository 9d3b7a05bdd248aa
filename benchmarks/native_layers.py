"""The native engine layer by layer: time, share of the network, and how near the processor's peak each comes.

Run from the repository's root: ``python -m benchmarks.native_layers [--networks unet64 unet16 paper] [--threads 1 2] [--rounds 9]``.
Three tables: the steps of whole networks as the engine times them; 3x3 layers alone, Winograd beside our own direct kernel and
OpenVINO's in turns; and the stages of the Winograd kernel apart. docs/native.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

from benchmarks.inference_networks import WORKLOADS, Workload
from benchmarks.interleaved import Spread, ratios
from benchmarks.native_probe import CannotProbeError, Peaks, measure_peaks, measure_stages
from benchmarks.native_single import KERNELS, LAYERS, NativeProgram, SingleLayer, has_winograd, time_single
from benchmarks.training_step import _processor

# A tile of four outputs takes 16 products in place of 36.
WINOGRAD_GAIN = 36 / 16
DEFAULT_NETWORKS = ("unet64", "unet16", "paper")


def parse_layer(text: str) -> SingleLayer:
    """``64-64-512`` is 64 to 64 channels on 512x512 voxels."""
    try:
        inputs, outputs, side = (int(part) for part in text.split("-"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected INPUTS-OUTPUTS-SIDE, as 64-64-512") from None
    if min(inputs, outputs) < 16 or inputs % 16 or outputs % 16 or side < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected channels in multiples of 16")
    return SingleLayer(inputs, outputs, side)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native_layers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=list(WORKLOADS), default=list(DEFAULT_NETWORKS), metavar="NAME")
    parser.add_argument("--layers", nargs="*", type=parse_layer, default=list(LAYERS), metavar="IN-OUT-SIDE", help="layers timed alone")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads (default 1 2)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default 9)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure_network(workload: Workload, threads: int, rounds: int) -> dict[str, Any]:
    """Each step of a network; times are medians of the rounds, of which the first one does not count."""
    from medquant.deploy.decide import quantize_image

    program = workload.program()
    image = quantize_image(workload.image().numpy(), program.format_of(program.image.name))
    opened = NativeProgram(program, threads)
    try:
        opened.steps(image)
        seen = [opened.steps(image) for _ in range(rounds)]
        described = opened.described()
    finally:
        opened.close()
    whole = median(sum(step["nanoseconds"] for step in steps) for steps in seen)
    rows = []
    for steps in zip(*seen, strict=True):
        first, took = steps[0], Spread.of([float(step["nanoseconds"]) for step in steps])
        share = median(
            step["nanoseconds"] / sum(each["nanoseconds"] for each in steps_of) for step, steps_of in zip(steps, seen, strict=True)
        )
        row = {key: first[key] for key in ("name", "kind", "multiplications")}
        rows.append({**row, "nanoseconds": took.as_dict(), "share": share, "gops": _gops(first["multiplications"], took.median)})
    return {"kernels": described["kernels"], "nanoseconds": whole, "steps": rows} | {
        key: described[key] for key in ("weight_bytes", "arena_bytes")
    }


def measure_layer(layer: SingleLayer, threads: int, rounds: int, kernels: Sequence[str] = KERNELS) -> dict[str, Any]:
    """One layer alone by each kernel, and how many times faster the first of them is than the others."""
    times = time_single(layer, threads, rounds, kernels)
    row: dict[str, Any] = {"name": layer.name, "multiplications": layer.multiplications}
    for kernel, values in times.items():
        row[kernel] = {"nanoseconds": Spread.of(values).as_dict(), "gops": _gops(layer.multiplications, median(values))}
        if kernel != kernels[0]:
            row[kernel][f"over_{kernels[0]}"] = ratios(values, times[kernels[0]]).as_dict()
    return row


def _gops(multiplications: int, nanoseconds: float) -> float:
    """Two operations a multiplication of the direct form, whichever form was computed."""
    return 2 * multiplications / max(nanoseconds, 1.0)


def probe(what: Callable[[], Any]) -> Any:
    """What was measured, or None, with the reason on standard error."""
    try:
        return what()
    except CannotProbeError as error:
        print(f"not measured: {error}", file=sys.stderr)
        return None


def _best(first: Peaks | None, second: Peaks | None) -> Peaks | None:
    """A peak is what was ever reached: the machine may have been busy at one of two times."""
    if first is None or second is None:
        return None
    return Peaks(*(max(pair) for pair in zip(asdict(first).values(), asdict(second).values(), strict=True)))


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    by_threads: dict[int, Any] = {}
    kernels = KERNELS if has_winograd() else KERNELS[1:]
    for threads in arguments.threads:
        before = probe(partial(measure_peaks, threads))
        networks = {name: measure_network(WORKLOADS[name], threads, arguments.rounds) for name in arguments.networks}
        layers = [measure_layer(layer, threads, arguments.rounds, kernels) for layer in arguments.layers]
        peaks = _best(before, probe(partial(measure_peaks, threads)))
        by_threads[threads] = {"peaks": peaks and asdict(peaks), "networks": networks, "layers": layers}
    stages = None
    if arguments.layers and kernels is KERNELS:
        sizes = [(layer.inputs, layer.outputs, layer.side) for layer in arguments.layers]
        stages = probe(lambda: [asdict(each) for each in measure_stages(sizes, arguments.rounds)])
    return {"threads": by_threads, "stages": stages}


# --- printing ---------------------------------------------------------------------------------------------------------


def _spread(values: dict[str, float], scale: float = 1.0, digits: int = 2) -> str:
    middle, low, high = (f"{values[key] * scale:.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle} ({low}–{high})"


def _milliseconds(values: dict[str, float]) -> str:
    return _spread(values, 1e-6, digits=3)


def _of_ideal(multiplications: int, nanoseconds: dict[str, float], winograd: bool, peaks: dict[str, float] | None) -> str:
    """Percent of the peak of byte products, for Winograd of 36/16 of it: in the median round, and in the fastest, as the peak is."""
    if peaks is None or not multiplications:
        return "–"
    ideal = peaks["products"] * (WINOGRAD_GAIN if winograd else 1)
    shares = (100 * _gops(multiplications, nanoseconds[key]) / ideal for key in ("median", "min"))
    return "{:.0f} ({:.0f})".format(*shares)


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """The first ``left`` columns to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    for row in [titles, *rows]:
        cells = (f"{cell:<{width}}" if n < left else f"{cell:>{width}}" for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
        print("  ".join(cells).rstrip())


def _print_network(name: str, measured: dict[str, Any], threads: int, peaks: dict[str, float] | None) -> None:
    print(
        f"\n{WORKLOADS[name].meaning}: {measured['nanoseconds'] / 1e6:.2f} ms in steps, {threads} thread(s), kernels {measured['kernels']}"
    )
    print(f"weights {measured['weight_bytes'] / 2**20:.2f} MiB, activations and buffers {measured['arena_bytes'] / 2**20:.2f} MiB")
    rows = []
    for step in measured["steps"]:
        ideal = _of_ideal(step["multiplications"], step["nanoseconds"], step["kind"] == "winograd", peaks)
        work = [f"{step['multiplications'] / 1e6:.0f}", f"{step['gops']:.0f}"] if step["multiplications"] else ["–", "–"]
        rows.append([step["name"], step["kind"], _milliseconds(step["nanoseconds"]), f"{100 * step['share']:.1f}", *work, ideal])
    _print_table(["step", "kind", "ms", "% of time", "M mult.", "GOP/s", "% of ideal (best)"], rows, left=2)


def _print_layers(layers: list[dict[str, Any]], threads: int, peaks: dict[str, float] | None) -> None:
    kernels = [kernel for kernel in KERNELS if kernel in layers[0]]
    first, others = kernels[0], kernels[1:]
    print(f"\nLayers alone, {threads} thread(s): {first}, and how many times as long the others take")
    rows = []
    for row in layers:
        gops, took = row[first]["gops"], row[first]["nanoseconds"]
        ideal = _of_ideal(row["multiplications"], took, first == "winograd", peaks)
        over = [_spread(row[kernel][f"over_{first}"]) for kernel in others]
        rows.append([row["name"], _milliseconds(took), f"{gops:.0f}", ideal, *over])
    _print_table(["3x3 layer", f"{first} ms", "GOP/s", "% of ideal (best)", *(f"{kernel} ×" for kernel in others)], rows, left=1)


def _print_stages(layers: Sequence[SingleLayer], stages: list[dict[str, float]], peaks: dict[str, float] | None) -> None:
    print("\nStages of the Winograd kernel, 1 thread, fastest round (products and outputs are one function where outputs are –)")
    rows = []
    for layer, stage in zip(layers, stages, strict=True):
        total = sum(stage.values())
        shares = [f"{100 * stage[name] / total:.0f} %" if stage[name] else "–" for name in ("inputs", "products", "outputs")]
        ideal = peaks and 2 * layer.multiplications / (peaks["products"] * WINOGRAD_GAIN)
        speed = f"{100 * ideal / stage['products']:.0f}" if ideal else "–"
        rows.append([layer.name, f"{total / 1e6:.2f}", *shares, speed])
    _print_table(["3x3 layer", "ms", "inputs", "products", "outputs", "products, % of ideal"], rows, left=1)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _arguments(arguments)
    measured = _measure(chosen)
    if chosen.json:
        document = {"schema": 1, "benchmark": "native_layers", "processor": _processor(), "rounds": chosen.rounds}
        print(json.dumps({**document, **measured}, indent=2, ensure_ascii=False))
        return
    print(f"{_processor()}, {chosen.rounds} rounds")
    for threads, found in measured["threads"].items():
        peaks = found["peaks"]
        if peaks:
            print(f"\n{threads} thread(s): at most {peaks['products']:.0f} GOP/s of byte products; reads GB/s: ", end="")
            print(", ".join(f"{name} {peaks[key]:.0f}" for name, key in (("L2", "l2"), ("L3", "l3"), ("memory", "memory"))))
        for name, network in found["networks"].items():
            _print_network(name, network, threads, peaks)
        if found["layers"]:
            _print_layers(found["layers"], threads, peaks)
    if measured["stages"]:
        _print_stages(chosen.layers, measured["stages"], measured["threads"].get(1, {}).get("peaks"))


if __name__ == "__main__":
    main()
