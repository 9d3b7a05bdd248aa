"""MONAI's U-Net: strided convolutions down, transposed convolutions up, residual units on request.

Source: Kerfoot et al., Left-Ventricle Quantification Using Residual U-Net, STACOM 2018, as ``monai.networks.nets.UNet``.
"""

from __future__ import annotations

from torch import nn

from medquant.models.monai_options import monai_activation, monai_networks, monai_norm, widths
from medquant.models.options import Network, NetworkOptions


def _build(options: NetworkOptions) -> nn.Module:
    network: nn.Module = monai_networks().UNet(
        options.dimensions,
        options.in_channels,
        options.out_channels,
        channels=widths(options),
        strides=(2,) * (options.depth - 1),
        num_res_units=options.residual_units,
        act=monai_activation(options),
        norm=monai_norm(options),
        dropout=options.dropout,
    )
    return network


MONAI_UNET = Network(
    "MONAI's U-Net with strided convolutions; model.residual_units",
    _build,
    offers={
        "norm": ("batch", "instance"),
        "activation": ("relu", "leaky_relu", "prelu"),
        "residual_units": (0, 1, 2, 3, 4),
    },
)
