import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from medquant.config.bits import parse_rules
from medquant.errors import ConfigError
from medquant.evaluate.ledger import Ledger, infer_shapes, weigh_plan, weigh_program
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import BatchNorm, ConvGeometry, Convolution, Graph, Input, NormParameters
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram

PADDED = ConvGeometry((1, 1), (1, 1), (1, 1))


def two_convolutions() -> Graph:
    """1 -> 2 -> 1 channels, 3x3: 18 weights and 2 biases, then 18 weights and 1 bias."""
    first = Convolution("first", ("input",), torch.ones(2, 1, 3, 3), torch.ones(2), PADDED, relu=True)
    return Graph((Input("input", (), 1), first, Convolution("second", ("first",), torch.ones(1, 2, 3, 3), None, PADDED)), "second")


def unet_graph(**options: Any) -> tuple[Graph, int]:
    torch.manual_seed(0)
    network = UNet(UNetOptions(**{"channels": 2, "depth": 2, **options})).eval()
    size = [8] * network.options.dimensions
    graph = simplify(capture(network, torch.zeros(1, 1, *size)))
    return graph, sum(parameter.numel() for parameter in network.parameters())


def weighed(graph: Graph, wbits: int, abits: int, rules: list[str], image: tuple[int, ...], parameters: int = 39) -> Ledger:
    return weigh_plan(graph, resolve_plan(graph, wbits, abits, 8, parse_rules(rules)), parameters, wbits, image)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_two_convolutions_counted_by_hand() -> None:
    ledger = weighed(two_convolutions(), 4, 6, ["second=3/"], (1, 1, 8, 8))
    image, first, second = ledger.rows
    assert (image.weight_bytes, image.bias_bytes, image.exponent_bytes, image.format_bytes) == (0, 0, 0, 3)
    # 18 weights at 8 bits (first layer), 2 biases of 4 bytes, 2 exponents, one format of 3 bytes.
    assert (first.weight_bytes, first.bias_bytes, first.exponent_bytes, first.format_bytes) == (18, 8, 2, 3)
    # 18 weights at 3 bits are 54 bits, so 7 bytes; a bias although the float layer has none; accumulators have no format.
    assert (second.weight_bytes, second.bias_bytes, second.exponent_bytes, second.format_bytes) == (7, 4, 1, 0)
    assert ledger.parameter_bytes == 3 + (18 + 8 + 2 + 3) + (7 + 4 + 1) == 46
    assert [(row.weight_bits, row.activation_bits) for row in ledger.rows] == [(None, 8), (8, 6), (3, None)]


def test_the_same_two_convolutions_as_a_program() -> None:
    integers, eight, six = np.ones((2, 1, 3, 3), dtype=np.int64), TensorFormat(8, 0, 5), TensorFormat(6, 0, 3)
    ones = np.ones(2, dtype=np.int64)
    nodes = (
        ImageNode("input", (), eight, 1),
        ConvolutionNode("first", ("input",), six, integers, ones, ones, 8, PADDED, relu=True),
        ConvolutionNode("second", ("first",), None, integers.reshape(1, 2, 3, 3), ones[:1], ones[:1], 3, PADDED, relu=False),
    )
    ledger = weigh_program(IntegerProgram(nodes, (4,)), 39, 4, (1, 1, 8, 8))
    assert ledger == weighed(two_convolutions(), 4, 6, ["second=3/"], (1, 1, 8, 8))


def test_a_coarse_network_is_counted_as_well() -> None:
    one, eight = np.ones(1, dtype=np.int64), TensorFormat(8, 0, 5)
    image = ImageNode("input", (), eight, 1)
    head = ConvolutionNode("head", ("input",), None, np.ones((1, 1, 3, 3), dtype=np.int64), one, one, 4, PADDED, relu=False)
    program = IntegerProgram((image, head), (6,))
    ledger = weigh_program(program, 10, 4, (1, 1, 8, 8), coarse=program)
    # 9 weights of 4 bits, a bias, an exponent, and the image's format.
    assert ledger.coarse_parameter_bytes == 5 + 4 + 1 + 3
    assert ledger.parameter_bytes == 2 * ledger.coarse_parameter_bytes
    assert ledger.activation_peak_bytes == weigh_program(program, 10, 4, (1, 1, 8, 8)).activation_peak_bytes


def test_float_layers_count_32_bits() -> None:
    # All float: 36 weights and 3 biases of 4 bytes, no exponents, no formats.
    ledger = weighed(two_convolutions(), 32, 32, [], (1, 1, 8, 8))
    assert ledger.parameter_bytes == 39 * 4 == ledger.float_bytes == ledger.paper_bytes
    assert ledger.activation_peak_bytes == ledger.float_activation_peak_bytes
    # One float layer that writes 6 bits: 18 * 4 + 2 * 4 and a format; the other (8 bits): 18 + 4 + 1; the image's format.
    ledger = weighed(two_convolutions(), 4, 6, ["first=32/"], (1, 1, 8, 8))
    assert ledger.parameter_bytes == (72 + 8 + 3) + (18 + 4 + 1) + 3
    # Float activations behind quantized weights: exponents, but no format.
    ledger = weighed(two_convolutions(), 4, 6, ["first=/32"], (1, 1, 8, 8))
    assert ledger.parameter_bytes == (18 + 8 + 2) + (18 + 4 + 1) + 3
    assert ledger.rows[1].output_bytes == 128 * 4


@pytest.fixture(scope="module")
def paper() -> tuple[Graph, int]:
    return unet_graph(channels=64, depth=4)


def test_the_papers_network(paper: tuple[Graph, int]) -> None:
    graph, parameters = paper
    assert parameters == 4_837_249  # stated with the paper's network
    ledger = weighed(graph, 4, 6, [], (1, 1, 256, 256), parameters)
    assert ledger.paper_bytes == 2_418_625  # 4,837,249 half bytes, rounded up
    assert round(ledger.paper_bytes / 2**20, 2) == 2.31
    assert round(ledger.float_bytes / 2**20, 2) == 18.45
    # Closed form: 3x3 convolutions after folding; 8 bits at both ends, 4 between; 4 + 1 bytes for each output channel;
    # 3 bytes for each of the 24 tensors that are not the output (image, 14 convolutions, 3 pools, 3 ups, 3 joins).
    inner = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 256)]
    inner += [(512, 256), (256, 256), (384, 128), (128, 128), (192, 64), (64, 64)]
    weights = sum(9 * read * written * 4 // 8 for read, written in inner) + 9 * 64 + 9 * 64
    channels = sum(written for _, written in inner) + 64 + 1
    assert ledger.parameter_bytes == weights + 5 * channels + 3 * 24
    assert len(ledger.rows) == 25


def test_one_bit_of_each_parameter_is_rounded_up_once() -> None:
    assert weighed(two_convolutions(), 1, 1, [], (1, 1, 8, 8), parameters=17).paper_bytes == 3  # 17 bits


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({}, []),
        ({"upsample": "transposed", "out_channels": 3}, ["dec1.up=2/3"]),
        ({"dimensions": 3, "upsample": "nearest"}, ["bottom*=/2"]),
        ({"block": "conv_act_norm"}, ["enc1.norm2=7/8", "*conv*=3/"]),
    ],
)
def test_plan_and_program_weigh_the_same(options: dict[str, Any], rules: list[str]) -> None:
    graph, parameters = unet_graph(**options)
    plan = resolve_plan(graph, 4, 6, 8, parse_rules(rules))
    image = (1, 1, *[8] * options.get("dimensions", 2))
    network = QuantNetwork(graph, plan, get_method("fixed_point"))
    network.calibrate([torch.randn(image)])
    assert weigh_program(lower(network.eval()), parameters, 4, image) == weigh_plan(graph, plan, parameters, 4, image)


# --- activations ------------------------------------------------------------------------------------------------------


def test_peak_of_a_small_unet_counted_by_hand() -> None:
    """Two channels throughout, 8x8 image of 8 bits, activations of 6 bits, two levels.

    Bytes: image 64; enc1.conv1 and .conv2 128 values, 96 each; pool, bottom.conv1 and .conv2 32 values, 24 each; up 96;
    concat 256 values, 192; dec1.conv1 and .conv2 96 each; head 64 accumulators, 256. Alive at once, step by step:
    64, 160, 192, 96+24, 96+48, 96+48, 96+24+96, 96+96+192, 192+96, 192, 96+256. Most: the concatenation, 384.
    """
    graph, parameters = unet_graph()
    ledger = weighed(graph, 4, 6, [], (1, 1, 8, 8), parameters)
    assert {row.name: row.output_bytes for row in ledger.rows} == {
        "input": 64, "enc1.conv1": 96, "enc1.conv2": 96, "pool": 24, "bottom.conv1": 24, "bottom.conv2": 24, "dec1.up": 96,
        "concat": 192, "dec1.conv1": 96, "dec1.conv2": 96, "head": 256,
    }  # fmt: skip
    assert ledger.activation_peak_bytes == 384
    # In float the concatenation again: 128 + 128 + 256 values of 4 bytes.
    assert ledger.float_activation_peak_bytes == 2048


def test_peak_moves_to_the_accumulators_where_activations_are_narrow() -> None:
    # With 1-bit activations the concatenation is 16 + 16 + 32 bytes, the head 16 + 256.
    graph, parameters = unet_graph()
    assert weighed(graph, 4, 1, [], (1, 1, 8, 8), parameters).activation_peak_bytes == 16 + 256


def test_peak_grows_with_image_and_batch() -> None:
    graph, parameters = unet_graph()
    ledger = weighed(graph, 4, 6, [], (3, 1, 16, 32), parameters)
    assert ledger.activation_peak_bytes == 384 * 3 * 8
    assert ledger.input_shape == (3, 1, 16, 32)


def test_odd_tensors_take_whole_bytes() -> None:
    # 2 * 3 * 5 values of 3 bits are 90 bits, 12 bytes; image 15 bytes.
    ledger = weighed(two_convolutions(), 4, 3, [], (1, 1, 3, 5))
    assert [row.output_bytes for row in ledger.rows] == [15, 12, 60]
    assert ledger.activation_peak_bytes == 72


def test_shapes_are_those_the_network_computes() -> None:
    graph, _ = unet_graph(depth=3, out_channels=4, upsample="transposed")
    network = QuantNetwork(graph, resolve_plan(graph, 32, 32, 8), get_method("fixed_point"))
    computed: dict[str, tuple[int, ...]] = {}
    inner = network._run

    def record(operation: Any, *rest: Any) -> torch.Tensor:
        result = inner(operation, *rest)
        computed[operation.name] = tuple(result.shape)
        return result

    network._run = record  # type: ignore[method-assign]
    with torch.no_grad():
        network(torch.zeros(2, 1, 12, 20))
    assert infer_shapes(graph, (2, 1, 12, 20)) == computed


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_json_holds_the_keys_of_eval() -> None:
    ledger = weighed(two_convolutions(), 4, 6, [], (1, 1, 8, 8))
    ledger = dataclasses.replace(ledger, model_file_bytes=1000, process_peak_bytes=5000)
    document = json.loads(json.dumps(ledger.to_json()))
    promised = {"parameter_bytes", "paper_bytes", "float_bytes", "model_file_bytes", "activation_peak_bytes", "process_peak_bytes"}
    assert promised <= set(document)
    assert document["model_file_bytes"] == 1000
    assert document["layers"][1]["output_shape"] == [1, 2, 8, 8]
    assert sum(row["weight_bytes"] for row in document["layers"]) == 18 + 18


def test_batch_norm_that_is_kept_is_weighed_in_float() -> None:
    graph = two_convolutions()
    one = torch.ones(1)
    norm = BatchNorm("norm", ("second",), one, one, NormParameters(one, one, one, one, 1e-5))
    graph = Graph((*graph.operations, norm), "norm")
    row = weigh_plan(graph, resolve_plan(graph, 4, 6, 8), 39, 4, (1, 1, 8, 8)).rows[-1]
    # Gain and offset of one channel, 4 bytes each.
    assert (row.name, row.weight_bits, row.weight_bytes, row.bias_bytes) == ("norm", 32, 4, 4)


def test_an_image_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads images"):
        weighed(two_convolutions(), 4, 6, [], (1, 3, 8, 8))
