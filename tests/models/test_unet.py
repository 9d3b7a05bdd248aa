"""The U-Net's size by a hand count, its shapes, its options and the registry it is found in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medquant.errors import ConfigError
from medquant.models import build_model
from medquant.models.unet import UNet, UNetOptions


def block_parameters(inputs: int, width: int) -> int:
    """Two 3×3 convolutions with bias and two batch norms with scale and shift."""
    return 9 * inputs * width + width + 9 * width * width + width + 2 * 2 * width


def test_papers_network_has_4837249_parameters() -> None:
    # enc1, enc2, enc3, bottom; dec3, dec2, dec1 behind the skips; the head.
    blocks = [(1, 64), (64, 128), (128, 256), (256, 256), (256 + 256, 256), (256 + 128, 128), (128 + 64, 64)]
    by_hand = sum(block_parameters(*block) for block in blocks) + (9 * 64 + 1)
    assert by_hand == 4_837_249
    module = UNet(UNetOptions(channels=64, block="conv_act_norm"))
    assert sum(parameter.numel() for parameter in module.parameters()) == by_hand


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "transposed"])
@pytest.mark.parametrize("block", ["conv_norm_act", "conv_act_norm"])
def test_output_has_the_shape_of_the_image(block: Any, upsample: Any, dimensions: Any) -> None:
    options = UNetOptions(2, 3, channels=2, depth=3, block=block, upsample=upsample, dropout=0.2, dimensions=dimensions)
    module = UNet(options)
    assert module.size_multiple == 4
    size = (8, 12, 4)[:dimensions]
    assert module(torch.zeros(2, 2, *size)).shape == (2, 3, *size)
    # A transposed convolution adds a weight of below² · 2^n and a bias at each of the two up-samplings (4 and 4 channels).
    plain = UNet(UNetOptions(2, 3, channels=2, depth=3, dimensions=dimensions))
    extra = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == (2 * (4 * 4 * 2**dimensions + 4) if upsample == "transposed" else 0)


def test_blocks_run_in_the_order_they_are_named_after() -> None:
    # Norm that maps everything to -1 before or after the rectifier: the last step decides which of the two is left.
    for block, expected in (("conv_norm_act", 0.0), ("conv_act_norm", -1.0)):
        module = UNet(UNetOptions(channels=2, block=block)).eval()  # type: ignore[arg-type]
        norms = [part for part in module.enc1.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.zeros_(norm.weight)
            nn.init.constant_(norm.bias, -1.0)
        assert module.enc1(torch.randn(1, 1, 8, 8)).unique().tolist() == [expected]


def test_skips_reach_the_decoder_of_their_level() -> None:
    # With the bottom cut off (zero up-sampled values), the output still follows the image through the first skip.
    torch.manual_seed(0)
    module = UNet(UNetOptions(channels=8, depth=2)).eval()
    for parameter in module.bottom.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(module(torch.zeros(1, 1, 8, 8)), module(torch.randn(1, 1, 8, 8)))


def test_dropout_is_there_in_training_only() -> None:
    module = UNet(UNetOptions(channels=4, depth=2, dropout=0.5))
    assert sum(isinstance(part, nn.Dropout2d) for part in module.modules()) == 3
    x = torch.randn(1, 1, 8, 8)
    module.eval()
    assert torch.equal(module(x), module(x))
    assert not any(isinstance(part, nn.Dropout2d) for part in UNet(UNetOptions(channels=4, depth=2)).modules())


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        UNetOptions(out_channels=0, depth=1, block="norm_first", upsample="cubic", dropout=1.0, dimensions=4)  # type: ignore[arg-type]
    assert str(caught.value).splitlines() == [
        "model.block must be 'conv_norm_act' or 'conv_act_norm', found 'norm_first'",
        "model.upsample must be 'bilinear' or 'nearest' or 'transposed', found 'cubic'",
        "model.dimensions must be 2 or 3, found 4",
        "model.out_channels must be at least 1, found 0",
        "model.depth must be at least 2, found 1",
        "model.dropout must be at least 0 and below 1, found 1.0",
    ]


def test_unknown_network_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown network 'unnet' \(did you mean 'unet' .*\?\); known: .*unet, unetr"):
        build_model("unnet", in_channels=1, out_channels=1)
