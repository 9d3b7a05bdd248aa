"""The measurements of the native engine: that they run, and that what they count and draw is right. Times are not tested."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import inference, native_layers, native_roofline
from benchmarks.inference_networks import WORKLOADS
from benchmarks.inference_variants import DEFAULT_VARIANTS, NATIVE, OTHER_KERNELS, VARIANTS, _native
from benchmarks.native_probe import CannotProbeError, Peaks, measure_peaks, measure_stages
from benchmarks.native_single import KERNELS, LAYERS, NativeProgram, SingleLayer, has_winograd, time_single
from benchmarks.plot_labels import label_points
from medquant.deploy.engines import open_engine
from medquant.deploy.native import why_missing
from medquant.deploy.native.library import KERNELS_VARIABLE

needs_library = pytest.mark.skipif(why_missing() is not None, reason=why_missing() or "")
SMALL = SingleLayer(16, 16, 12)
WIDEST = 160


def test_work_and_traffic_of_a_layer() -> None:
    # By hand: 9 taps, 64 * 64 channels, 512 * 512 voxels.
    assert LAYERS[0].multiplications == 9 * 4096 * 262144 == 9663676416
    # 16 bytes in and 16 out of each of 144 voxels, and 2304 weights of half a byte.
    assert SMALL.traffic_bytes == 32 * 144 + 1152 == 5760


@pytest.mark.parametrize("text", ["64-64", "64-64-x", "24-16-32", "0-16-32", "16-16-0"])
def test_a_layer_that_no_kernel_is_for(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        native_layers.parse_layer(text)
    assert native_layers.parse_layer("64-32-256") == SingleLayer(64, 32, 256)


@needs_library
@pytest.mark.parametrize("bits", [6, 7])
def test_single_layers_are_not_trivial(bits: int) -> None:
    """Equal to the reference engine, and neither all zero nor all clamped."""
    program, image = SMALL.program(bits), SMALL.image(bits)
    expected = open_engine("reference", program).run(image)
    np.testing.assert_array_equal(open_engine("native", program).run(image), expected)
    assert np.mean((expected > 0) & (expected < 63)) > 0.2


@needs_library
def test_kernels_side_by_side() -> None:
    if not has_winograd():
        pytest.skip("this processor's kernels have no Winograd")
    pytest.importorskip("openvino")
    times = time_single(SMALL, threads=1, rounds=2)
    assert list(times) == list(KERNELS)
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
    # Seven bits: the step that is timed must be the direct kernel's.
    opened = NativeProgram(SMALL.program(7), threads=1)
    assert [step["kind"] for step in opened.steps(SMALL.image(7))][:2] == ["image", "direct"]
    opened.close()


@needs_library
@pytest.mark.slow
def test_steps_of_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    measured = native_layers.measure_network(WORKLOADS["quick"], threads=1, rounds=1)
    steps = {step["name"]: step for step in measured["steps"]}
    # 8 to 8 channels on 64x64 voxels, and of the transposed one: 4 taps, 32 to 16 channels, 16x16 voxels of the input.
    assert steps["down.0.3"]["multiplications"] == 9 * 64 * 4096
    assert steps["up.1"]["multiplications"] == 4 * 512 * 256
    assert sum(step["share"] for step in steps.values()) == pytest.approx(1.0)
    step = steps["down.0.3"]
    assert step["gops"] == pytest.approx(2 * step["multiplications"] / step["nanoseconds"]["median"])
    native_layers._print_network("quick", measured, 1, {"products": 1000.0})
    assert all(len(line) <= WIDEST for line in capsys.readouterr().out.splitlines())


def test_share_of_the_ideal() -> None:
    # 10^9 multiplications, two operations each, in 2 ms are 1000 GOP/s, all of the peak; in 1 ms twice that. Winograd: over 36/16.
    peaks, took = {"products": 1000.0}, {"median": 2e6, "min": 1e6}
    assert native_layers._of_ideal(10**9, took, False, peaks) == "100 (200)"
    assert native_layers._of_ideal(10**9, took, True, peaks) == "44 (89)"
    assert native_layers._of_ideal(10**9, took, True, None) == native_layers._of_ideal(0, took, False, peaks) == "–"


@needs_library
@pytest.mark.slow
def test_what_is_compiled_on_the_fly() -> None:
    try:
        peaks = measure_peaks(threads=2, milliseconds=10)
        narrow, wide = measure_stages([(16, 16, 10), (32, 48, 9)], rounds=1)
    except CannotProbeError as error:
        pytest.skip(str(error))
    assert min(peaks.products, peaks.l2, peaks.l3, peaks.memory) > 0
    assert narrow.total > 0
    assert min(wide.inputs, wide.products, wide.outputs) > 0


def test_names_cover_neither_points_nor_one_another() -> None:
    figure = Figure(figsize=(8, 5))
    axes = figure.add_subplot()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    points = {f"layer number {n}": (5 + 0.3 * (n % 3), 5 + 0.2 * (n // 3)) for n in range(9)}
    label_points(figure, axes, points, points.values(), heights=(5.7,))
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if text.get_text()]
    assert {text.get_text() for text in texts} == set(points)
    boxes = [text.get_bbox_patch() or super(type(text), text).get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.contains(*axes.transData.transform(point)) for box in boxes for point in points.values())
    line = axes.transData.transform((0, 5.7))[1]
    assert not any(box.y0 < line < box.y1 for box in boxes)


def test_picture(tmp_path: Path) -> None:
    points = [native_roofline.Point(layer, kernel, 500.0 + 20 * n) for n, layer in enumerate(LAYERS) for kernel in KERNELS]
    # 64 to 64 channels: 2 * 9 * 64 * 64 operations a voxel, 128 bytes; the weights count little.
    assert points[0].intensity == pytest.approx(576, rel=0.01)
    native_roofline.draw(points, Peaks(1000.0, 220.0, 110.0, 40.0), "a title", tmp_path / "new" / "roof.svg")
    assert (tmp_path / "new" / "roof.svg").read_text().startswith("<?xml")


def test_variants_of_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert NATIVE in VARIANTS
    assert (NATIVE in DEFAULT_VARIANTS) == (why_missing() is None)
    assert not set(OTHER_KERNELS) & set(DEFAULT_VARIANTS)
    seen: list[str | None] = []

    def opened(*_: Any) -> Any:
        seen.append(os.environ.get(KERNELS_VARIABLE))

    monkeypatch.setattr("benchmarks.inference_variants._medquant", lambda engine: opened)
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    _native("portable")(WORKLOADS["quick"], Path(), 1)
    assert KERNELS_VARIABLE not in os.environ
    monkeypatch.setenv(KERNELS_VARIABLE, "portable")
    _native()(WORKLOADS["quick"], Path(), 1)
    assert seen == ["portable", ""]
    assert os.environ[KERNELS_VARIABLE] == "portable"


def test_a_table_of_large_numbers_stays_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "latency_s": {"median": 1.2345, "min": 1.2, "max": 12.3},
        "images_per_s": {"median": 12345.6, "min": 1.0, "max": 1.0},
        **{f"speed_over_{base}": {"median": 99.94, "min": 99.9, "max": 99.94} for base in inference.BASES},
        **{"peak_bytes": 2**33, "peak_over_nncf-int8": 12.345, "file_bytes": 2**29},
    }
    inference._print_rows(WORKLOADS["quick"], {"medquant-native-avx512vnni": row})
    heading, cells = capsys.readouterr().out.splitlines()[-2:]
    assert len(cells) <= WIDEST
    assert all(title in heading for title in inference.BASES.values())
    assert cells.count("99.9 (99.9–99.9)") == len(inference.BASES)


@pytest.mark.slow
@needs_library
def test_inference_runs_the_native_engine(repository: Path, tmp_path: Path) -> None:
    variants = ["medquant-torch", NATIVE]
    command = [sys.executable, "-m", "benchmarks.inference", "--networks", "quick", "--threads", "1", "--rounds", "1", "--warm-up", "0"]
    environment = {**os.environ, "MEDQUANT_CACHE": str(tmp_path)}
    ran = subprocess.run(
        [*command, "--folder", str(tmp_path), "--variants", *variants], cwd=repository, capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()[-2:]] == variants
