"""Every network of the registry in two and three dimensions: trained a step, read, quantized; and what stays float in it.

MONAI's transformers need einops; where it is not installed, they must say so, and the rest about them is left out.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import nn

from medquant.deploy.agreement import check_agreement
from medquant.errors import ConfigError
from medquant.evaluate.ledger import weigh_plan
from medquant.models import MODELS, build_model, size_multiple
from medquant.models.dynunet import SupervisedUNet
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import FloatOperation, Graph
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import QuantPlan, resolve_plan
from medquant.quant.shapes import infer_shapes

NEEDS_EINOPS = pytest.mark.skipif(find_spec("einops") is None, reason="einops is not installed")
STATISTICS = {"norm": "instance", "activation": "leaky_relu"}

EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"depth": 3}),
    "monai_unet": ("monai_unet", {"depth": 3}),
    "monai_unet, residual": ("monai_unet", {"depth": 3, "residual_units": 2}),
    "basic_unet": ("basic_unet", {"depth": 5, "channels": 2}),
    "basic_unet, linear": ("basic_unet", {"depth": 5, "channels": 2, "upsample": "bilinear"}),
    "dynunet": ("dynunet", {"depth": 3}),
    "dynunet, residual": ("dynunet", {"depth": 4, "residual_units": 1, "deep_supervision": True}),
    "segresnet": ("segresnet", {"depth": 3}),
    "segresnet, transposed": ("segresnet", {"depth": 3, "upsample": "transposed"}),
}
PARTLY: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "monai_unet": ("monai_unet", {"depth": 3, "norm": "instance", "activation": "prelu"}, {"instance norm", "prelu", "join"}),
    "basic_unet": ("basic_unet", {"depth": 5, "channels": 2, **STATISTICS}, {"instance norm", "leaky relu", "join"}),
    "dynunet": ("dynunet", {"depth": 3, "residual_units": 1, **STATISTICS}, {"instance norm", "leaky relu", "join", "add"}),
    "dynunet, instance norm alone": ("dynunet", {"depth": 3, "norm": "instance"}, {"instance norm", "join"}),
    "segresnet": ("segresnet", {"depth": 3, "channels": 8, "norm": "group"}, {"group norm"}),
    "attention_unet": ("attention_unet", {"depth": 3}, {"sigmoid", "multiply", "join"}),
    "attention_unet, MONAI's own": (
        "attention_unet",
        {"depth": 3, "norm": "instance", "activation": "prelu"},
        {"sigmoid", "multiply", "join", "instance norm", "prelu"},
    ),
}
TRANSFORMERS: dict[str, dict[str, Any]] = {"unetr": {"depth": 5, "channels": 1}, "swin_unetr": {"depth": 6, "channels": 12}}


def build(name: str, dimensions: int, **options: Any) -> tuple[nn.Module, torch.Tensor]:
    """A small network with settled batch norm, and two images of the smallest size it trains on."""
    torch.manual_seed(0)
    options = {"channels": 4, "depth": 3, **options}
    size = (2 * size_multiple(options["depth"]),) * dimensions
    network = build_model(name, in_channels=2, out_channels=3, dimensions=dimensions, size=size, **options)  # type: ignore[arg-type]
    return network, torch.randn(2, 2, *size)


def train_a_step(network: nn.Module, images: torch.Tensor) -> list[str]:
    """Names of the parameters without a finite gradient."""
    network.train()
    network(images).square().mean().backward()
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.isfinite().all()))
    ]


def read(network: nn.Module, images: torch.Tensor) -> Graph:
    """The graph, whose float copy must compute what the network does; sums in another order differ by a few 1e-7 of the largest."""
    graph = simplify(capture(network.eval(), images))
    copy = QuantNetwork(graph, resolve_plan(graph, 32, 32, 32), get_method("fixed_point")).eval()
    with torch.no_grad():
        expected = network(images)
        assert float((copy(images) - expected).abs().max()) <= 3e-6 * float(expected.abs().max())
        assert float((copy(images[:1]) - network(images[:1])).abs().max()) <= 3e-6 * float(expected.abs().max())
    assert infer_shapes(graph, images.shape)[graph.output] == tuple(expected.shape)
    return graph


def quantize(graph: Graph, images: torch.Tensor) -> tuple[QuantNetwork, QuantPlan]:
    """Calibrated with 4-bit weights and 6-bit activations."""
    plan = resolve_plan(graph, 4, 6, 8)
    network = QuantNetwork(graph, plan, get_method("fixed_point"))
    network.calibrate([images])
    return network, plan


def check_float_rows(graph: Graph, plan: QuantPlan, kinds: set[str]) -> None:
    """Every float operation has a row, of 32 bits, with the reason; nothing else is float."""
    floats = {operation.name: operation for operation in graph if isinstance(operation, FloatOperation)}
    rows = {layer.name: layer for layer in plan.layers if 32 in (layer.weight_bits, layer.activation_bits)}
    assert {layer.kind for layer in rows.values()} == kinds
    assert set(rows) >= set(floats)
    assert all(layer.activation_bits == 32 and layer.note.startswith("float: ") for layer in rows.values())
    assert not plan.is_integer
    assert not plan.is_float


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("case", EXACT)
def test_batch_norm_and_relu_end_as_integers(case: str, dimensions: int) -> None:
    name, options = EXACT[case]
    network, images = build(name, dimensions, **options)
    assert train_a_step(network, images) == []
    graph = read(network, images)
    quantized, plan = quantize(graph, images)
    assert plan.is_integer
    assert train_a_step(quantized, images) == []
    agreement = check_agreement(quantized.eval(), lower(quantized), images.numpy())
    assert agreement.checked == 2 * 3 * images[0, 0].numel()
    assert agreement.differing == 0


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("case", PARTLY)
def test_what_stays_float_is_named(case: str, dimensions: int) -> None:
    name, options, kinds = PARTLY[case]
    network, images = build(name, dimensions, **options)
    assert train_a_step(network, images) == []
    graph = read(network, images)
    # These operations mean the same for every size of image.
    larger = (1, 2, *(2 * length for length in images.shape[2:]))
    assert infer_shapes(graph, larger)[graph.output] == (1, 3, *larger[2:])
    quantized, plan = quantize(graph, images)
    check_float_rows(graph, plan, kinds)
    assert train_a_step(quantized, images) == []
    assert bool(quantized.eval()(images).isfinite().all())
    with pytest.raises(ConfigError, match="not an integer program"):
        lower(quantized)
    # By MONAI's own count; what the plan keeps is less, but every float parameter still counts 32 bits.
    parameters = sum(parameter.numel() for parameter in network.parameters())
    ledger = weigh_plan(graph, plan, parameters, 4, images.shape)
    assert ledger.float_bytes == 4 * parameters
    held = sum(operation.parameters for operation in graph if isinstance(operation, FloatOperation))
    assert sum(row.weight_bytes for row in ledger.rows if row.weight_bits == 32) == 4 * held


@pytest.mark.slow
@NEEDS_EINOPS
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_quantized_in_part(name: str, dimensions: int) -> None:
    network, images = build(name, dimensions, **TRANSFORMERS[name])
    # MONAI makes a norm for attention across two sequences in every block and never uses it here.
    assert all("cross_attn" in without for without in train_a_step(network, images))
    graph = read(network, images)
    quantized, plan = quantize(graph, images)
    rows = {layer.kind for layer in plan.layers if layer.activation_bits == 32}
    assert {"softmax", "layer norm", "gelu", "linear", "leaky relu"} <= rows
    assert all(layer.weight_bits == 4 for layer in plan.layers if layer.kind == "linear")
    assert all(layer.note for layer in plan.layers if layer.activation_bits == 32)
    assert train_a_step(quantized, images) == []
    with pytest.raises(ConfigError, match="of the size the network was read for"):
        quantized.eval()(torch.zeros(1, 2, *(3 * length // 2 for length in images.shape[2:])))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_without_einops_say_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(ConfigError, match=rf"{name} needs the package einops, .* pip install einops"):
        build(name, 2, **TRANSFORMERS[name])


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("residual", [0, 1])
def test_dynunet_is_monais(residual: int, dimensions: int) -> None:
    conv: dict[str, Any] = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3, "filters": [4, 8, 16, 32]}
    theirs = nets.DynUNet(dimensions, 2, 3, **conv, norm_name="batch", deep_supervision=True, deep_supr_num=2, res_block=residual > 0)
    ours = SupervisedUNet(theirs)
    images = torch.randn(2, 2, *(16,) * dimensions)
    for mode in (True, False):
        theirs.train(mode)
        ours.train(mode)
        with torch.no_grad():
            assert torch.equal(ours(images), theirs(images))
    assert ours.train()(images).shape == (2, 3, 3, *(16,) * dimensions)  # two coarser outputs beside the finest
    pointers = [tensor.data_ptr() for tensor in ours.state_dict().values() if tensor.dim()]
    assert len(set(pointers)) == len(pointers)  # a checkpoint cannot hold a tensor under two names
    # MONAI's own count.
    assert sum(each.numel() for each in ours.parameters()) == sum(each.numel() for each in theirs.parameters())


def test_channels_and_depth_are_monais_parameters() -> None:
    def count(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    common: dict[str, Any] = {"in_channels": 1, "out_channels": 2}
    basic = nets.BasicUNet(2, **common, features=(4, 4, 8, 16, 32, 4), norm="batch", act="relu")
    assert count(build_model("basic_unet", **common, channels=4, depth=5)) == count(basic)
    unet = nets.UNet(3, **common, channels=(4, 8, 16, 32), strides=(2, 2, 2), num_res_units=2, norm="batch", act="relu")
    assert count(build_model("monai_unet", **common, channels=4, depth=4, residual_units=2, dimensions=3)) == count(unet)
    segresnet = nets.SegResNet(2, 8, **common)  # group norm has as many parameters as batch norm
    assert count(build_model("segresnet", **common, channels=8, depth=4)) == count(segresnet)
    attention = nets.AttentionUnet(2, **common, channels=(4, 8, 16), strides=(2, 2))
    options: dict[str, Any] = {"channels": 4, "depth": 3, "norm": "instance", "activation": "prelu"}
    assert count(build_model("attention_unet", **common, **options)) == count(attention)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("basic_unet", {"depth": 4}, "basic_unet has model.depth 5, found 4"),
        ("dynunet", {"depth": 2}, "dynunet has model.depth 3 or more, found 2"),
        ("unet", {"norm": "instance"}, "unet has model.norm batch, found instance"),
        ("unet", {"activation": "prelu"}, "unet has model.activation relu or ternary_tanh, found prelu"),
        ("monai_unet", {"upsample": "nearest"}, "monai_unet has model.upsample transposed, found nearest"),
        ("monai_unet", {"block": "conv_act_norm"}, "monai_unet has model.block conv_norm_act, found conv_act_norm"),
        ("segresnet", {"deep_supervision": True}, "segresnet has model.deep_supervision False, found True"),
        ("segresnet", {"norm": "group", "channels": 4}, "model.channels must be a multiple of 8, found 4"),
        ("unetr", {"depth": 5}, "unetr takes images of one size, which must be given: 2 spatial axes"),
        ("unetr", {"depth": 5, "size": (32, 40)}, "unetr takes images whose sides are multiples of 16, found 32×40"),
        ("swin_unetr", {"depth": 6, "channels": 8, "size": (64, 64)}, "model.channels in multiples of 12, found 8"),
    ],
)
def test_what_a_network_does_not_offer_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, in_channels=1, out_channels=1, **options)


def test_every_network_says_in_a_line_what_it_is() -> None:
    lines = {name: network.describe() for name, network in MODELS.items()}
    assert all("2D and 3D" in line and ("; exact" in line or "; float: " in line) for line in lines.values())
    exact = {name for name, line in lines.items() if line.endswith("; exact")}
    assert exact == {name for name, _ in EXACT.values()}
