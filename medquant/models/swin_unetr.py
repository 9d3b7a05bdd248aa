"""MONAI's SwinUNETR: a transformer over shifted windows, with a convolutional decoder of six levels.

Source: Hatamizadeh et al., Swin UNETR, arXiv 2201.01266, as ``monai.networks.nets.SwinUNETR``. ``model.channels`` is its feature
size, a multiple of 12. It takes images of one size: the masks of its windows are read for it.
"""

from __future__ import annotations

from torch import nn

from medquant.errors import ConfigError
from medquant.models.monai_options import monai_networks, monai_norm
from medquant.models.options import Network, NetworkOptions
from medquant.models.transformers import FLOATS, check_einops

_CHANNEL_MULTIPLE = 12


def _build(options: NetworkOptions) -> nn.Module:
    if options.channels % _CHANNEL_MULTIPLE:
        raise ConfigError(f"swin_unetr has model.channels in multiples of {_CHANNEL_MULTIPLE}, found {options.channels}")
    check_einops("swin_unetr")
    network: nn.Module = monai_networks().SwinUNETR(
        options.in_channels,
        options.out_channels,
        feature_size=options.channels,
        norm_name=monai_norm(options),
        drop_rate=options.dropout,
        spatial_dims=options.dimensions,
    )
    return network


SWIN_UNETR = Network(
    "MONAI's SwinUNETR, shifted windows with a convolutional decoder",
    _build,
    offers={"norm": ("batch", "instance"), "activation": ("leaky_relu",)},
    depths=(6, 6),
    floats=FLOATS,
    one_size=True,
)
