"""Measured memory: how far a process that runs one image rises above the same process before it opened the model.

The measurement runs in a child of its own, because a peak cannot be taken back: whatever this process did before would count.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from medquant.errors import CheckpointError, EngineMismatchError, InputError, MedquantError, UsageError

_KINDS: tuple[type[MedquantError], ...] = (UsageError, InputError, CheckpointError, EngineMismatchError)


def measure_process_peak(model_path: Path, input_shape: Sequence[int], engine: str = "auto", timeout_s: float = 600.0) -> int:
    """Run one image through a model file in a fresh process and measure it.

    Args:
        model_path: packed model file.
        input_shape: (N, C, *S).
        engine: name of an engine, or ``auto``.
        timeout_s: the child is ended after so many seconds.

    Returns:
        Peak resident bytes above those of the idle process with the same imports; with a GPU, its allocator's peak is added.

    Raises:
        CheckpointError: the model file cannot be read.
        InputError: the model does not take such an image, or the measurement did not end or gave nothing.
        UsageError: no engine of this name works here.
    """
    shape = ",".join(str(int(length)) for length in input_shape)
    # -P: a file of the current folder must not stand in for a module. The child finds this package where it is now.
    command = [sys.executable, "-P", "-m", "medquant.evaluate.process_memory", str(model_path.resolve()), shape, engine]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{model_path}: one image of shape {shape} took longer than {timeout_s:g} s; measure a smaller image") from error
    return _read_report(child, model_path, shape)


def _read_report(child: subprocess.CompletedProcess[str], model_path: Path, shape: str) -> int:
    if child.returncode == 0:
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
            return int(json.loads(child.stdout.splitlines()[-1])["process_peak_bytes"])
    said = child.stderr.strip().splitlines()
    last = said[-1] if said else f"ended with exit code {child.returncode} and said nothing"
    for kind in _KINDS:
        if kind.exit_code == child.returncode:
            raise kind(last)
    hint = "probably out of memory; measure a smaller image" if child.returncode < 0 else "measure a smaller image or another engine"
    raise InputError(f"{model_path}: an image of shape {shape} could not be measured ({last}); {hint}")


def _measure(model_path: Path, shape: tuple[int, ...], engine_name: str) -> dict[str, int]:
    """In the child: import all that is needed, note the idle memory, then load and run."""
    import numpy as np

    from medquant.deploy.engines import open_engine
    from medquant.deploy.packed import load_model
    from medquant.deploy.self_test import small_program

    # Opening any program imports the engine's library, which is not what the model takes.
    # Untried: what compiling loads belongs to running a model, not to an idle process.
    open_engine(engine_name, small_program(), try_out=False)
    gpu_peak = _gpu_peak_counter()
    idle = _idle_bytes()
    model = load_model(model_path)
    _check_shape(shape, model.program.image.channels, model.metadata.size_multiple)
    engine = open_engine(engine_name, model.program)
    # As a predictor does: an engine with weights of its own needs those of the file no more.
    del model
    engine.run_decided(np.zeros(shape, dtype=np.uint8))
    gpu = gpu_peak()
    return {"idle_bytes": idle, "process_peak_bytes": max(0, _peak_bytes() - idle) + gpu, "gpu_peak_bytes": gpu}


def _gpu_peak_counter() -> Callable[[], int]:
    """A function that gives the largest number of bytes torch has held on a GPU from now on; 0 where torch is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return lambda: 0
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats()
    return lambda: int(torch.cuda.max_memory_allocated())


def _check_shape(shape: tuple[int, ...], channels: int, multiple: int) -> None:
    if len(shape) not in (4, 5) or shape[1] != channels or any(length % multiple for length in shape[2:]):
        raise InputError(f"found the image shape {shape}, expected (N, {channels}, *S) with spatial axes that are multiples of {multiple}")


def _idle_bytes() -> int:
    """Resident bytes now; on Linux the peak is set back to them, because imports may have risen above."""
    import psutil

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def _peak_bytes() -> int:
    """The largest number of resident bytes this process has had."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def main(arguments: Sequence[str]) -> int:
    """The child: ``MODEL.mq N,C,H,W ENGINE`` → one JSON line on stdout, or one line on stderr and the error's exit code."""
    try:
        if len(arguments) != 3:
            raise UsageError(f"found {len(arguments)} arguments, expected MODEL.mq N,C,H,W ENGINE")
        report = _measure(Path(arguments[0]), _parse_shape(arguments[1]), arguments[2])
    except MedquantError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _parse_shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts) or math.prod(map(int, parts)) > 2**40:
        raise UsageError(f"image shape: found {text!r}, expected positive numbers such as 1,1,256,256")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
