"""Every method on every network of the registry: it trains and is its integer program, or says why it is none."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from medquant.deploy.agreement import check_agreement
from medquant.errors import ConfigError
from medquant.models import MODELS, build_model, size_multiple
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import Graph
from medquant.quant.lower import lower
from medquant.quant.methods import METHODS, get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan

# The least each network can be built with; one that is not named takes what the others do.
_OPTIONS: dict[str, dict[str, Any]] = {
    "basic_unet": {"depth": 5, "channels": 2},
    "unetr": {"depth": 5, "channels": 1},
    "swin_unetr": {"depth": 6, "channels": 12},
}
_EINOPS = {"unetr", "swin_unetr"}
_WHOLE_INTEGERS = {"unet", "monai_unet", "basic_unet", "dynunet", "segresnet"}
# Bits a method serves that are nearest to W4A6.
_BITS = {"binary": (1, 8), "ternary": (2, 2)}


@cache
def captured(name: str, dimensions: int) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    options = {"channels": 4, "depth": 3, **_OPTIONS.get(name, {})}
    side = 2 * size_multiple(options["depth"])
    images = torch.randn(2, 1, *[side] * dimensions)
    network = build_model(name, in_channels=1, out_channels=2, dimensions=dimensions, size=(side,) * dimensions, **options)  # type: ignore[arg-type]
    network.train()
    with torch.no_grad():
        network(images)  # running statistics that are not the initial ones
    return capture(network.eval(), images), images


def check(method: str, name: str, dimensions: int) -> None:
    if name in _EINOPS and find_spec("einops") is None:
        pytest.skip("einops is not installed")
    raw, images = captured(name, dimensions)
    chosen = get_method(method)
    graph = simplify(raw, chosen.keeps_batch_norm)
    wbits, abits = _BITS.get(method, (4, 6))
    net = QuantNetwork(graph, resolve_plan(graph, wbits, abits, 8, default_bits=chosen.default_bits), chosen)
    net.calibrate([images])
    net.train()
    net.before_step(0.5)
    output = net(images)
    output.square().mean().backward()
    for layer, weight in net.named_weights():
        assert weight.grad is not None, layer
        assert bool(torch.isfinite(weight.grad).all()), layer
    for parameter in net.step_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
    net.after_backward()
    net.after_step()
    net.eval()
    with torch.no_grad():
        assert bool(torch.isfinite(net(images)).all())
    if chosen.exact and net.plan.is_integer:
        assert name in _WHOLE_INTEGERS
        agreement = check_agreement(net, lower(net), images.numpy())
        assert agreement.checked == output.numel()
        assert agreement.differing == 0
        return
    with pytest.raises(ConfigError, match="not an integer program"):
        lower(net)
    if chosen.exact:
        # The plan names what stays float, with a reason.
        floats = [layer for layer in net.plan.layers if layer.activation_bits == 32 or layer.weight_bits == 32]
        assert floats
        assert all(layer.note for layer in floats), [layer.name for layer in floats if not layer.note]


# Reading a transformer takes torch.export ten seconds and more.
_NETWORKS = [pytest.param(name, marks=pytest.mark.slow) if name in _EINOPS else name for name in MODELS]


@pytest.mark.parametrize("name", _NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_serves_every_network(method: str, name: str) -> None:
    check(method, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_serves_every_network_in_three_dimensions(method: str, name: str) -> None:
    check(method, name, 3)
