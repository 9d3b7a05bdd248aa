"""Peak memory of one variant's training step, measured in a process of its own.

The figure is the highest resident set (VmHWM) during three steps, less the resident set before the network is built. All
imports, a small export and one step of a tiny network lie before that, so they do not count.
Run as ``python -m benchmarks.step_memory '{"variant": …}'`` it prints the bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.step_variants import SETTINGS, Setting, Shape, build_step

MEASURED_STEPS = 3
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_LIMIT_S = 600


def peak_bytes(variant: str, setting: Setting, shape: Shape, threads: int) -> int | None:
    """Measure in a child process; None where the system does not tell a process's peak (anything but Linux)."""
    if not _CLEAR.exists():
        return None
    order = {"variant": variant, "setting": setting.name, "shape": shape.as_dict(), "threads": threads}
    command = [sys.executable, "-m", "benchmarks.step_memory", json.dumps(order)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if child.returncode != 0:
        raise RuntimeError(f"measuring {variant} failed: {child.stderr.strip().splitlines()[-1:]}")
    return int(child.stdout.split()[-1])


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def _measure_here(variant: str, setting: Setting, shape: Shape) -> int:
    build_step(variant, setting, Shape(channels=4, depth=2, size=32, batch=1))()
    before = _status_bytes("VmRSS")
    step = build_step(variant, setting, shape)
    _CLEAR.write_text(_RESET_PEAK)
    for _ in range(MEASURED_STEPS):
        step()
    return _status_bytes("VmHWM") - before


def main() -> None:
    import torch

    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    print(_measure_here(order["variant"], SETTINGS[order["setting"]], Shape(**order["shape"])))


if __name__ == "__main__":
    main()
