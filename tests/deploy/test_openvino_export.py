"""The exported OpenVINO model, opened by processes that know nothing of medquant, against the reference engine and ``decide``."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from random_programs import draw

from medquant.deploy import export_openvino as exporting
from medquant.deploy.decide import decide, quantize_image
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.export_openvino import export_openvino
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.self_test import small_program
from medquant.errors import EngineMismatchError, UsageError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram

pytest.importorskip("openvino")

# With OpenVINO's own defaults: on processors with bf16 those round floats to 8 bits.
_OPEN = """
import sys
from pathlib import Path
import numpy as np, openvino
core = openvino.Core()
for folder in sys.argv[1:]:
    model = core.compile_model(core.read_model(folder + "/model.xml"), "CPU")
    for name in sorted(Path(folder).glob("*.npy")):
        found = model({"image": np.load(name)})
        np.savez(name.with_suffix(".npz"), mask=found["mask"], levels=found["levels"])
assert not any(module.split(".")[0] in ("medquant", "torch", "onnx") for module in sys.modules)
"""


def metadata(program: IntegerProgram, **changes: object) -> ModelMetadata:
    outputs = len(program.output_exponents)
    values: dict[str, object] = {
        "preparation": {"kind": "window", "low": -100.0},
        "size_multiple": 2,
        "classes": {0: "background", 1: "organ"},
        "scored": ("organ",),
        "positive_class": 1 if outputs == 1 else None,
        "float_parameters": 10,
        "dataset": "phantom",
        "data_sha256": "ab" * 32,
        "split": {"train": ["case-of-somebody"]},
        "config": {"note": "note-of-somebody"},
        "licence": "CC BY 4.0",
    }
    return ModelMetadata.model_validate({**values, **changes})


def image_with_ties(program: IntegerProgram, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Half and quarter steps over and beyond the format's range, and values far outside."""
    read = program.format_of(program.image.name)
    random = np.random.default_rng(seed)
    steps = random.integers(-4 * read.highest - 30, 4 * read.highest + 30, shape) / random.choice([2, 4], shape)
    steps[..., 0] = random.choice([-1e30, 1e30, -0.5, 0.5, 0.0, -0.0], shape[:-1])
    return (steps * 2.0**-read.exponent).astype(np.float32)


def run_plainly(folders: list[Path]) -> None:
    command = [sys.executable, "-I", "-c", _OPEN, *map(str, folders)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-800:]


def check(programs: list[tuple[IntegerProgram, list[np.ndarray]]], place: Path) -> int:
    """Export, run in one process of OpenVINO alone, compare; values compared."""
    folders = []
    for number, (program, images) in enumerate(programs):
        folders.append(place / str(number))
        folders[-1].mkdir()
        export_openvino(program, metadata(program), folders[-1] / "model.xml")
        for index, image in enumerate(images):
            np.save(folders[-1] / f"{index}.npy", image)
    run_plainly(folders)
    values = 0
    for folder, (program, images) in zip(folders, programs, strict=True):
        for index, image in enumerate(images):
            expected = ReferenceEngine(program).run(quantize_image(image, program.format_of(program.image.name)))
            with np.load(folder / f"{index}.npz") as found:
                assert found["levels"].dtype == np.int32
                assert found["mask"].dtype == np.uint8
                assert np.array_equal(found["levels"], expected), f"{folder.name}: {int((found['levels'] != expected).sum())} differ"
                assert np.array_equal(found["mask"], decide(expected, program)), folder.name
            values += expected.size
    return values


def test_sizes_and_batches_are_free_and_nothing_differs(tmp_path: Path) -> None:
    program = small_program()
    shapes = [(1, 1, 32, 32), (2, 1, 46, 18), (3, 1, 2, 64), (1, 1, 32, 32)]
    assert check([(program, [image_with_ties(program, shape, seed) for seed, shape in enumerate(shapes)])], tmp_path) > 8_000


def random_programs(seeds: range) -> list[tuple[IntegerProgram, list[np.ndarray]]]:
    found = []
    for seed in seeds:
        drawn = draw(seed, 1 + seed % 7)
        if not drawn.program.convolutions:
            continue
        try:
            exporting.mask_model(drawn.program)
        except EngineMismatchError:
            continue
        found.append((drawn.program, [image_with_ties(drawn.program, drawn.image.shape, seed)]))
    return found


def test_random_programs_agree(tmp_path: Path) -> None:
    programs = random_programs(range(5000, 5040))
    assert len(programs) >= 30
    assert check(programs, tmp_path) > 50_000


@pytest.mark.slow
def test_many_random_programs_agree(tmp_path: Path) -> None:
    programs = random_programs(range(6000, 6800))
    assert len(programs) >= 600
    assert check(programs, tmp_path) > 1_000_000


def head(outputs: int, exponents: list[int], written: TensorFormat | None) -> IntegerProgram:
    """Weights and biases so small that classes often tie."""
    random = np.random.default_rng(outputs)
    weight, bias = random.integers(-1, 2, (outputs, 1, 3, 3)), random.integers(-1, 2, outputs)
    node = ConvolutionNode(
        "head", ("image",), written, weight, bias, np.array(exponents), 2, ConvGeometry((1, 1), (1, 1), (1, 1)), relu=False
    )
    finished = tuple(e + 1 for e in exponents) if written is None else (written.exponent,)
    return IntegerProgram((ImageNode("image", (), TensorFormat(2, 1, 1), 1), node), finished)


def test_equal_classes_give_the_lower_one(tmp_path: Path) -> None:
    heads = [
        head(1, [0], None),
        head(1, [0], TensorFormat(4, 7, 1)),
        head(2, [0, 0], None),
        head(5, [2] * 5, None),
        head(40, [3] * 40, None),
        head(7, [0, 1, 3, -2, 0, 1, 40], None),
    ]
    programs = [(program, [image_with_ties(program, (2, 1, 24, 30))]) for program in heads]
    for program, (image,) in programs[2:]:
        levels = ReferenceEngine(program).run(quantize_image(image, TensorFormat(2, 1, 1)))
        real = levels * 2.0 ** -np.array(program.output_exponents).reshape(1, -1, 1, 1)
        # The case is in the image: several classes share the largest value.
        assert ((real == real.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum() > 20
    check(programs, tmp_path)


def test_classes_too_far_apart_for_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineMismatchError, match=r"steps are 2\*\*101 apart"):
        export_openvino(head(2, [0, 101], None), metadata(small_program()), tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []


def test_every_level_of_the_image_and_every_tie(tmp_path: Path) -> None:
    # An identity: levels are the quantized image. Ties at all parities, by Python's own round.
    programs, images = [], []
    for zero_point, exponent in product([0, 1, 77, 128, 255], [-3, 0, 5]):
        read = TensorFormat(8, zero_point, exponent)
        node = ConvolutionNode(
            "c", ("image",), None, np.ones((1, 1, 1, 1), np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64), 2,
            ConvGeometry((1, 1), (0, 0), (1, 1)), relu=False,
        )  # fmt: skip
        programs.append(IntegerProgram((ImageNode("image", (), read, 1), node), (exponent,)))
        steps = np.arange(-300, 300, 0.25, dtype=np.float64).reshape(1, 1, 40, 60)
        images.append((steps * 2.0**-exponent).astype(np.float32))
        expected = [min(max(round(step), -zero_point), 255 - zero_point) for step in steps.ravel().tolist()]
        assert ReferenceEngine(programs[-1]).run(quantize_image(images[-1], read)).ravel().tolist() == expected
    check([(program, [image]) for program, image in zip(programs, images, strict=True)], tmp_path)


def notes_of(folder: Path, *names: str) -> list[str]:
    from medquant.deploy.openvino_import import openvino_core

    model = openvino_core().read_model(folder / "model.xml")
    return [model.get_rt_info(["medquant", name]).astype(str) for name in names]


def test_what_the_file_says_beside_the_network(tmp_path: Path) -> None:
    program = small_program()
    export_openvino(program, metadata(program), tmp_path / "model.xml")
    text = (tmp_path / "model.xml").read_text()
    preparation, classes, quantization = map(json.loads, notes_of(tmp_path, "preparation", "classes", "image_quantization"))
    assert preparation == {"kind": "window", "low": -100.0}
    assert classes == {"0": "background", "1": "organ"}
    assert quantization == {"bits": 8, "zero_point": 128, "exponent": 5}
    assert notes_of(tmp_path, "schema", "licence", "data_sha256") == ["1", "CC BY 4.0", "ab" * 32]
    assert "somebody" not in text
    assert str(tmp_path) not in text


def test_weights_take_their_width(tmp_path: Path) -> None:
    sizes = {}
    for bits in (4, 8):
        weight = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (128, 64, 3, 3))
        node = ConvolutionNode(
            "c", ("image",), None, weight, np.zeros(128, np.int64), np.zeros(128, np.int64), bits,
            ConvGeometry((1, 1), (1, 1), (1, 1)), relu=False,
        )  # fmt: skip
        program = IntegerProgram((ImageNode("image", (), TensorFormat(6, 0, 0), 64), node), (0,) * 128)
        export_openvino(program, metadata(program), tmp_path / f"{bits}.xml")
        sizes[bits] = (tmp_path / f"{bits}.bin").stat().st_size
        assert 0 <= sizes[bits] - weight.size * bits / 8 < 2048


def test_files_that_exist_are_kept_or_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, path = small_program(), tmp_path / "model.xml"
    (tmp_path / "model.bin").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=r"model\.bin: exists already"):
        export_openvino(program, metadata(program), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]
    export_openvino(program, metadata(program), path, overwrite=True)
    with pytest.raises(UsageError, match=r"model\.xml: exists already"):
        export_openvino(program, metadata(program), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == ["model.bin", "model.xml"]

    # The disk is full while the weights are written: the old pair stands. While the description is: no description.
    put = exporting.write_atomically

    failing: list[str] = []

    def full(target: Path, write: Any) -> None:
        def half(stream: BinaryIO) -> None:
            if target.suffix in failing:
                stream.write(b"half")
                raise OSError(28, "No space left on device")
            write(stream)

        put(target, half)

    monkeypatch.setattr(exporting, "write_atomically", full)
    for ending, left in ((".bin", before), (".xml", {"model.bin": before["model.bin"]})):
        failing[:] = [ending]
        with pytest.raises(UsageError, match="No space left on device"):
            export_openvino(program, metadata(program), path, overwrite=True)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == left


@pytest.mark.parametrize(("name", "message"), [("model.bin", "expected .xml"), ("nowhere/model.xml", "does not exist")])
def test_places_that_cannot_be(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export_openvino(small_program(), metadata(small_program()), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
