"""MONAI's BasicUNet: the U-Net of two convolutions a level, five levels, widths c, c, 2c, 4c, 8c.

Source: Falk et al., U-Net: deep learning for cell counting, detection, and morphometry, 2019, as ``monai.networks.nets.BasicUNet``.
MONAI aligns the corners of its linear up-sampling, which is no integer operation; here voxel centres are half a voxel apart,
as in torch's own default.
"""

from __future__ import annotations

from torch import nn

from medquant.models.monai_options import monai_activation, monai_networks, monai_norm
from medquant.models.options import Network, NetworkOptions


def _build(options: NetworkOptions) -> nn.Module:
    c = options.channels
    network: nn.Module = monai_networks().BasicUNet(
        options.dimensions,
        options.in_channels,
        options.out_channels,
        features=(c, c, 2 * c, 4 * c, 8 * c, c),
        act=monai_activation(options),
        norm=monai_norm(options),
        dropout=options.dropout,
        upsample="deconv" if options.upsample == "transposed" else "nontrainable",
    )
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = False
    return network


BASIC_UNET = Network(
    "MONAI's BasicUNet, max pooling, five levels",
    _build,
    offers={
        "norm": ("batch", "instance", "group"),
        "activation": ("relu", "leaky_relu", "prelu"),
        "upsample": ("transposed", "bilinear"),
    },
    depths=(5, 5),
)
