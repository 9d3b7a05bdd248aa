"""The exported ONNX file, opened by processes that know nothing of medquant, against the reference engine and ``decide``."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from medquant.deploy.decide import decide, quantize_image
from medquant.deploy.engines import ENGINES
from medquant.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.export_onnx import export_onnx
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import save_model
from medquant.deploy.self_test import small_program
from medquant.errors import EngineMismatchError, UsageError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram

onnx = pytest.importorskip("onnx", reason="onnx builds the file")
pytest.importorskip("onnxruntime", reason="ONNX Runtime runs it")

WITH_ONNXRUNTIME = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for name in sys.argv[2:]:
    mask, levels = session.run(["mask", "levels"], {"image": np.load(name)})
    np.savez(name + ".npz", mask=mask, levels=levels)
assert not any(module.split(".")[0] in ("medquant", "torch", "onnx") for module in sys.modules)
"""
WITH_OPENVINO = """
import sys, numpy as np, openvino
model = openvino.Core().compile_model(sys.argv[1], "CPU")
for name in sys.argv[2:]:
    found = model(np.load(name))
    np.savez(name + ".npz", mask=found["mask"], levels=found["levels"])
assert not any(module.split(".")[0] in ("medquant", "torch", "onnx") for module in sys.modules)
"""


def metadata(**changes: object) -> ModelMetadata:
    values = {
        "preparation": {
            "normalisation": {"kind": "range", "low": -100.0, "high": 240.0},
            "grid": {"slice_axis": "axial", "spacing_mm": None},
        },
        "size_multiple": 2,
        "classes": {0: "background", 1: "organ"},
        "scored": ("organ",),
        "float_parameters": 10,
        "dataset": "phantom",
        "data_sha256": "0" * 64,
        "split": {"train": ["case-of-somebody"]},
        "config": {"note": "note-of-somebody"},
        "licence": "CC BY 4.0",
    }
    return ModelMetadata.model_validate({**values, **changes})


def head(outputs: int, exponents: list[int], written: TensorFormat | None, seed: int = 0, axes: int = 2) -> IntegerProgram:
    """Weights and biases so small that classes often tie."""
    rng = np.random.default_rng(seed)
    ones = (1,) * axes
    geometry = ConvGeometry(ones, ones, ones)
    weight, bias = rng.integers(-1, 2, (outputs, 1, *[3] * axes)), rng.integers(-1, 2, outputs)
    image = ImageNode("input", (), TensorFormat(2, 1, 1), 1)
    node = ConvolutionNode("head", ("input",), written, weight, bias, np.array(exponents), 2, geometry, False)
    finished = tuple(e + 1 for e in exponents) if written is None else (written.exponent,)
    return IntegerProgram((image, node), finished)


PROGRAMS = {
    "U-Net": small_program(),
    "one output": head(1, [0], None),
    "one output in a format": head(1, [0], TensorFormat(4, 7, 1)),
    "five outputs of one grid": head(5, [2] * 5, None, 1),
    "five outputs of several grids": head(5, [0, 3, 1, 2, 5], None, 2),
    "four outputs in a format": head(4, [1] * 4, TensorFormat(3, 3, 0), 3),
    "3D": head(3, [1, 0, 1], None, 4, axes=3),
}


def float_images(program: IntegerProgram) -> list[np.ndarray]:
    """Several sizes and batches; every voxel near a tie of the image's quantization, on it, or next to it in float32."""
    rng, read, axes = np.random.default_rng(0), program.format_of("input"), program.convolutions[0].weight.ndim - 2
    images = []
    for shape in ((1, 1, *(12, 10, 6)[:axes]), (2, 1, *(8, 18, 4)[:axes])):
        halves = rng.integers(-2 * read.highest - 4, 2 * read.highest + 5, shape)
        ties = (halves * 0.5 * 2.0**-read.exponent).astype(np.float32)
        toward = np.where(rng.random(shape) < 0.5, np.float32(np.inf), np.float32(-np.inf))
        images.append(np.where(rng.random(shape) < 0.5, ties, np.nextafter(ties, toward)).astype(np.float32))
    return images


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_masks_in_a_process_with_the_runtime_alone(name: str, runtime: str, tmp_path: Path) -> None:
    if find_spec(runtime) is None:
        pytest.skip(f"{runtime}, which opens the file, is not installed")
    program = PROGRAMS[name]
    export_onnx(program, metadata(), tmp_path / "model.onnx")
    images = float_images(program)
    paths = [tmp_path / f"{number}.npy" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        np.save(path, image)
    script = {"onnxruntime": WITH_ONNXRUNTIME, "openvino": WITH_OPENVINO}[runtime]
    subprocess.run([sys.executable, "-I", "-c", script, tmp_path / "model.onnx", *paths], check=True, capture_output=True, cwd=tmp_path)
    for path, image in zip(paths, images, strict=True):
        expected = ReferenceEngine(program).run(quantize_image(image, program.format_of("input")))
        found = np.load(f"{path}.npz")
        assert found["levels"].dtype == np.int32
        assert np.array_equal(found["levels"], expected)
        assert found["mask"].dtype == np.uint8
        assert np.array_equal(found["mask"], decide(expected, program))


def test_equal_values_are_met_and_go_to_the_lower_class() -> None:
    # Or the test above would not show what it shows.
    program = PROGRAMS["five outputs of several grids"]
    (image, _) = float_images(program)
    levels = ReferenceEngine(program).run(quantize_image(image, program.format_of("input")))
    values = levels * 2.0 ** -np.array(program.output_exponents).reshape(1, -1, 1, 1)
    reached = values == values.max(axis=1, keepdims=True)
    assert (reached.sum(axis=1) > 1).mean() > 0.03
    assert np.array_equal(decide(levels, program), reached.argmax(axis=1))


def test_file_says_what_it_needs_and_nothing_of_the_training_cases(tmp_path: Path) -> None:
    path, program = tmp_path / "model.onnx", small_program()
    export_onnx(program, metadata(), path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["medquant.schema"] == "1"
    assert json.loads(said["medquant.preparation"]) == metadata().preparation
    assert json.loads(said["medquant.classes"]) == {"0": "background", "1": "organ"}
    assert json.loads(said["medquant.image_quantization"]) == {"bits": 8, "zero_point": 128, "exponent": 5}
    assert json.loads(said["medquant.output_exponents"]) == [8, 8]
    assert (said["medquant.size_multiple"], said["medquant.licence"]) == ("2", "CC BY 4.0")
    assert json.loads(said["medquant.needs_vnni"]) == []
    assert model.producer_name == "medquant"
    assert b"somebody" not in path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    dims = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    assert dims == {"image": ["N", 1, "I", "J"]}


def test_layers_that_saturate_without_vnni_are_named(tmp_path: Path) -> None:
    # 2 · 128 · 255 passes 2^15 - 1, 2 · 127 · 127 does not.
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1))
    nodes = [ImageNode("input", (), TensorFormat(8, 0, 0), 1)]
    for name, source, bits, low in (("wide", "input", 7, -128), ("narrow", "wide", 7, -127)):
        weight, zero = np.full((1, 1, 1, 1), low), np.zeros(1, np.int64)
        nodes.append(ConvolutionNode(name, (source,), TensorFormat(bits, 0, 0), weight, zero, zero, 8, geometry, True))
    export_onnx(IntegerProgram(tuple(nodes), (0,)), metadata(), tmp_path / "model.onnx")
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(said["medquant.needs_vnni"]) == ["wide"]


def test_weights_of_4_bits_take_half_a_byte(tmp_path: Path) -> None:
    geometry = ConvGeometry((1, 1), (1, 1), (1, 1))
    rng = np.random.default_rng(0)
    inner = TensorFormat(6, 0, 0)
    nodes = [ImageNode("input", (), TensorFormat(8, 0, 0), 96)]
    for number in range(4):
        weight, zero = rng.integers(-8, 8, (96, 96, 3, 3)), np.zeros(96, np.int64)
        nodes.append(ConvolutionNode(f"c{number}", (nodes[-1].name,), inner, weight, zero + 1, zero + 9, 4, geometry, True))
    program = IntegerProgram(tuple(nodes), (0,))
    export_onnx(program, metadata(), tmp_path / "model.onnx")
    save_model(tmp_path / "model.mq", program, metadata(positive_class=None))
    weights = 4 * 96 * 96 * 9 // 2
    found, packed = (path.stat().st_size for path in (tmp_path / "model.onnx", tmp_path / "model.mq"))
    assert weights < found < 1.05 * packed


def test_existing_files_and_programs_without_an_exact_form(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"model\.onnx: exists already"):
        export_onnx(small_program(), metadata(), path)
    assert path.read_bytes() == b"mine"
    wide = head(1, [0], None)
    node = wide.convolutions[0]
    wide = IntegerProgram((wide.image, ConvolutionNode(**{**vars(node), "bias": node.bias + 2**24})), (1,))
    with pytest.raises(EngineMismatchError, match="accumulators of head reach"):
        export_onnx(wide, metadata(), path, overwrite=True)
    assert path.read_bytes() == b"mine"
    export_onnx(small_program(), metadata(), path, overwrite=True)
    assert onnx.load(path).producer_name == "medquant"
    with pytest.raises(UsageError, match="does not exist"):
        export_onnx(small_program(), metadata(), tmp_path / "nowhere" / "model.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_engine_says_which_package_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ENGINES["onnxruntime"] is OnnxRuntimeEngine
    assert OnnxRuntimeEngine.unavailable() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    assert OnnxRuntimeEngine.unavailable() == "onnx not installed; pip install onnx"


def test_engine_needs_no_torch() -> None:
    script = """
import sys
sys.modules["torch"] = None
import numpy as np
from medquant.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from medquant.deploy.self_test import small_program
assert OnnxRuntimeEngine(small_program()).run(np.zeros((1, 1, 8, 8), np.uint8)).shape == (1, 2, 8, 8)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_engine_refuses_byte_products_that_would_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.deploy.engines.exactness.byte_products_saturate", lambda: True)
    program = head(1, [0], None)
    node = program.convolutions[0]
    weight = np.full_like(node.weight, -128)
    image = ImageNode("input", (), TensorFormat(8, 0, 0), 1)
    wide = IntegerProgram((image, ConvolutionNode(**{**vars(node), "weight": weight, "weight_bits": 8})), (0,))
    with pytest.raises(EngineMismatchError, match=r"head multiplies 8-bit weights by 8-bit activations"):
        OnnxRuntimeEngine(wide)
    OnnxRuntimeEngine(program)
