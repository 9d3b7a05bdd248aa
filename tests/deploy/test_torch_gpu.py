"""The matrix products of bytes that the torch engine takes on a GPU, run on the processor, against the reference engine.

``torch._int_mm`` has a processor kernel of the same definition. On a machine with a GPU the same tests run there too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch engine needs torch")

from medquant.deploy.engines.reference import ReferenceEngine  # noqa: E402
from medquant.deploy.engines.torch_engine import TorchEngine  # noqa: E402
from medquant.deploy.engines.torch_gpu import MatmulTorchProgram, byte_products_work  # noqa: E402
from medquant.quant.formats import TensorFormat  # noqa: E402
from medquant.quant.graph import ConvGeometry  # noqa: E402
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram, MaxPoolNode, UpsampleNode  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
GEOMETRIES = {
    "3×3": (ConvGeometry((1, 1), (1, 1), (1, 1)), (3, 3)),
    "strided, dilated": (ConvGeometry((2, 1), (2, 3), (1, 3)), (3, 2)),
    "grouped": (ConvGeometry((1, 1), (1, 1), (1, 1), 2), (3, 3)),
    "transposed k2": (ConvGeometry((2, 2), (0, 0), (1, 1), 1, True, (0, 0)), (2, 2)),
    "transposed k3": (ConvGeometry((2, 2), (1, 1), (1, 1), 1, True, (1, 1)), (3, 3)),
    "3D": (ConvGeometry((1, 2, 1), (1, 0, 1), (1, 1, 1)), (3, 1, 2)),
    "3D transposed": (ConvGeometry((2, 2, 2), (0, 0, 0), (1, 1, 1), 1, True, (0, 0, 0)), (2, 2, 2)),
}


def program_of(case: str, read: TensorFormat, written: TensorFormat | None) -> IntegerProgram:
    """Two convolutions of the geometry, weights of 8 bits at both ends of their range."""
    geometry, kernel = GEOMETRIES[case]
    generator = np.random.default_rng(len(case))
    middle = TensorFormat(8, 0, 1)

    def node(name: str, source: str, form: TensorFormat | None) -> ConvolutionNode:
        shape = (4, 4 // geometry.groups, *kernel)
        weight = generator.choice([-128, -1, 0, 3, 127], shape)
        exponents = generator.integers(8, 13, 4)
        return ConvolutionNode(name, (source,), form, weight, generator.integers(-999, 999, 4), exponents, 8, geometry, relu=False)

    return IntegerProgram((ImageNode("input", (), read, 4), node("a", "input", middle), node("b", "a", written)), (0,) * 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", GEOMETRIES)
@pytest.mark.parametrize("read", [TensorFormat(8, 0, 2), TensorFormat(8, 128, 2), TensorFormat(6, 11, 2), TensorFormat(8, 255, 2)])
def test_products_of_bytes_agree_with_the_reference(device: str, case: str, read: TensorFormat) -> None:
    size = (9, 7) if len(GEOMETRIES[case][1]) == 2 else (4, 5, 3)
    image = np.random.default_rng(1).integers(0, read.highest + 1, (2, 4, *size), dtype=np.uint8)
    for written in (None, TensorFormat(8, 91, 3)):
        program = program_of(case, read, written)
        expected = ReferenceEngine(program).run(image)
        # The least tiles (one row each) and one tile for all.
        for tile_bytes in (1, 2**28):
            engine = MatmulTorchProgram(program, torch.device(device), tile_bytes)
            assert np.array_equal(engine.run(image), expected)
    assert len(np.unique(expected)) > 8


def test_convolutions_go_through_products_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of("3×3", TensorFormat(8, 0, 2), None)
    calls: list[Any] = []
    multiply = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda *pair: calls.append([tuple(x.shape) for x in pair]) or multiply(*pair))
    MatmulTorchProgram(program, torch.device("cpu")).run(np.zeros((1, 4, 6, 6), np.uint8))
    # 36 windows of 9 taps by 4 channels, filled up to 40; 4 outputs, filled up to 8: what a GPU's kernel asks for.
    assert calls == [[(36, 40), (40, 8)]] * 2


def test_the_engine_takes_them_on_a_gpu_only_and_only_where_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of("3×3", TensorFormat(8, 0, 2), None)
    assert byte_products_work(torch.device("cpu"))
    if not torch.cuda.is_available():
        assert TorchEngine(program).arithmetic != "MatmulTorchProgram"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "device", lambda name, real=torch.device: real("cpu"))
    assert TorchEngine(program).arithmetic == "MatmulTorchProgram"
    # Off by one in a single product: the float64 convolutions stay.
    multiply = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: multiply(a, b).index_put((torch.tensor(5), torch.tensor(5)), torch.tensor(1)))
    assert TorchEngine(program).arithmetic == "FloatTorchProgram"
    monkeypatch.delattr(torch, "_int_mm")
    assert TorchEngine(program).arithmetic == "FloatTorchProgram"


@pytest.mark.parametrize("device", DEVICES)
def test_other_nodes_walk_along(device: str) -> None:
    read = TensorFormat(6, 0, 2)
    ones = np.ones((3, 5, 1, 1), np.int64)
    nothing = np.zeros(3, np.int64)
    last = ConvolutionNode("c", ("u",), None, ones, nothing, nothing, 4, ConvGeometry((1, 1), (0, 0), (1, 1)), relu=True)
    pool = MaxPoolNode("p", ("input",), read, (2, 2), (2, 2), (0, 0))
    program = IntegerProgram((ImageNode("input", (), read, 5), pool, UpsampleNode("u", ("p",), read, 2, "linear", 2), last), (0,) * 3)
    image = np.random.default_rng(0).integers(0, 64, (1, 5, 9, 10), dtype=np.uint8)
    assert np.array_equal(MatmulTorchProgram(program, torch.device(device)).run(image), ReferenceEngine(program).run(image))
