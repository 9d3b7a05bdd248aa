"""``openvino``: 8-bit kernels on the CPU, for machines without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.base import Engine, EngineInfo, thread_count
from medquant.deploy.engines.exactness import check_byte_products
from medquant.deploy.openvino_import import import_openvino, openvino_core
from medquant.deploy.program_check import smallest_image
from medquant.errors import EngineMismatchError
from medquant.quant.program import IntegerProgram

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest, Model

_SHAPES_KEPT = 2


class OpenVinoEngine(Engine):
    """Compiles the program for each image shape, which is faster than for all; the last two are kept: tiles have a size and a rest."""

    info = EngineInfo("openvino", "8-bit kernels of OpenVINO on the CPU, without torch", exact=True, priority=30, package="openvino")

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(program)
        check_byte_products(program, self.info.name)
        # The graph is written with what this folder checks: imported here, or the two would import each other.
        from medquant.deploy.openvino_graph import check_graph

        check_graph(program)
        self._core = openvino_core()
        self._ends_in_bytes = program.nodes[-1].output is not None
        self._requests: dict[tuple[int, ...], InferRequest] = {}

    def try_out(self) -> None:
        """Compile for the smallest image the program takes; the 2019 U-Net takes 0.4 s, and nothing of it is kept."""
        shape = smallest_image(self.program)
        if shape is not None:
            self.compile(shape)

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        return self._infer(image).astype(np.int32, copy=False)

    def run_bytes(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Run a program that ends in a format, see :meth:`Engine.run_bytes`."""
        return self._infer(image).astype(np.uint8, copy=False)

    def _infer(self, image: NDArray[np.uint8]) -> NDArray[np.integer]:
        self.check_image(image)
        request = self._request_for(image.shape)
        request.infer({0: np.ascontiguousarray(image)})
        # A copy: the next run writes to the same place.
        levels: NDArray[np.integer] = np.array(request.get_output_tensor(0).data)
        return levels

    def compile(self, shape: tuple[int, ...]) -> CompiledModel:
        """The program in 8-bit kernels for images of one shape, (N, C, *S).

        Raises:
            EngineMismatchError: OpenVINO has no kernel for it on this processor.
        """
        # Other precisions round the integers; other devices than the processor round elsewhere.
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": thread_count()}
        try:
            return self._core.compile_model(self._build(shape), "CPU", hints)
        except RuntimeError as error:
            reason = ([line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"])[-1][:200]
            raise EngineMismatchError(f"OpenVINO cannot compile the program on this processor ({reason}); use another engine") from error

    def _build(self, shape: tuple[int, ...]) -> Model:
        from medquant.deploy.openvino_graph import OpenVinoGraph

        openvino = import_openvino()
        image = openvino.opset13.parameter(list(shape), openvino.Type.u8, name="image")
        graph = OpenVinoGraph(self.program, image.output(0))
        levels = openvino.opset13.convert(graph.output, "u8" if self._ends_in_bytes else "i32")
        return openvino.Model([openvino.opset13.result(levels)], [image], "medquant")

    def _request_for(self, shape: tuple[int, ...]) -> InferRequest:
        request = self._requests.pop(shape, None)
        if request is None:
            while len(self._requests) >= _SHAPES_KEPT:
                del self._requests[next(iter(self._requests))]
            request = self.compile(shape).create_infer_request()
        # Last in is last out.
        self._requests[shape] = request
        return request
