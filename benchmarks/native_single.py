"""One 3x3 convolution at a time: our Winograd kernel, our direct kernel and OpenVINO's, in turns, each timed by its own clock.

All three read an image of many channels, which no network has, so that nothing but the copy of the image comes before the layer;
the copy has a time of its own in all of them and is left out. The direct kernel is met by giving the image 7 bits, for which
Winograd is not exact; its work is the same for 6 and 7 bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.native import forced_kernels, load_library
from medquant.deploy.native.program import encode_program
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram

KERNELS = ("winograd", "direct", "openvino")
LAYER = "layer"
_TAPS = 9


@dataclass(frozen=True)
class SingleLayer:
    """A 3x3 convolution of stride 1 with padding 1 on a square."""

    inputs: int
    outputs: int
    side: int

    @property
    def name(self) -> str:
        return f"{self.inputs}→{self.outputs}, {self.side}²"

    @property
    def multiplications(self) -> int:
        return _TAPS * self.inputs * self.outputs * self.side**2

    @property
    def traffic_bytes(self) -> int:
        """Input, output and 4-bit weights, each once."""
        return (self.inputs + self.outputs) * self.side**2 + _TAPS * self.inputs * self.outputs // 2

    def program(self, image_bits: int) -> IntegerProgram:
        """Random 4-bit weights; the output has 6 bits."""
        random = np.random.default_rng(0)
        weight = random.integers(-8, 8, (self.outputs, self.inputs, 3, 3)).astype(np.int8)
        # Sums of about 4 * sqrt(taps) * 2**bits are brought to 6 bits.
        exponents = np.full(self.outputs, 4 + int(np.log2(self.inputs) / 2) + image_bits - 6)
        bias = random.integers(-100, 100, self.outputs)
        geometry = ConvGeometry(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
        image = ImageNode("image", (), TensorFormat(image_bits, 0, 0), self.inputs)
        layer = ConvolutionNode(LAYER, ("image",), TensorFormat(6, 0, 0), weight, bias, exponents, 4, geometry, relu=True)
        return IntegerProgram((image, layer), (0,) * self.outputs)

    def image(self, image_bits: int) -> NDArray[np.uint8]:
        shape = (1, self.inputs, self.side, self.side)
        return np.random.default_rng(1).integers(0, 2**image_bits, shape).astype(np.uint8)


LAYERS = tuple(
    SingleLayer(*sizes)
    for sizes in (
        (64, 64, 512),
        (128, 64, 512),
        (128, 128, 256),
        (256, 256, 128),
        (512, 512, 64),
        (1024, 1024, 32),
        (16, 16, 512),
        (32, 16, 512),
        (32, 32, 256),
        (64, 32, 256),
        (128, 64, 128),
    )
)


class NativeProgram:
    """A program opened in the library itself, every step timed."""

    def __init__(self, program: IntegerProgram, threads: int) -> None:
        self._library = load_library()
        block, weights = encode_program(program)
        self._handle = self._library.open(block, weights, forced_kernels(self._library), threads)
        self._library.set_timing(self._handle, True)

    def steps(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Run one image; name, kind, multiplications and nanoseconds of each step."""
        self._library.run(self._handle, image)
        steps: list[dict[str, Any]] = self.described()["steps"]
        return steps

    def described(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self._library.describe(self._handle))
        return described

    def close(self) -> None:
        self._library.close(self._handle)


def _native(layer: SingleLayer, kind: str, threads: int) -> tuple[Callable[[], float], Callable[[], None]]:
    bits = {"winograd": 6, "direct": 7}[kind]
    opened, image = NativeProgram(layer.program(bits), threads), layer.image(bits)

    def run() -> float:
        step = next(each for each in opened.steps(image) if each["name"] == LAYER)
        if step["kind"] != kind:
            raise RuntimeError(f"{layer.name} was run by the kernel {step['kind']}, expected {kind}: this processor's set has no other")
        return float(step["nanoseconds"])

    return run, opened.close


def _openvino(layer: SingleLayer, threads: int) -> Callable[[], float]:
    from medquant.deploy.openvino_graph import OpenVinoGraph
    from medquant.deploy.openvino_import import import_openvino, openvino_core

    openvino, program, image = import_openvino(), layer.program(6), layer.image(6)
    read = openvino.opset13.parameter(list(image.shape), openvino.Type.u8, name="image")
    written = openvino.opset13.convert(OpenVinoGraph(program, read.output(0)).output, "u8")
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    model = openvino.Model([openvino.opset13.result(written)], [read], LAYER)
    request = openvino_core().compile_model(model, "CPU", hints).create_infer_request()

    def run() -> float:
        request.infer({0: image}, share_inputs=True, share_outputs=True)
        found = [each for each in request.profiling_info if each.node_type == "Convolution" and each.real_time.total_seconds() > 0]
        if len(found) != 1 or "I8" not in found[0].exec_type.upper():
            raise RuntimeError(f"{layer.name}: expected one 8-bit convolution in OpenVINO, found {[each.exec_type for each in found]}")
        return float(found[0].real_time.total_seconds() * 1e9)

    return run


def time_single(layer: SingleLayer, threads: int, rounds: int, kernels: Sequence[str] = KERNELS) -> dict[str, list[float]]:
    """Nanoseconds of each round for each kernel, in turns; a round before them does not count."""
    runs: dict[str, Callable[[], float]] = {}
    closers: list[Callable[[], None]] = []
    try:
        for kernel in kernels:
            if kernel == "openvino":
                runs[kernel] = _openvino(layer, threads)
            else:
                runs[kernel], close = _native(layer, kernel, threads)
                closers.append(close)
        times: dict[str, list[float]] = {kernel: [] for kernel in kernels}
        for number in range(-1, rounds):
            for kernel, run in runs.items():
                took = run()
                if number >= 0:
                    times[kernel].append(took)
        return times
    finally:
        for close in closers:
            close()


def has_winograd() -> bool:
    """Whether the kernel set that ``MEDQUANT_KERNELS`` or the processor chooses computes Winograd."""
    layer = SingleLayer(16, 16, 4)
    opened = NativeProgram(layer.program(6), threads=1)
    try:
        return any(step["kind"] == "winograd" for step in opened.steps(layer.image(6)))
    finally:
        opened.close()
