"""MONAI's DynUNet, the network of nnU-Net: strided convolutions, widths doubled up to a limit, outputs of coarser levels on request.

Source: Isensee et al., nnU-Net, arXiv 1809.10486, as ``monai.networks.nets.DynUNet``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.models.monai_options import monai_activation, monai_networks, monai_norm, widths
from medquant.models.options import Network, NetworkOptions

# nnU-Net's own limits of a level's channels.
_MOST_CHANNELS = {2: 512, 3: 320}


class SupervisedUNet(nn.Module):
    """The blocks of a DynUNet, run without its recursion.

    MONAI registers every block under two names and keeps the coarser outputs in a list between calls; neither can be stored
    as a checkpoint. The names of the blocks are MONAI's own.

    Shape: (N, in, *S) → (N, out, *S); in training mode with deep supervision (N, 1 + coarser outputs, out, *S), finest first.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.input_block: nn.Module = network.get_submodule("input_block")
        self.downsamples: nn.Module = network.get_submodule("downsamples")
        self.bottleneck: nn.Module = network.get_submodule("bottleneck")
        self.upsamples: nn.Module = network.get_submodule("upsamples")
        self.output_block: nn.Module = network.get_submodule("output_block")
        self.deep_supervision_heads: nn.Module = (
            network.get_submodule("deep_supervision_heads") if network.deep_supervision else nn.ModuleList()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every voxel, and while training those of coarser levels, continued to the full size."""
        skips = [self.input_block(x)]
        for block in self.downsamples.children():
            skips.append(block(skips[-1]))
        x = self.bottleneck(skips[-1])
        rising = []
        for block, skip in zip(self.upsamples.children(), reversed(skips), strict=True):
            x = block(x, skip)
            rising.append(x)
        logits: Tensor = self.output_block(x)
        heads = list(self.deep_supervision_heads.children())
        if not self.training or not heads:
            return logits
        # The last of the blocks going up is the output's own; the first head belongs to the one before it.
        coarser = [head(features) for head, features in zip(heads, rising[-2::-1], strict=False)]
        return torch.stack([logits, *(F.interpolate(each, logits.shape[2:]) for each in coarser)], dim=1)


def _build(options: NetworkOptions) -> nn.Module:
    strides = [1, *[2] * (options.depth - 1)]
    network: nn.Module = monai_networks().DynUNet(
        options.dimensions,
        options.in_channels,
        options.out_channels,
        kernel_size=[3] * options.depth,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(width, _MOST_CHANNELS[options.dimensions]) for width in widths(options)],
        dropout=options.dropout or None,
        norm_name=monai_norm(options),
        act_name=monai_activation(options),
        deep_supervision=options.deep_supervision,
        deep_supr_num=max(1, options.depth - 2),
        res_block=options.residual_units > 0,
    )
    return SupervisedUNet(network)


DYNUNET = Network(
    "MONAI's DynUNet, the network of nnU-Net; model.deep_supervision, model.residual_units",
    _build,
    offers={
        "norm": ("batch", "instance", "group"),
        "activation": ("relu", "leaky_relu", "prelu"),
        "residual_units": (0, 1),
        "deep_supervision": (False, True),
    },
    depths=(3, None),
)
