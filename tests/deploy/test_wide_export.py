"""W8A8 networks whose tensors are shifted: calibrated, exported, and run as their makers' runtimes run them.

Expected: the reference engine's integers. Before 8-bit tensors got even zero points every network here was refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packed_files import METADATA

from medquant.deploy.export_onnx import export_onnx
from medquant.deploy.verification import compare_file, random_images, run_reference
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.program import IntegerProgram

pytest.importorskip("onnx", reason="onnx builds the file")
pytest.importorskip("onnxruntime", reason="ONNX Runtime runs it")


def shifted_network(seed: int) -> IntegerProgram:
    """A U-Net with batch norm behind its rectifiers, which cannot be folded: its 8-bit tensors have zero points."""
    torch.manual_seed(seed)
    network = UNet(UNetOptions(channels=4, depth=2, block="conv_act_norm"))
    image = torch.rand(2, 1, 16, 16) * 1.9 - 0.37
    network(image)  # so that batch norm has statistics
    graph = simplify(capture(network.eval(), image))
    quantized = QuantNetwork(graph, resolve_plan(graph, 8, 8, 8), get_method("fixed_point"))
    quantized.calibrate([image])
    return lower(quantized.eval())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_networks_of_8_bits_export_and_give_the_same_integers(seed: int, tmp_path: Path) -> None:
    program = shifted_network(seed)
    points = {node.output.zero_point for node in program if node.output is not None}
    assert points - {0, 128}
    assert all(point % 2 == 0 for point in points)
    export_onnx(program, METADATA, tmp_path / "m.onnx")
    compared = compare_file(tmp_path / "m.onnx", run_reference(program, random_images(program, 4)))
    assert {each.verdict for each in compared} <= {"equal", "absent"}
    assert any(each.verdict == "equal" for each in compared)
