"""From a configuration to what it names: the float network, the plan of its layers, the cache."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from medquant.config.bits import FLOAT_BITS, parse_rule
from medquant.config.schema import Config
from medquant.data.stored import ArrayCache
from medquant.errors import ConfigError
from medquant.models import build_model, find_network, size_multiple
from medquant.models.brought import brought_facts, build_brought, is_brought
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import Graph
from medquant.quant.methods import get_method
from medquant.quant.methods.base import Method
from medquant.quant.plan import QuantPlan, resolve_plan


def outputs_for(classes: int) -> int:
    """Outputs of a network: one for two classes (its sign decides), otherwise one for each class."""
    return 1 if classes == 2 else classes


def configured_outputs(config: Config, classes: int) -> int:
    """Outputs of the configured network; one that was brought along has its own number, two for two classes as well."""
    model = config.model
    return brought_facts(model.name, model.arguments).outputs if is_brought(model.name) else outputs_for(classes)


def configured_size_multiple(config: Config) -> int:
    """What every spatial axis of an image must be a multiple of."""
    model = config.model
    return brought_facts(model.name, model.arguments).size_multiple if is_brought(model.name) else size_multiple(model.depth)


def build_network(config: Config, inputs: int, outputs: int) -> nn.Module:
    """The float network of a configuration, for images of ``inputs`` channels.

    Raises:
        ConfigError: an unknown network name, or an option the network does not offer.
    """
    model = config.model
    if is_brought(model.name):
        return build_brought(model.name, model.arguments)
    if model.arguments:
        raise ConfigError(f"model.arguments belongs to networks that were brought along, not to {model.name}; leave it out")
    options = model.model_dump(exclude={"name", "arguments"})
    return build_model(model.name, in_channels=inputs, out_channels=outputs, size=patch_size(config), **options)


def patch_size(config: Config) -> tuple[int, ...]:
    """Spatial size of a training patch: rows and columns, and slices where the network takes volumes."""
    data = config.data
    return data.patch_size if config.model.dimensions == 2 else (*data.patch_size, data.patch_slices)


def only_size(config: Config) -> tuple[int, ...] | None:
    """The one spatial size of images the configured network takes, None where any multiple of its size multiple will do."""
    name = config.model.name
    return patch_size(config) if not is_brought(name) and find_network(name).one_size else None


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
        ConfigError: the network holds something that cannot be copied.
    """
    parameter = next(network.parameters())
    size = only_size(config) or (2 * configured_size_multiple(config),) * config.model.dimensions
    example = torch.zeros((2, inputs, *size), device=parameter.device)
    quant, method = config.quant, configured_method(config)
    # A float network is planned and weighed as it runs, with batch norm folded.
    captured = capture(network, example, _architecture(config))
    graph = simplify(captured, method.keeps_batch_norm and (quant.wbits, quant.abits) != (FLOAT_BITS, FLOAT_BITS))
    rules = [parse_rule(text) for text in quant.layer_bits]
    return graph, resolve_plan(graph, quant.wbits, quant.abits, quant.edge_bits, rules, method.default_bits)


def _architecture(config: Config) -> str | None:
    """All a network is built from, but the shapes of its tensors; None for one that was brought along as a file."""
    return None if is_brought(config.model.name) else f"{config.model.model_dump_json()} {patch_size(config)}"


def configured_cache(config: Config) -> ArrayCache:
    """Where decoded and resampled arrays go."""
    named = config.data.cache
    return ArrayCache(None if named == "off" else ArrayCache.default_folder() if named is None else Path(named))
