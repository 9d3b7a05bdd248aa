"""The networks of the inference benchmark, as float torch modules and as integer programs. Untrained: speed does not depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.program import IntegerProgram

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class ClassicUNet(nn.Module):
    """The U-Net of 2015 with padding and batch norm: widths doubling at each of ``levels``, transposed convolutions up."""

    def __init__(self, channels: int, levels: int, dimensions: int, outputs: int = 2) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels)]
        conv = _CONV[dimensions]

        def block(inputs: int, width: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for before in (inputs, width):
                layers += [conv(before, width, 3, padding=1), _NORM[dimensions](width), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList([block(1 if not level else widths[level - 1], width) for level, width in enumerate(widths)])
        self.up = nn.ModuleList([_UP[dimensions](widths[k + 1], widths[k], 2, stride=2) for k in range(levels - 1)])
        self.joined = nn.ModuleList([block(2 * widths[k], widths[k]) for k in range(levels - 1)])
        self.head = conv(widths[0], outputs, 1)
        self.pool = _POOL[dimensions](2)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for k in reversed(range(len(self.up))):
            x = self.joined[k](torch.cat([skips[k], self.up[k](x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


@dataclass(frozen=True)
class Workload:
    """A network and the image it is timed on."""

    name: str
    meaning: str
    shape: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        return len(self.shape) - 2

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        built = _BUILDERS[self.name]()
        # Batch norm as after training: statistics that are not all 0 and 1.
        for part in built.modules():
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
                part.running_mean = torch.randn(part.num_features) * 0.1
                part.running_var = torch.rand(part.num_features) + 0.5
        return built.eval()

    def image(self, seed: int = 1) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))

    def program(self, wbits: int = 4, abits: int = 6) -> IntegerProgram:
        small = torch.randn((1, 1, *[32] * self.dimensions), generator=torch.Generator().manual_seed(2))
        graph = simplify(capture(self.network(), small))
        network = QuantNetwork(graph, resolve_plan(graph, wbits, abits, 8), get_method("fixed_point"))
        network.calibrate([small])
        return lower(network.eval())


_BUILDERS = {
    "paper": lambda: UNet(UNetOptions(1, 1, 64, 4)),
    "unet64": lambda: ClassicUNet(64, 5, 2),
    "unet16": lambda: ClassicUNet(16, 5, 2),
    "unet3d": lambda: ClassicUNet(16, 5, 3),
    "quick": lambda: ClassicUNet(8, 3, 2),
}

WORKLOADS = {
    each.name: each
    for each in (
        Workload("paper", "the 2019 paper's U-Net, 4.84 M parameters, bilinear up-sampling, 200×200", (1, 1, 200, 200)),
        Workload("unet64", "U-Net 64..1024, transposed convolutions, 512×512", (1, 1, 512, 512)),
        Workload("unet16", "U-Net 16..256, transposed convolutions, 512×512", (1, 1, 512, 512)),
        Workload("unet3d", "3D U-Net 16..256, transposed convolutions, 96×96×96", (1, 1, 96, 96, 96)),
        Workload("quick", "U-Net 8..32, 64×64: shows that it runs, measures nothing", (1, 1, 64, 64)),
    )
}
