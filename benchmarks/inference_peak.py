"""The child of the inference benchmark: opens one variant, runs some images, prints its peak above idle in bytes."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.inference_networks import WORKLOADS
from benchmarks.inference_variants import VARIANTS

_STATUS, _CLEAR, _RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs"), "5"


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def main() -> None:
    name, network, folder, threads, runs = sys.argv[1:6]
    workload, variant = WORKLOADS[network], VARIANTS[name]
    # Imports and what libraries set up once do not count: the small network is opened and run first.
    variant.open(WORKLOADS["quick"], Path(folder) / "idle", int(threads))()
    workload.image()
    before = _status_bytes("VmRSS")
    _CLEAR.write_text(_RESET_PEAK)
    run = variant.open(workload, Path(folder), int(threads))
    for _ in range(int(runs)):
        run()
    print(_status_bytes("VmHWM") - before)


if __name__ == "__main__":
    main()
