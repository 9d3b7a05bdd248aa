"""From a configuration to what it names: the float network, the plan of its layers, the cache."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from medquant.config.bits import FLOAT_BITS, parse_rule
from medquant.config.schema import Config
from medquant.data.stored import ArrayCache
from medquant.models import build_model
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import Graph
from medquant.quant.methods import get_method
from medquant.quant.methods.base import Method
from medquant.quant.plan import QuantPlan, resolve_plan


def outputs_for(classes: int) -> int:
    """Outputs of a network: one for two classes (its sign decides), otherwise one for each class."""
    return 1 if classes == 2 else classes


def build_network(config: Config, inputs: int, outputs: int) -> nn.Module:
    """The float network of a configuration, for images of ``inputs`` channels.

    Raises:
        ConfigError: an unknown network name.
    """
    model = config.model
    options = model.model_dump(exclude={"name"})
    return build_model(model.name, in_channels=inputs, out_channels=outputs, **options)


def configured_method(config: Config) -> Method:
    """The quantization method of a configuration.

    Raises:
        ConfigError: an unknown method or option.
    """
    return get_method(config.quant.method, config.quant.options)


def plan_network(config: Config, network: nn.Module, inputs: int) -> tuple[Graph, QuantPlan]:
    """The simplified graph of a float network and the bits of its layers.

    Raises:
        UsageError: a layer rule matches nothing.
        ConfigError: the network holds something that has no integer form.
    """
    parameter = next(network.parameters())
    side = 2**config.model.depth
    example = torch.zeros((2, inputs, *[side] * config.model.dimensions), device=parameter.device)
    quant, method = config.quant, configured_method(config)
    # A float network is planned and weighed as it runs, with batch norm folded.
    graph = simplify(capture(network, example), method.keeps_batch_norm and (quant.wbits, quant.abits) != (FLOAT_BITS, FLOAT_BITS))
    rules = [parse_rule(text) for text in quant.layer_bits]
    return graph, resolve_plan(graph, quant.wbits, quant.abits, quant.edge_bits, rules, method.default_bits)


def configured_cache(config: Config) -> ArrayCache:
    """Where decoded and resampled arrays go."""
    named = config.data.cache
    return ArrayCache(None if named == "off" else ArrayCache.default_folder() if named is None else Path(named))
