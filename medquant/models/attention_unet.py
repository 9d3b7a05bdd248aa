"""MONAI's AttentionUnet: a U-Net whose skip connections are multiplied by a gate between 0 and 1.

Source: Oktay et al., Attention U-Net: Learning Where to Look for the Pancreas, arXiv 1804.03999, as
``monai.networks.nets.AttentionUnet``. MONAI builds the convolutions that join skip and decoder with instance norm and PReLU and
offers no other; here they have batch norm and ReLU like all others, unless ``model.norm`` and ``model.activation`` ask for MONAI's.
The sigmoid of the gates and the multiplication by it stay float.
"""

from __future__ import annotations

from torch import nn

from medquant.models.monai_options import monai_networks, widths
from medquant.models.options import Network, NetworkOptions

_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _build(options: NetworkOptions) -> nn.Module:
    network: nn.Module = monai_networks().AttentionUnet(
        options.dimensions,
        options.in_channels,
        options.out_channels,
        channels=widths(options),
        strides=(2,) * (options.depth - 1),
        dropout=options.dropout,
    )
    for block in list(network.modules()):
        for name, part in list(block.named_children()):
            if isinstance(part, nn.InstanceNorm2d | nn.InstanceNorm3d) and options.norm == "batch":
                setattr(block, name, _BATCH_NORM[options.dimensions](part.num_features))
            if isinstance(part, nn.PReLU) and options.activation == "relu":
                setattr(block, name, nn.ReLU())
    return network


ATTENTION_UNET = Network(
    "MONAI's AttentionUnet, gated skip connections",
    _build,
    offers={"norm": ("batch", "instance"), "activation": ("relu", "prelu")},
    floats="the gates of the skip connections (sigmoid, multiplication)",
)
