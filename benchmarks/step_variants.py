"""What the training-step benchmark compares: one training step of each variant, at each setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import Graph
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan

WEIGHT_BITS, ACTIVATION_BITS, EDGE_BITS, FLOAT_BITS = 4, 6, 8, 32


@dataclass(frozen=True)
class Shape:
    """Size of the network and of its batch: widths are ``channels · 2**level``, the last two alike."""

    channels: int = 16
    depth: int = 6
    size: int = 256
    batch: int = 4

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """Memory layout and number type, the same for every variant."""

    name: str
    channels_last: bool
    bfloat16: bool


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("float32", channels_last=False, bfloat16=False),
        Setting("float32-channels-last", channels_last=True, bfloat16=False),
        Setting("bf16-channels-last", channels_last=True, bfloat16=True),
    )
}

VARIANTS = {
    "float": "convolution, batch norm, ReLU, as users train it",
    "float-folded": "float without batch norm (folded), run by medquant with 32 bits everywhere",
    "medquant": "W4A6, batch norm folded, steps and biases on the integer grid",
    "medquant-compiled": "the same through torch.compile",
    "brevitas": "W4A6, power-of-two scales, learned (its phase after the statistics), no batch norm",
    "brevitas-collecting": "the same while it collects activation percentiles (by default its first 300 steps)",
    "brevitas-batch-norm": "brevitas with batch norm behind each convolution, scales learned",
    "brevitas-integer": "brevitas as an integer program: 32-bit biases, quantized tensors passed along, one scale in a concatenation",
}
DEFAULT_VARIANTS = tuple(name for name in VARIANTS if name != "medquant-compiled")
METHOD_PREFIX = "method:"
"""Any method at any bits, e.g. ``method:binary:1/32`` or ``method:paper:4/6``."""


def is_variant(name: str) -> bool:
    """Whether a step of this name can be built."""
    return name in VARIANTS or name.startswith(METHOD_PREFIX)


def build_step(variant: str, setting: Setting, shape: Shape) -> Callable[[], None]:
    """One training step of a variant: forward, loss, backward and AdamW."""
    torch.manual_seed(0)
    network = _network(variant, shape).train()
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    run = torch.compile(network) if variant.endswith("compiled") else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    image = torch.randn(shape.batch, 1, shape.size, shape.size).contiguous(memory_format=layout)
    target = (torch.rand(shape.batch, 1, shape.size, shape.size) > 0.5).float()

    hooks = network if isinstance(network, QuantNetwork) else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if hooks is not None:
            hooks.before_step(0.5)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.bfloat16):
            logits: Tensor = run(image)
        F.binary_cross_entropy_with_logits(logits.float(), target).backward()
        if hooks is not None:
            hooks.after_backward()
        optimizer.step()
        if hooks is not None:
            hooks.after_step()

    return step


def _network(variant: str, shape: Shape) -> nn.Module:
    options = UNetOptions(channels=shape.channels, depth=shape.depth)
    network = UNet(options)
    # Building happens on a small image, so that it leaves no large free blocks behind that the measured steps would reuse.
    sample = torch.randn(2, 1, *[4 * network.size_multiple] * 2)
    with torch.no_grad():
        network.train()(sample)  # running statistics that are not the initial ones
    if variant == "float":
        return network
    if variant.startswith(METHOD_PREFIX):
        return _of_method(variant, network, sample)
    graph = simplify(capture(network, sample))
    if variant.startswith("brevitas"):
        return _brevitas(variant, options, graph)
    bits = (FLOAT_BITS, FLOAT_BITS) if variant == "float-folded" else (WEIGHT_BITS, ACTIVATION_BITS)
    quantized = QuantNetwork(graph, resolve_plan(graph, *bits, EDGE_BITS), get_method("fixed_point"))
    quantized.calibrate([sample])
    return quantized


def _of_method(variant: str, network: nn.Module, sample: Tensor) -> nn.Module:
    name, _, bits = variant.removeprefix(METHOD_PREFIX).partition(":")
    weights, _, activations = (bits or f"{WEIGHT_BITS}/{ACTIVATION_BITS}").partition("/")
    method = get_method(name)
    graph = simplify(capture(network, sample), method.keeps_batch_norm)
    plan = resolve_plan(graph, int(weights), int(activations), EDGE_BITS, default_bits=method.default_bits)
    quantized = QuantNetwork(graph, plan, method)
    quantized.calibrate([sample])
    return quantized


def _brevitas(variant: str, options: UNetOptions, graph: Graph) -> nn.Module:
    # An optional peer, imported only where it is measured.
    from benchmarks.brevitas_unet import ALWAYS, BrevitasOptions, BrevitasUNet

    how = BrevitasOptions(
        collect_steps=ALWAYS if variant == "brevitas-collecting" else 1,
        batch_norm=variant == "brevitas-batch-norm",
        integer=variant == "brevitas-integer",
    )
    network = BrevitasUNet(options, how)
    network.load_folded(graph)
    return network
