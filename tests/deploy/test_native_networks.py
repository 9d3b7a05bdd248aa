"""Every convolutional network of the registry in the native engine, held to the reference value by value.

The numbers are the reference's. Beside a network's own weights, calibrated as always, each program runs with all weights at the
lowest, at the highest, and at both values of their width in turn, which no training reaches: sums are then as large as they can be.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medquant.deploy.decide import decide
from medquant.deploy.engines.native_engine import NativeEngine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.native.library import why_missing
from medquant.deploy.program_check import check_program
from medquant.errors import ConfigError
from medquant.models import build_model, size_multiple
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.formats import weight_range
from medquant.quant.graph import Graph
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.program import ConvolutionNode, IntegerProgram

pytestmark = pytest.mark.skipif(why_missing() is not None, reason=f"needs the library: {why_missing()}")

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {}),
    "unet, nearest": ("unet", {"upsample": "nearest", "block": "conv_act_norm"}),
    "unet, transposed": ("unet", {"upsample": "transposed"}),
    "monai_unet": ("monai_unet", {}),
    "monai_unet, residual": ("monai_unet", {"residual_units": 2}),
    "basic_unet": ("basic_unet", {"depth": 5, "channels": 2}),
    "basic_unet, linear": ("basic_unet", {"depth": 5, "channels": 2, "upsample": "bilinear"}),
    "dynunet": ("dynunet", {}),
    "dynunet, residual": ("dynunet", {"depth": 4, "residual_units": 1, "deep_supervision": True}),
    "segresnet": ("segresnet", {}),
    "segresnet, transposed": ("segresnet", {"upsample": "transposed"}),
}
BITS = [(4, 6), (2, 4), (8, 8)]
EXTREMES = ("own", "lowest", "highest", "alternating")


@cache
def graph_of(case: str, dimensions: int) -> tuple[Graph, torch.Tensor, int]:
    """The network as it was read, two images, and what the sides of images are multiples of."""
    name, options = NETWORKS[case]
    options = {"depth": 3, "channels": 5, **options}
    torch.manual_seed(dimensions)
    multiple = size_multiple(options["depth"])
    size = (2 * multiple,) * dimensions
    network = build_model(name, in_channels=2, out_channels=3, dimensions=dimensions, size=size, **options)
    images = torch.randn(2, 2, *size)
    with torch.no_grad():
        network.train()(images)  # so that batch norm has statistics
    return simplify(capture(network.eval(), images)), images, multiple


def quantize(graph: Graph, images: torch.Tensor, bits: tuple[int, int]) -> IntegerProgram:
    network = QuantNetwork(graph, resolve_plan(graph, *bits, 8), get_method("fixed_point"))
    network.calibrate([images])
    return lower(network.eval())


def with_weights(program: IntegerProgram, which: str) -> IntegerProgram:
    """All weights the lowest or the highest of their width, or these in turn, by which transformed ones are largest."""
    if which == "own":
        return program
    nodes = []
    for node in program:
        if isinstance(node, ConvolutionNode):
            high = {"lowest": 0, "highest": 1}.get(which, np.indices(node.weight.shape)[2:].sum(axis=0) % 2)
            low, highest = weight_range(node.weight_bits)
            node = replace(node, weight=np.where(high, np.full(node.weight.shape, highest), low).astype(np.int8))
        nodes.append(node)
    return replace(program, nodes=tuple(nodes))


def images_of(program: IntegerProgram, sizes: list[tuple[int, ...]], seed: int) -> list[NDArray[np.uint8]]:
    """Noise of each size, one or two images; all zero, all highest, and squares of two voxels of both in turn, of the first size."""
    random = np.random.default_rng(seed)
    highest, channels = program.format_of(program.image.name).highest, program.image.channels
    noise = [random.integers(0, highest + 1, (1 + n % 2, channels, *size)).astype(np.uint8) for n, size in enumerate(sizes)]
    squares = np.indices((1, channels, *sizes[0]))[2:] // 2 % 2
    return [*noise, *((each * highest).astype(np.uint8) for each in (0 * squares[0], 0 * squares[0] + 1, squares.sum(axis=0) % 2))]


def assert_equal_to_reference(program: IntegerProgram, images: list[NDArray[np.uint8]]) -> int:
    """How many images were compared, output integers and masks."""
    native, reference = NativeEngine(program), ReferenceEngine(program)
    compared = 0
    for image in images:
        expected = reference.run(image)
        np.testing.assert_array_equal(native.run(image), expected)
        np.testing.assert_array_equal(native.run_decided(image), decide(expected, program))
        compared += len(image)
    return compared


def is_whole(program: IntegerProgram, multiple: int) -> bool:
    """Whether no sum can leave 32 bits: with extreme weights it may, and no engine has to take that."""
    try:
        check_program(program, multiple)
    except ConfigError as error:
        if "do not fit 32 bits" not in str(error):
            raise
        return False
    return True


def compare(case: str, dimensions: int, bits: tuple[int, int], sides: list[tuple[int, ...]], seed: int) -> int:
    """Run a network with its own and with extreme weights on images whose sides are so many times its multiple."""
    graph, calibration, multiple = graph_of(case, dimensions)
    program = quantize(graph, calibration, bits)
    sizes = [tuple(multiple * each for each in side) for side in sides]
    programs = [with_weights(program, which) for which in EXTREMES]
    whole = [each for each in programs if is_whole(each, multiple)]
    assert whole[0] is program
    return sum(assert_equal_to_reference(each, images_of(each, sizes, seed + number)) for number, each in enumerate(whole))


@pytest.mark.parametrize("case", NETWORKS)
def test_small_networks_in_two_dimensions(case: str) -> None:
    # Three widths, four kinds of weights, noise and the three extreme images.
    assert sum(compare(case, 2, bits, [(1, 3)], number) for number, bits in enumerate(BITS)) >= 3 * 4 * 4


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("case", NETWORKS)
def test_networks_on_many_images(case: str, dimensions: int) -> None:
    sides = [(3, 5), (5, 2), (1, 7), (4, 4), (7, 3), (2, 9)] if dimensions == 2 else [(1, 2, 3), (3, 1, 2), (2, 2, 1)]
    compared = sum(compare(case, dimensions, bits, sides, 10 * number) for number, bits in enumerate(BITS))
    assert compared >= 3 * 4 * (len(sides) + 3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_sizes_that_divide_by_nothing(dimensions: int, bits: tuple[int, int]) -> None:
    """A network without pooling takes any: single voxels, rows, and what fills no block of a kernel."""
    conv, norm = (torch.nn.Conv2d, torch.nn.BatchNorm2d) if dimensions == 2 else (torch.nn.Conv3d, torch.nn.BatchNorm3d)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        conv(1, 17, 3, padding=1), norm(17), torch.nn.ReLU(), conv(17, 33, 3, padding=1), torch.nn.ReLU(), conv(33, 2, 1)
    )
    image = torch.randn(2, 1, *[9] * dimensions)
    program = quantize(simplify(capture(network.eval(), image)), image, bits)
    tail = (1,) * (dimensions - 2)
    sizes = [(*tail, *size) for size in [(7, 5), (1, 1), (1, 31), (13, 1), (9, 17), (3, 64), (33, 2)]]
    if dimensions == 3:
        sizes += [(3, 5, 7), (2, 1, 1), (5, 4, 3)]
    for number, which in enumerate(EXTREMES):
        each = with_weights(program, which)
        assert is_whole(each, 1)
        assert assert_equal_to_reference(each, images_of(each, sizes, number)) >= len(sizes) + 3
