"""How many channels each tensor of a program has; found without a size of image."""

from __future__ import annotations

from medquant.quant.program import ConcatNode, ConvolutionNode, ImageNode, IntegerProgram


def channels_of(program: IntegerProgram) -> dict[str, int]:
    """Channels of every tensor."""
    channels: dict[str, int] = {}
    for node in program:
        if isinstance(node, ImageNode):
            channels[node.name] = node.channels
        elif isinstance(node, ConvolutionNode):
            channels[node.name] = len(node.bias)
        elif isinstance(node, ConcatNode):
            channels[node.name] = sum(channels[source] for source in node.inputs)
        else:
            channels[node.name] = channels[node.inputs[0]]
    return channels
