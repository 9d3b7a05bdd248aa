"""MONAI's UNETR: a vision transformer over patches of 16 voxels a side, with a convolutional decoder of five levels.

Source: Hatamizadeh et al., UNETR: Transformers for 3D Medical Image Segmentation, arXiv 2103.10504, as
``monai.networks.nets.UNETR``. ``model.channels`` is its feature size; the transformer is 48 times as wide, with 12 heads and a
perceptron four times as wide again, which are MONAI's defaults at 16 channels. It takes images of one size.
"""

from __future__ import annotations

from torch import nn

from medquant.models.monai_options import monai_networks, monai_norm
from medquant.models.options import Network, NetworkOptions
from medquant.models.transformers import FLOATS, check_einops

_WIDER = 48
_HEADS = 12


def _build(options: NetworkOptions) -> nn.Module:
    check_einops("unetr")
    hidden = _WIDER * options.channels
    network: nn.Module = monai_networks().UNETR(
        options.in_channels,
        options.out_channels,
        options.size,
        feature_size=options.channels,
        hidden_size=hidden,
        mlp_dim=4 * hidden,
        num_heads=_HEADS,
        norm_name=monai_norm(options),
        dropout_rate=options.dropout,
        spatial_dims=options.dimensions,
    )
    return network


UNETR = Network(
    "MONAI's UNETR, a vision transformer with a convolutional decoder",
    _build,
    offers={"norm": ("batch", "instance"), "activation": ("leaky_relu",)},
    depths=(5, 5),
    floats=FLOATS,
    one_size=True,
)
