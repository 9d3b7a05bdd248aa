"""Turn a trained quantized network into its integer program."""

from __future__ import annotations

import numpy as np

from medquant.errors import ConfigError
from medquant.quant.graph import Add, AvgPool, Concat, Convolution, Graph, Input, MaxPool, Operation, Relu, Upsample
from medquant.quant.methods.base import IntegerWeightQuantizer
from medquant.quant.network import QuantNetwork
from medquant.quant.program import (
    AddNode,
    AvgPoolNode,
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntegerProgram,
    MaxPoolNode,
    Node,
    ReluNode,
    UpsampleNode,
    accumulator_bound,
)

INT32_LIMIT = 2**31


def lower(network: QuantNetwork) -> IntegerProgram:
    """The integers of ``network`` as they stand now.

    Raises:
        ConfigError: a layer is float, so the network is no integer program; or an accumulator could leave 32 bits.
    """
    if not network.method.exact:
        raise ConfigError(f"not an integer program: method {network.method.name} computes with real scales; run it as a simulation")
    floats = [layer.name for layer in network.plan.layers if 32 in (layer.weight_bits, layer.activation_bits)]
    if floats:
        raise ConfigError(f"not an integer program: {', '.join(floats)} compute in float (32 bits); give them 1 to 8 bits")
    exponents = network.exponents()
    nodes = tuple(_lower(operation, network, exponents) for operation in _needed(network.graph))
    program = IntegerProgram(nodes, ())
    for node in program.convolutions:
        bound = accumulator_bound(node, program.format_of(node.inputs[0]))
        if bound >= INT32_LIMIT:
            raise ConfigError(f"{node.name}: accumulators up to {bound} do not fit 32 bits; use fewer bits in this layer")
    return IntegerProgram(nodes, _output_exponents(program))


def _needed(graph: Graph) -> list[Operation]:
    """The operations up to the output, which must be the last to run."""
    names = [operation.name for operation in graph]
    if names[-1] != graph.output:
        raise ConfigError(f"the network computes {names[-1]} after its output {graph.output}; remove what is not used")
    return list(graph)


def _lower(operation: Operation, network: QuantNetwork, exponents: dict[str, int]) -> Node:
    name, inputs = operation.name, operation.inputs
    output = network.tensor_format(name, exponents)
    if isinstance(operation, Convolution):
        return _lower_convolution(operation, network, exponents)
    if isinstance(operation, Input):
        return ImageNode(name, inputs, output, operation.channels)
    if isinstance(operation, MaxPool):
        return MaxPoolNode(name, inputs, output, operation.kernel, operation.stride, operation.padding)
    if isinstance(operation, AvgPool):
        return AvgPoolNode(name, inputs, output, operation.kernel, operation.stride)
    if isinstance(operation, Upsample):
        return UpsampleNode(name, inputs, output, operation.factor, operation.mode, operation.spatial_axes)
    if isinstance(operation, Relu):
        return ReluNode(name, inputs, output)
    if isinstance(operation, Concat):
        return ConcatNode(name, inputs, output)
    if isinstance(operation, Add):
        return AddNode(name, inputs, output, operation.relu)
    raise ConfigError(f"{name}: {type(operation).__name__} has no node in the integer program")


def _lower_convolution(operation: Convolution, network: QuantNetwork, exponents: dict[str, int]) -> ConvolutionNode:
    quantizer = network.weight_quantizer(operation.name)
    read = network.tensor_format(operation.inputs[0], exponents)
    weight_bits = network.plan[operation.name].weight_bits
    if not isinstance(quantizer, IntegerWeightQuantizer) or read is None or weight_bits is None:
        raise ConfigError(f"{operation.name} reads or computes float values")
    weight, bias = network.layer_parameters(operation.name)
    integers, weight_exponents = quantizer.integers(weight)
    flat = weight_exponents.reshape(-1).expand(operation.out_channels) if weight_exponents.numel() == 1 else weight_exponents.reshape(-1)
    scaled = quantizer.bias(bias).detach().double().cpu() * 2.0 ** (flat.double().cpu() + read.exponent)
    return ConvolutionNode(
        operation.name,
        operation.inputs,
        network.tensor_format(operation.name, exponents),
        integers.cpu().contiguous().numpy().astype(np.int8),
        scaled.round().long().numpy(),
        flat.cpu().contiguous().numpy(),
        weight_bits,
        operation.geometry,
        operation.relu,
    )


def _output_exponents(program: IntegerProgram) -> tuple[int, ...]:
    last = program.nodes[-1]
    if isinstance(last, ConvolutionNode) and last.output is None:
        read = program.format_of(last.inputs[0])
        return tuple(int(exponent) + read.exponent for exponent in last.weight_exponents)
    if last.output is None:
        raise ConfigError(f"{last.name} ends the network but writes nothing that can be compared")
    return (last.output.exponent,)
