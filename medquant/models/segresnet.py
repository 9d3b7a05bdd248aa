"""MONAI's SegResNet: residual blocks with the norm before each convolution, strided convolutions down, linear up-sampling by 2.

Source: Myronenko, 3D MRI brain tumor segmentation using autoencoder regularization, arXiv 1810.11654 (without its autoencoder),
as ``monai.networks.nets.SegResNet``. A level has two blocks, the first one, the bottom four; MONAI's default at four levels.
"""

from __future__ import annotations

from torch import nn

from medquant.models.monai_options import monai_activation, monai_networks, monai_norm
from medquant.models.options import Network, NetworkOptions


def _build(options: NetworkOptions) -> nn.Module:
    network: nn.Module = monai_networks().SegResNet(
        options.dimensions,
        options.channels,
        options.in_channels,
        options.out_channels,
        dropout_prob=options.dropout or None,
        act=monai_activation(options),
        norm=monai_norm(options),
        blocks_down=(1, *[2] * (options.depth - 2), 4),
        blocks_up=(1,) * (options.depth - 1),
        upsample_mode="deconv" if options.upsample == "transposed" else "nontrainable",
    )
    return network


SEGRESNET = Network(
    "MONAI's SegResNet, residual blocks with the norm first",
    _build,
    offers={
        "norm": ("batch", "instance", "group"),
        "activation": ("relu", "leaky_relu", "prelu"),
        "upsample": ("bilinear", "transposed"),
    },
)
