"""How much memory ``medquant predict`` takes for a CT of 512×512×400 voxels, with 2 and with 20 classes.

Builds untrained W4A6 U-Nets of 16..128 channels as model files and a made-up scan (smooth noise and ellipsoids, Hounsfield units)
as ``.nii.gz``, ``.nii`` and as a DICOM series; runs the command in a process of its own for each; and samples that process:

- ``peak``: largest resident set (VmHWM) above that of an idle process with the same imports, mapped pages of files included;
- ``anonymous``: largest anonymous memory (RssAnon) above the idle one, what the process cannot give back.

    python benchmarks/prediction_memory.py [--slices 400] [--size 512] [--engine auto] [--rounds 3] [--only nii.gz]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.dicom import write_dicom_series
from medquant.data.nifti import write_nifti
from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation
from medquant.data.prepared_grid import GridRule
from medquant.data.volume import Volume
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import save_model
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConcatNode, ConvolutionNode, ImageNode, IntegerProgram, MaxPoolNode, Node, UpsampleNode

IDLE = (
    "import sys, medquant.cli.main, medquant.predict.many_scans, medquant.data.dicom.slabs, medquant.data.nifti_slabs, scipy.ndimage, "
    "nibabel, pydicom\n"
    "from medquant.deploy.engines import open_engine\nfrom medquant.deploy.self_test import small_program\n"
    "import numpy as np\nengine = open_engine(sys.argv[1], small_program())\nengine.run(np.zeros((1, 1, 32, 32), np.uint8))\n"
    "if sys.argv[2] == 'dcm':\n    import highdicom, pydicom.sr.codedict\n"
    "print(open('/proc/self/status').read())"
)
COMMAND = "import sys; from medquant.cli.main import main; sys.argv[0] = 'medquant'; main()"


def unet(classes: int, channels: int = 16, depth: int = 4, seed: int = 0) -> IntegerProgram:
    """An untrained W4A6 U-Net with widths c, 2c, 4c, 8c and so many outputs (one for two classes)."""
    random = np.random.default_rng(seed)
    nodes: list[Node] = [ImageNode("image", (), TensorFormat(8, 128, 5), 1)]
    inner = TensorFormat(6, 0, 4)

    def add(name: str, source: str, inputs: int, outputs: int, written: TensorFormat | None = inner) -> str:
        weight, bias = random.integers(-8, 8, (outputs, inputs, 3, 3)), random.integers(-100, 200, outputs)
        exponents = np.full(outputs, 6 + int(np.log2(inputs) / 2), dtype=np.int64)
        nodes.append(
            ConvolutionNode(name, (source,), written, weight, bias, exponents, 4, ConvGeometry((1, 1), (1, 1), (1, 1)), written is not None)
        )
        return name

    widths, skips, at, inputs = [channels * 2**level for level in range(depth)], [], "image", 1
    for level, width in enumerate(widths):
        at = add(f"enc{level}b", add(f"enc{level}a", at, inputs, width), width, width)
        inputs = width
        if level < depth - 1:
            skips.append(at)
            nodes.append(MaxPoolNode(f"pool{level}", (at,), inner, (2, 2), (2, 2), (0, 0)))
            at = f"pool{level}"
    for level in range(depth - 2, -1, -1):
        nodes.append(UpsampleNode(f"up{level}", (at,), inner, 2, "linear", 2))
        nodes.append(ConcatNode(f"join{level}", (f"up{level}", skips[level]), inner))
        at = add(f"dec{level}b", add(f"dec{level}a", f"join{level}", inputs + widths[level], widths[level]), widths[level], widths[level])
        inputs = widths[level]
    outputs = 1 if classes == 2 else classes
    add("head", at, inputs, outputs, None)
    last = nodes[-1]
    exponents = tuple(int(each) + 4 for each in last.weight_exponents) if isinstance(last, ConvolutionNode) else ()
    return IntegerProgram(tuple(nodes), exponents)


def write_model(path: Path, classes: int, normalisation: Normalisation) -> None:
    names = {0: "background", **{number: f"organ {number}" for number in range(1, classes)}}
    metadata = ModelMetadata.model_validate(
        {
            "preparation": Preparation(normalisation, GridRule("axial")).to_json(),
            "size_multiple": 8,
            "classes": names,
            "scored": tuple(names.values())[1:],
            "positive_class": 1 if classes == 2 else None,
            "float_parameters": 0,
            "dataset": "made up",
            "data_sha256": "0" * 64,
        }
    )
    save_model(path, unet(classes), metadata)


def phantom_ct(size: int, slices: int, seed: int = 0) -> NDArray[np.int16]:
    """A body of soft tissue in air, ellipsoids of 20 densities, smooth noise; (I, J, K) with slices contiguous."""
    random = np.random.default_rng(seed)
    image = np.empty((slices, size, size), dtype=np.int16)
    y, x = (np.mgrid[:size, :size].astype(np.float32) - size / 2) / (size / 2)
    middles, radii = random.uniform(-0.6, 0.6, (20, 3)), random.uniform(0.08, 0.3, (20, 3))
    densities = random.uniform(-150, 400, 20)
    coarse = random.normal(0, 30, (slices // 8 + 2, size // 8 + 1, size // 8 + 1)).astype(np.float32)
    for k in range(slices):
        z = (2 * k + 1) / slices - 1
        page = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0).astype(np.float32)
        for middle, radius, density in zip(middles, radii, densities, strict=True):
            page[(((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2 + ((z - middle[2]) / radius[2]) ** 2) < 1] = (
                density
            )
        share = k % 8 / 8
        smooth = (1 - share) * coarse[k // 8] + share * coarse[k // 8 + 1]
        page += np.kron(smooth, np.ones((8, 8), dtype=np.float32))[:size, :size] + random.normal(0, 10, (size, size)).astype(np.float32)
        image[k] = np.clip(page, -1024, 3071).astype(np.int16)
    return image.transpose(2, 1, 0)


def status(text: str) -> dict[str, int]:
    """Kilobytes by name, of /proc/<pid>/status."""
    pairs = (line.split(":", 1) for line in text.splitlines() if line.startswith(("VmHWM", "RssAnon", "RssFile")))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def idle(engine: str, kind: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", IDLE, engine, kind], capture_output=True, text=True, check=True)
    return status(done.stdout)


def measure(arguments: list[str]) -> tuple[dict[str, int], float]:
    """Largest VmHWM and RssAnon of the command while it runs."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most: dict[str, int] = {}
    place = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            found = status(place.read_text())
        except OSError:
            break
        # Of a process that has just ended nothing is left to read.
        most |= {name: max(most.get(name, 0), value) for name, value in found.items()}
        time.sleep(0.01)
    errors = child.communicate()[1]
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)}: ended with {child.returncode}\n{errors}")
    return most, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=400)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose label holds this text")
    parser.add_argument("--folder", type=Path, help="where scan and models are kept between calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        scans = make_inputs(folder, options.size, options.slices)
        rows = [
            (f"{name} to {out}, {kind}", scan, folder / f"mask.{out}", kind)
            for name, scan, out, kind in (
                ("nii.gz", scans["nii.gz"], "nii.gz", "range"),
                ("nii", scans["nii"], "nii.gz", "range"),
                ("DICOM", scans["dicom"], "nii.gz", "range"),
                ("DICOM", scans["dicom"], "dcm", "range"),
                ("nii.gz", scans["nii.gz"], "nii.gz", "zscore"),
            )
        ]
        print(
            f"{options.size}×{options.size}×{options.slices}, engine {options.engine}, MB above the idle process; threads "
            f"{os.environ.get('OMP_NUM_THREADS', 'all')}"
        )
        for label, scan, out, kind in rows:
            if options.only not in label:
                continue
            base = idle(options.engine, out.name.split(".", 1)[1])
            peaks: dict[int, list[float]] = {2: [], 20: []}
            # One after the other, so that whatever else the machine does meets both alike.
            for _ in range(options.rounds):
                for classes, found in peaks.items():
                    arguments = ["predict", str(folder / f"{kind}{classes}.mq"), str(scan), str(out), "--overwrite"]
                    most, elapsed = measure([*arguments, "--engine", options.engine])
                    peak, anonymous = ((most[name] - base[name]) / 1e6 for name in ("VmHWM", "RssAnon"))
                    found.append(max(peak, anonymous))
                    print(f"{label:28} {classes:3} classes: peak {peak:6.0f}, anonymous {anonymous:6.0f}, {elapsed:6.1f} s", flush=True)
            few, many = (float(np.median(found)) for found in peaks.values())
            spread = ", ".join(f"{classes}: {min(found):.0f} to {max(found):.0f}" for classes, found in peaks.items())
            print(f"{label:28} median {few:.0f} and {many:.0f} ({spread}): {many / few:.3f}", flush=True)


def make_inputs(folder: Path, size: int, slices: int) -> dict[str, Path]:
    places = {"nii.gz": folder / "scan.nii.gz", "nii": folder / "scan.nii", "dicom": folder / "series"}
    if not places["dicom"].exists():
        affine = np.diag([-0.8, -0.8, 1.0, 1.0])
        affine[:3, 3] = size * 0.4, size * 0.4, -slices / 2
        volume = Volume(phantom_ct(size, slices), affine)
        write_nifti(places["nii.gz"], volume)
        write_nifti(places["nii"], volume)
        write_dicom_series(places["dicom"], volume, description="made up")
    for classes in (2, 20):
        write_model(folder / f"range{classes}.mq", classes, Normalisation("range", -200.0, 300.0))
        write_model(folder / f"zscore{classes}.mq", classes, Normalisation("zscore_volume"))
    return places


if __name__ == "__main__":
    main()
