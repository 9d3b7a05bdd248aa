"""Exported files in the runtimes of their vendors, opened as anybody would: nothing of medquant helps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.base import thread_count
from medquant.deploy.openvino_import import openvino_core
from medquant.errors import CheckpointError, UsageError

RunExported = Callable[[NDArray[np.float32]], tuple[NDArray[np.int32], NDArray[np.uint8]]]
"""Normalised image (N, C, *S) → output integers (N, O, *S) and mask (N, *S)."""


@dataclass(frozen=True)
class Runtime:
    """A vendor's runtime.

    Args:
        name: what reports call it.
        package: the library.
        endings: files it reads.
        open: reads a file; raises :class:`CheckpointError` where it cannot.
    """

    name: str
    package: str
    endings: tuple[str, ...]
    open: Callable[[Path], RunExported]

    def absent(self) -> bool:
        """Whether its library is not installed."""
        return find_spec(self.package) is None


def _open_in_onnxruntime(path: Path) -> RunExported:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The library has a dozen error types of its own, without a common one.
        raise CheckpointError(f"{path}: ONNX Runtime cannot read it ({first_line(error)}); export the model anew") from error

    def run(image: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        levels, mask = session.run(["levels", "mask"], {"image": image})
        return np.asarray(levels).astype(np.int32), np.asarray(mask)

    return run


def _open_in_openvino(path: Path) -> RunExported:
    core = openvino_core()
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: OpenVINO cannot read it ({first_line(error)}); export the model anew") from error

    def run(image: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        results = compiled({"image": image})
        return np.asarray(results["levels"]).astype(np.int32), np.array(results["mask"])

    return run


RUNTIMES = (
    Runtime("ONNX Runtime", "onnxruntime", (".onnx",), _open_in_onnxruntime),
    Runtime("OpenVINO", "openvino", (".onnx", ".xml"), _open_in_openvino),
)


def runtimes_for(path: Path) -> list[Runtime]:
    """The runtimes that read files of this ending.

    Raises:
        UsageError: none does, or there is no such file.
    """
    fitting = [runtime for runtime in RUNTIMES if path.suffix in runtime.endings]
    if not fitting:
        raise UsageError(f"{path}: expected an exported file, .onnx or .xml")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    return fitting


def first_line(error: Exception) -> str:
    """What a library said, without its stack."""
    # OpenVINO says first where in its sources it was, and last what was wrong.
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from ")]
    return lines[0][:200] if lines else type(error).__name__
