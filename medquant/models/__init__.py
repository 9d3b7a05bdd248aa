"""Registry of networks: one file each, one line here. MONAI is imported when one of its networks is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from medquant.errors import ConfigError, unknown_name
from medquant.models.attention_unet import ATTENTION_UNET
from medquant.models.basic_unet import BASIC_UNET
from medquant.models.dynunet import DYNUNET
from medquant.models.monai_unet import MONAI_UNET
from medquant.models.options import ActivationKind, Network, NetworkOptions, NormKind
from medquant.models.segresnet import SEGRESNET
from medquant.models.swin_unetr import SWIN_UNETR
from medquant.models.unet import BlockOrder, UNet, UpsampleKind
from medquant.models.unetr import UNETR

MODELS: dict[str, Network] = {
    "unet": Network(
        "the U-Net of the 2019 fixed-point paper, with the options that matter",
        UNet,
        offers={
            "block": ("conv_norm_act", "conv_act_norm"),
            "upsample": ("bilinear", "nearest", "transposed"),
            "activation": ("relu", "ternary_tanh"),
        },
    ),
    "monai_unet": MONAI_UNET,
    "basic_unet": BASIC_UNET,
    "dynunet": DYNUNET,
    "segresnet": SEGRESNET,
    "attention_unet": ATTENTION_UNET,
    "unetr": UNETR,
    "swin_unetr": SWIN_UNETR,
}


def find_network(name: str) -> Network:
    """The registry's entry.

    Raises:
        ConfigError: there is no network of this name (the message lists those there are).
    """
    if name not in MODELS:
        raise ConfigError(unknown_name("network", name, MODELS))
    return MODELS[name]


def size_multiple(depth: int) -> int:
    """What every spatial axis of an image must be a multiple of, in every network here: each level but the first halves it."""
    return int(2 ** (depth - 1))


def resolve_choices(name: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Options of a network with ``auto`` replaced by what it stands for there.

    Raises:
        ConfigError: there is no network of this name.
    """
    network = find_network(name)
    return {option: str(network.values(option)[0]) if value == "auto" else value for option, value in choices.items()}


def build_model(
    name: str = "unet",
    *,
    in_channels: int,
    out_channels: int,
    channels: int = 64,
    depth: int = 4,
    block: BlockOrder = "conv_norm_act",
    upsample: UpsampleKind | Literal["auto"] = "auto",
    dropout: float = 0.0,
    dimensions: Literal[2, 3] = 2,
    norm: NormKind | Literal["auto"] = "auto",
    activation: ActivationKind | Literal["auto"] = "auto",
    residual_units: int = 0,
    deep_supervision: bool = False,
    size: Sequence[int] = (),
) -> nn.Module:
    """A new float network; the options are those of :class:`~medquant.models.options.NetworkOptions`.

    ``auto`` is what the network computes exactly, where it offers that: batch norm and ReLU; and its own way of up-sampling.

    Raises:
        ConfigError: there is no network of this name (the message lists those there are), it does not offer what an option
            asks for, or an option is out of range.
    """
    network = find_network(name)
    resolved = resolve_choices(name, {"upsample": upsample, "norm": norm, "activation": activation})
    options = NetworkOptions(
        in_channels=in_channels,
        out_channels=out_channels,
        channels=channels,
        depth=depth,
        block=block,
        dropout=dropout,
        dimensions=dimensions,
        residual_units=residual_units,
        deep_supervision=deep_supervision,
        size=tuple(size),
        **resolved,  # type: ignore[arg-type]  # the options check them
    )
    network.check(name, options)
    return network.build(options)
