"""Registry of networks: one file each, one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from medquant.errors import ConfigError, unknown_name
from medquant.models.unet import BlockOrder, UNet, UNetOptions, UpsampleKind

MODELS: dict[str, Callable[[UNetOptions], nn.Module]] = {"unet": UNet}


def build_model(
    name: str = "unet",
    *,
    in_channels: int,
    out_channels: int,
    channels: int = 64,
    depth: int = 4,
    block: BlockOrder = "conv_norm_act",
    upsample: UpsampleKind = "bilinear",
    dropout: float = 0.0,
    dimensions: Literal[2, 3] = 2,
) -> nn.Module:
    """A new float network; the options are those of :class:`~medquant.models.unet.UNetOptions`.

    Raises:
        ConfigError: there is no network of this name (the message lists those there are), or an option is out of range.
    """
    if name not in MODELS:
        raise ConfigError(unknown_name("network", name, MODELS))
    options = UNetOptions(
        in_channels=in_channels,
        out_channels=out_channels,
        channels=channels,
        depth=depth,
        block=block,
        upsample=upsample,
        dropout=dropout,
        dimensions=dimensions,
    )
    return MODELS[name](options)
