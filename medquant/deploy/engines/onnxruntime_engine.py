"""``onnxruntime``: 8-bit kernels of ONNX Runtime on the processor, without torch."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.base import Engine, EngineInfo, thread_count
from medquant.deploy.engines.exactness import check_byte_products
from medquant.quant.program import IntegerProgram

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

_ERRORS_ONLY = 3


class OnnxRuntimeEngine(Engine):
    """The program as an ONNX graph, see :mod:`medquant.deploy.onnx_graph`.

    Layers whose sums float32 does not hold run on 32-bit integers and float64: exact too, and slower.
    """

    info = EngineInfo("onnxruntime", "8-bit kernels of ONNX Runtime, without torch", exact=True, priority=5, package="onnxruntime")

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the engine cannot work here, None where it can: it needs onnx to build the graph and onnxruntime to run it."""
        from importlib.util import find_spec

        missing = [package for package in ("onnxruntime", "onnx") if find_spec(package) is None]
        if missing:
            return f"{' and '.join(missing)} not installed; pip install {' '.join(missing)}"
        return None

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(program)
        check_byte_products(program, self.info.name)
        import onnxruntime

        from medquant.deploy.onnx_graph import levels_model

        self._session = onnxruntime.InferenceSession(levels_model(program), _options(), providers=["CPUExecutionProvider"])
        # What the graph was built from is several times the network's size.
        gc.collect()

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        self.check_image(image)
        (levels,) = self._session.run(["levels"], {"image": np.ascontiguousarray(image)})
        return np.asarray(levels, dtype=np.int32)


def _options() -> SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.inter_op_num_threads = 1
    # Waiting threads sleep: whoever shares the machine keeps it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    return options
