"""Folded graphs against the float networks they come from, run by torch in float64, with running statistics far from 0 and 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import scale_output_channels, simplify
from medquant.quant.graph import Add, AvgPool, BatchNorm, Concat, ConvGeometry, Convolution, Graph, Input, MaxPool, Relu, Upsample

CONV = {(2, False): F.conv2d, (2, True): F.conv_transpose2d, (3, False): F.conv3d, (3, True): F.conv_transpose3d}


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of unit gain, and norms whose scales have both signs and whose statistics are far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            count = part.num_features
            part.weight.data = (torch.rand(count, generator=generator) + 0.5) * torch.randn(count, generator=generator).sign()
            part.bias.data = torch.randn(count, generator=generator)
            part.running_mean = torch.randn(count, generator=generator)
            part.running_var = torch.rand(count, generator=generator) * 3 + 0.1


def run(graph: Graph, image: Tensor) -> Tensor:
    """Each operation as its docstring defines it, in the image's own type."""
    values: dict[str, Tensor] = {}
    for step in graph:
        read = [values[name] for name in step.inputs]
        if isinstance(step, Input):
            value = image
        elif isinstance(step, Convolution):
            geometry = step.geometry
            bias = None if step.bias is None else step.bias.to(image.dtype)
            options: dict[str, Any] = {"stride": geometry.stride, "padding": geometry.padding, "groups": geometry.groups}
            if geometry.transposed:
                options["output_padding"] = geometry.output_padding
            function = CONV[geometry.spatial_axes, geometry.transposed]
            value = function(read[0], step.weight.to(image.dtype), bias, dilation=geometry.dilation, **options)
            value = value.relu() if step.relu else value
        elif isinstance(step, Add):
            value = (read[0] + read[1]).relu() if step.relu else read[0] + read[1]
        elif isinstance(step, Relu):
            value = read[0].relu()
        elif isinstance(step, Concat):
            value = torch.cat(read, 1)
        elif isinstance(step, MaxPool):
            value = (F.max_pool2d if image.dim() == 4 else F.max_pool3d)(read[0], step.kernel, step.stride, step.padding)
        elif isinstance(step, AvgPool):
            value = (F.avg_pool2d if image.dim() == 4 else F.avg_pool3d)(read[0], step.kernel, step.stride)
        else:
            assert isinstance(step, Upsample)
            mode = {"nearest": "nearest", "linear": "bilinear" if image.dim() == 4 else "trilinear"}[step.mode]
            value = F.interpolate(read[0], scale_factor=step.factor, mode=mode)
        values[step.name] = value
    return values[graph.output]


class Assorted(nn.Module):
    """Grouped and transposed convolutions with norm, a residual sum, two norms in a row, norms that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, groups=4)
        self.norm_down = nn.BatchNorm2d(8)
        self.norm_again = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False)
        self.norm_up = nn.BatchNorm2d(12)
        self.side = nn.Conv2d(8, 12, 1)
        self.norm_side = nn.BatchNorm2d(12)
        self.norm_sum = nn.BatchNorm2d(12)
        self.norm_image = nn.BatchNorm2d(2)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.norm(self.stem(self.norm_image(x)))
        below = F.relu(F.relu(self.norm_again(self.norm_down(self.down(F.relu(stem))))))
        joined = F.relu(self.norm_up(self.up(below)) + self.norm_side(self.side(stem)))
        logits: Tensor = self.head(F.relu(self.norm_sum(joined)))
        return logits


def folded(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    graph = simplify(capture(module, torch.zeros(shape, dtype=next(module.parameters()).dtype)))
    assert not any(isinstance(operation, BatchNorm) for operation in graph)
    return graph


def test_assorted_network_in_float64() -> None:
    torch.manual_seed(0)
    module = Assorted().double().eval()
    randomise(module, 1)
    module.double()
    graph = folded(module, (2, 2, 12, 12))
    # Two norms stay: one on the image, one behind the rectified sum. All rectifiers are joined but the one that reads
    # a tensor which is also read elsewhere (the stem), and none is lost.
    depthwise = [step.name for step in graph if isinstance(step, Convolution) and step.name.startswith("norm")]
    assert depthwise == ["norm_image", "norm_sum"]
    assert [step.name for step in graph if isinstance(step, Relu)] == ["relu"]
    assert [step.name for step in graph if isinstance(step, Convolution | Add) and step.relu] == ["down", "add", "norm_sum"]
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    # The norms that stay are stored in float32, which bounds the agreement.
    torch.testing.assert_close(run(graph, x), module(x), rtol=1e-5, atol=1e-5)


class FoldsAway(nn.Module):
    """Every norm right behind its convolution, so that float64 keeps all digits."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv, transposed, norm = {
            2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
            3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
        }[axes]
        self.net = nn.Sequential(
            conv(1, 6, 3, padding=1), norm(6), nn.ReLU(), conv(6, 6, 3, stride=2, padding=1, groups=3, bias=False), norm(6), nn.ReLU(),
            transposed(6, 9, 2, stride=2, groups=3), norm(9), norm(9), nn.ReLU(), transposed(9, 4, 3, padding=1), norm(4), conv(4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


@pytest.mark.parametrize("axes", [2, 3])
def test_norms_behind_convolutions_disappear_to_twelve_digits(axes: int) -> None:
    torch.manual_seed(axes)
    module = FoldsAway(axes).eval()
    randomise(module, axes)
    module.double()
    graph = folded(module, (1, 1, *[8] * axes))
    assert [type(step) for step in graph] == [Input] + [Convolution] * 5
    x = torch.randn(2, 1, *[8] * axes, dtype=torch.float64)
    torch.testing.assert_close(run(graph, x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "transposed"])
def test_unet_in_the_papers_order_keeps_its_norms_as_depthwise_layers(upsample: Any, dimensions: Any) -> None:
    torch.manual_seed(0)
    module = UNet(UNetOptions(channels=4, depth=3, block="conv_act_norm", upsample=upsample, dimensions=dimensions)).eval()
    randomise(module, 5)
    graph = folded(module, (1, 1, *[8] * dimensions))
    norms = [step for step in graph if isinstance(step, Convolution) and ".norm" in step.name]
    assert len(norms) == 10  # two in each of five blocks
    for step in norms:
        channels = step.out_channels
        ones, zeros = (1,) * dimensions, (0,) * dimensions
        assert step.geometry == ConvGeometry(stride=ones, padding=zeros, dilation=ones, groups=channels)
        assert tuple(step.weight.shape) == (channels, 1, *ones)
        assert not step.relu
    assert not any(isinstance(step, Relu) for step in graph)
    x = torch.randn(1, 1, *[8] * dimensions)
    torch.testing.assert_close(run(graph, x), module(x), rtol=1e-5, atol=1e-5)


def test_norm_of_a_tensor_read_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z: Tensor = self.b(F.relu(self.norm(y)) + F.relu(y))
            return z

    module = Twice().eval()
    randomise(module, 7)
    graph = folded(module, (1, 1, 4, 4))
    a, norm = graph["a"], graph["norm"]
    assert isinstance(a, Convolution)
    assert isinstance(norm, Convolution)
    assert torch.equal(a.weight, module.a.weight)
    assert norm.relu
    x = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(run(graph, x), module(x), rtol=1e-5, atol=1e-5)


def test_scaling_of_output_channels_by_hand() -> None:
    plain = ConvGeometry((1, 1), (0, 0), (1, 1))
    weight = torch.ones(2, 1, 1, 1)
    assert scale_output_channels(weight, torch.tensor([2.0, 3.0]), plain).flatten().tolist() == [2.0, 3.0]
    # Transposed, two groups of two input and one output channel: inputs 0 and 1 meet output 0, inputs 2 and 3 output 1.
    grouped = ConvGeometry((1, 1), (0, 0), (1, 1), groups=2, transposed=True, output_padding=(0, 0))
    weight = torch.ones(4, 1, 1, 1)
    assert scale_output_channels(weight, torch.tensor([2.0, 3.0]), grouped).flatten().tolist() == [2.0, 2.0, 3.0, 3.0]
