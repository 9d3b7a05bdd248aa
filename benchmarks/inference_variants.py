"""Every way the inference benchmark runs a network: prepared once as files, then opened in whatever process measures it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inference_networks import Workload
from medquant.deploy.native import load_library, why_missing
from medquant.deploy.native.library import KERNELS_VARIABLE

Run = Callable[[], Any]
NATIVE = "medquant-native"


@dataclass(frozen=True)
class Variant:
    """One way to run a network.

    Args:
        meaning: one line.
        file: what ``prepare`` leaves in the folder, whose size is reported (weights; "" for none of its own).
        prepare: makes the file from the workload; None where another variant's serves.
        open: folder, workload, threads → a function that runs one image.
    """

    meaning: str
    file: str
    prepare: Callable[[Workload, Path], None] | None
    open: Callable[[Workload, Path, int], Run]


# --- torch ------------------------------------------------------------------------------------------------------------


def _save_float(workload: Workload, folder: Path) -> None:
    from safetensors.torch import save_model

    save_model(workload.network(), str(folder / "float.safetensors"))


def _torch(channels_last: bool = False, compiled: bool = False, bf16: bool = False) -> Callable[[Workload, Path, int], Run]:
    def open_it(workload: Workload, folder: Path, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        network: Any = workload.network()
        memory_format = (
            {2: torch.channels_last, 3: torch.channels_last_3d}[workload.dimensions] if channels_last else torch.contiguous_format
        )
        network, image = network.to(memory_format=memory_format), workload.image().contiguous(memory_format=memory_format)
        if compiled:
            network = torch.compile(network)

        def run() -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return network(image)

        return run

    return open_it


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def _to_onnx(workload: Workload, folder: Path) -> None:
    """The float network as ONNX, batch norm folded by the exporter; what the other runtimes start from."""
    if (folder / "float.onnx").exists():
        return
    import torch

    with torch.inference_mode():
        torch.onnx.export(
            workload.network(), (workload.image(),), str(folder / "float.onnx"), dynamo=False, opset_version=17, input_names=["image"]
        )


def _openvino_float(workload: Workload, folder: Path) -> None:
    import openvino

    _to_onnx(workload, folder)
    openvino.save_model(openvino.Core().read_model(folder / "float.onnx"), folder / "float.xml", compress_to_fp16=False)


def _nncf(workload: Workload, folder: Path) -> None:
    import nncf
    import openvino

    _to_onnx(workload, folder)
    samples = [workload.image(seed).numpy() for seed in range(4)]
    model = nncf.quantize(
        openvino.Core().read_model(folder / "float.onnx"), nncf.Dataset(samples), subset_size=len(samples), fast_bias_correction=True
    )
    openvino.save_model(model, folder / "nncf.xml")


def _openvino(file: str, precision: str = "f32") -> Callable[[Workload, Path, int], Run]:
    def open_it(workload: Workload, folder: Path, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / file)
        model.reshape(list(workload.shape))
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        image = workload.image().numpy()
        return lambda: request.infer({0: image}, share_inputs=True, share_outputs=True)

    return open_it


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def _ort_int8(workload: Workload, folder: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _to_onnx(workload, folder)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"image": workload.image(seed).numpy()} for seed in range(4)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quant_pre_process(str(folder / "float.onnx"), str(folder / "float-prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "float-prepared.onnx"),
        str(folder / "ort-int8.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def _ort(file: str) -> Callable[[Workload, Path, int], Run]:
    def open_it(workload: Workload, folder: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        name, image = session.get_inputs()[0].name, workload.image().numpy()
        return lambda: session.run(None, {name: image})

    return open_it


# --- medquant ---------------------------------------------------------------------------------------------------------


def _pack(workload: Workload, folder: Path) -> None:
    if (folder / "model.mq").exists():
        return
    from medquant.data.normalise import Normalisation
    from medquant.data.prepared import Preparation
    from medquant.data.prepared_grid import GridRule
    from medquant.deploy.metadata import ModelMetadata
    from medquant.deploy.packed import save_model

    program = workload.program()
    outputs = len(program.output_exponents)
    classes = {number: f"class {number}" for number in range(max(2, outputs))}
    metadata = ModelMetadata(
        preparation=Preparation(Normalisation("zscore_slice"), GridRule()).to_json(),
        size_multiple=16,
        classes=classes,
        scored=tuple(classes.values()),
        positive_class=1 if outputs == 1 else None,
        float_parameters=sum(parameter.numel() for parameter in workload.network().parameters()),
        dataset="benchmark",
        data_sha256="0" * 64,
    )
    save_model(folder / "model.mq", program, metadata)


def _native(kernels: str = "") -> Callable[[Workload, Path, int], Run]:
    """The native engine with one of its kernel sets, or with the processor's fastest whatever the environment says."""

    def open_it(workload: Workload, folder: Path, threads: int) -> Run:
        before = os.environ.get(KERNELS_VARIABLE)
        os.environ[KERNELS_VARIABLE] = kernels
        try:
            return _medquant("native")(workload, folder, threads)
        finally:
            if before is None:
                del os.environ[KERNELS_VARIABLE]
            else:
                os.environ[KERNELS_VARIABLE] = before

    return open_it


def _medquant(engine: str) -> Callable[[Workload, Path, int], Run]:
    def open_it(workload: Workload, folder: Path, threads: int) -> Run:
        # What engines ask for the number of threads.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if engine == "torch":
            import torch

            torch.set_num_threads(threads)
        from medquant.deploy.decide import quantize_image
        from medquant.deploy.engines import open_engine
        from medquant.deploy.packed import load_model

        program = load_model(folder / "model.mq").program
        opened = open_engine(engine, program)
        image = quantize_image(workload.image().numpy(), program.format_of(program.image.name))
        return lambda: opened.run(image)

    return open_it


def _other_kernels() -> dict[str, Variant]:
    """The native engine with each of the processor's slower kernel sets; none where it was not built."""
    names = load_library().kernels[1:] if why_missing() is None else ()
    return {
        f"{NATIVE}-{name}": Variant(f"medquant W4A6, engine native, kernels {name}", "model.mq", _pack, _native(name)) for name in names
    }


OTHER_KERNELS: Mapping[str, Variant] = _other_kernels()
VARIANTS: Mapping[str, Variant] = {
    "torch": Variant("torch eager, float32", "float.safetensors", _save_float, _torch()),
    "torch-channels-last": Variant("torch eager, float32, channels last", "float.safetensors", None, _torch(True)),
    "torch-compiled": Variant("torch.compile, float32, channels last", "float.safetensors", None, _torch(True, True)),
    "torch-bf16": Variant("torch.compile, bfloat16 autocast, channels last", "float.safetensors", None, _torch(True, True, True)),
    "onnxruntime-float": Variant("ONNX Runtime, float32", "float.onnx", _to_onnx, _ort("float.onnx")),
    "onnxruntime-int8": Variant("ONNX Runtime, its own static int8 (QDQ, per channel)", "ort-int8.onnx", _ort_int8, _ort("ort-int8.onnx")),
    "openvino-float": Variant("OpenVINO, float32: the honest float baseline", "float.bin", _openvino_float, _openvino("float.xml")),
    "openvino-bf16": Variant("OpenVINO, bfloat16 hint", "float.bin", None, _openvino("float.xml", "bf16")),
    "nncf-int8": Variant("OpenVINO, int8 by NNCF", "nncf.bin", _nncf, _openvino("nncf.xml")),
    "medquant-openvino": Variant("medquant W4A6, engine openvino", "model.mq", _pack, _medquant("openvino")),
    "medquant-torch": Variant("medquant W4A6, engine torch", "model.mq", _pack, _medquant("torch")),
    "medquant-onnxruntime": Variant("medquant W4A6, engine onnxruntime", "model.mq", _pack, _medquant("onnxruntime")),
    NATIVE: Variant("medquant W4A6, engine native, the processor's fastest kernels", "model.mq", _pack, _native()),
    **OTHER_KERNELS,
}
# The slower kernel sets run when named.
DEFAULT_VARIANTS = tuple(name for name in VARIANTS if name not in OTHER_KERNELS and (name != NATIVE or why_missing() is None))
