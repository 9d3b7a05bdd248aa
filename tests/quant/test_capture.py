"""Networks in several styles, read into graphs: what each operation becomes, and which networks are refused and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.errors import ConfigError
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    ConvGeometry,
    Convolution,
    FloatOperation,
    Graph,
    Input,
    MaxPool,
    Relu,
    Upsample,
)
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.shapes import infer_shapes


class Net(nn.Module):
    """A network whose forward pass is a function of the module and the image."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **modules: Any) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def read(run: Callable[[Any, Tensor], Any], shape: tuple[int, ...] = (1, 2, 8, 8), **modules: Any) -> Graph:
    return capture(Net(run, **modules), torch.zeros(shape))


def kinds(graph: Graph) -> list[tuple[type, str, tuple[str, ...]]]:
    return [(type(operation), operation.name, operation.inputs) for operation in graph]


CONVOLUTIONS = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


@pytest.mark.parametrize("axes", [2, 3])
def test_convolution_geometry(axes: int) -> None:
    conv, transposed = CONVOLUTIONS[axes]
    strides, dilations = (2, 1, 1)[:axes], (1, 2, 1)[:axes]
    first = conv(4, 6, 3, stride=strides, padding=(1, 2, 0)[:axes], dilation=dilations, groups=2, bias=False)
    second = transposed(6, 8, 3, stride=2, padding=1, output_padding=(1, 0, 1)[:axes], groups=2)
    graph = read(lambda net, x: net.b(net.a(x)), (1, 4, *[8] * axes), a=first, b=second)
    assert kinds(graph) == [(Input, "input", ()), (Convolution, "a", ("input",)), (Convolution, "b", ("a",))]
    a, b = graph["a"], graph["b"]
    assert isinstance(a, Convolution)
    assert isinstance(b, Convolution)
    assert a.geometry == ConvGeometry(strides, (1, 2, 0)[:axes], dilations, groups=2)
    expected = ConvGeometry((2,) * axes, (1,) * axes, (1,) * axes, 2, transposed=True, output_padding=(1, 0, 1)[:axes])
    assert b.geometry == expected
    assert (a.out_channels, b.out_channels) == (6, 8)
    assert a.bias is None
    assert torch.equal(a.weight, first.weight)
    assert torch.equal(b.weight, second.weight)
    assert b.bias is not None
    assert torch.equal(b.bias, second.bias)
    assert graph.output == "b"
    assert a.weight.data_ptr() != first.weight.data_ptr()  # a copy: the network is left as it is


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("kernel", "dilation", "same"), [(3, 1, 1), (3, 2, 2), (5, 1, 2), (1, 1, 0)])
def test_padding_in_words(axes: int, kernel: int, dilation: int, same: int) -> None:
    conv = CONVOLUTIONS[axes][0]
    modules = {"a": conv(2, 2, kernel, padding="same", dilation=dilation), "b": conv(2, 2, kernel, padding="valid")}
    graph = read(lambda net, x: net.b(net.a(x)), (1, 2, *[8] * axes), **modules)
    paddings = [operation.geometry.padding for operation in graph if isinstance(operation, Convolution)]
    assert paddings == [(same,) * axes, (0,) * axes]


def test_batch_norm_is_scale_and_shift() -> None:
    norm = nn.BatchNorm2d(2, eps=0.25)
    plain = nn.BatchNorm2d(2, affine=False, eps=0.5)
    for module, mean, variance in ((norm, [1.0, -2.0], [3.75, 0.0]), (plain, [4.0, 0.0], [0.5, 3.5])):
        module.running_mean = torch.tensor(mean)
        module.running_var = torch.tensor(variance)
    norm.weight.data = torch.tensor([3.0, -1.0])
    norm.bias.data = torch.tensor([0.5, 7.0])
    graph = read(lambda net, x: net.plain(net.norm(x)), norm=norm, plain=plain)
    first, second = graph["norm"], graph["plain"]
    assert isinstance(first, BatchNorm)
    assert isinstance(second, BatchNorm)
    # By hand: sqrt(3.75 + 0.25) = 2 and sqrt(0.25) = 1/2; then sqrt(0.5 + 0.5) = 1 and sqrt(3.5 + 0.5) = 2.
    assert first.scale.tolist() == [1.5, -2.0]
    assert first.shift.tolist() == [0.5 - 1.5, 7.0 - 4.0]
    assert second.scale.tolist() == [1.0, 0.5]
    assert second.shift.tolist() == [-4.0, 0.0]


@pytest.mark.parametrize(("axes", "conv"), [(2, nn.Conv2d), (3, nn.Conv3d)])
def test_module_and_functional_forms_give_the_same_graph(axes: int, conv: type[nn.Conv2d]) -> None:
    shape = (1, 2, *[8] * axes)
    pool = {2: (nn.MaxPool2d, F.max_pool2d, nn.AvgPool2d, F.avg_pool2d), 3: (nn.MaxPool3d, F.max_pool3d, nn.AvgPool3d, F.avg_pool3d)}[axes]
    mode = {2: "bilinear", 3: "trilinear"}[axes]
    a, b = conv(2, 4, 3, padding=1), conv(8, 1, 1)
    up = nn.Upsample(scale_factor=2, mode=mode, align_corners=False)
    near = nn.Upsample(scale_factor=2)
    modules = read(
        lambda net, x: net.b(torch.cat([net.up(net.maximum(net.act(net.a(x)))), net.near(net.mean(net.act(net.a2(x))))], dim=1)),
        shape, a=a, a2=conv(2, 4, 3, padding=1), b=b, act=nn.ReLU(inplace=True), maximum=pool[0](2), mean=pool[2](2), up=up, near=near,
    )  # fmt: skip
    functions = read(
        lambda net, x: net.b(
            torch.concat(
                [
                    F.interpolate(pool[1](torch.relu(net.a(x)), 2), size=x.shape[2:], mode=mode),
                    F.interpolate(pool[3](net.a2(x).relu_(), 2, stride=2), scale_factor=2.0),
                ],
                -1 - axes,
            )
        ),
        shape, a=a, a2=conv(2, 4, 3, padding=1), b=b,
    )  # fmt: skip
    assert [type(operation) for operation in modules] == [type(operation) for operation in functions]
    expected = [Input, Convolution, Relu, MaxPool, Upsample, Convolution, Relu, AvgPool, Upsample, Concat, Convolution]
    assert [type(operation) for operation in modules] == expected
    for graph in (modules, functions):
        assert [(o.factor, o.mode, o.spatial_axes) for o in graph if isinstance(o, Upsample)] == [(2, "linear", axes), (2, "nearest", axes)]
        assert [(o.kernel, o.stride) for o in graph if isinstance(o, MaxPool | AvgPool)] == [((2,) * axes, (2,) * axes)] * 2
    # Functional forms take torch's name of the operation; every name is there and is unique.
    names = [operation.name for operation in functions]
    assert all(names)
    assert len(set(names)) == len(names)
    assert names[2:5] == ["relu", f"max_pool{axes}d", f"upsample_{mode}{axes}d"]


def test_pooling_with_stride_and_padding() -> None:
    graph = read(lambda net, x: net.b(net.a(x)), a=nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0)), b=nn.AvgPool2d((2, 4), stride=1))
    a, b = graph.operations[1:]
    assert a == MaxPool("a", ("input",), (3, 2), (2, 1), (1, 0))
    assert b == AvgPool("b", ("a",), (2, 4), (1, 1))


def test_additions() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        y = y + net.b(x)
        y += x
        return torch.add(y, y)

    graph = read(run, a=nn.Conv2d(2, 2, 1), b=nn.Conv2d(2, 2, 1))
    adds = [(operation.name, operation.inputs) for operation in graph if isinstance(operation, Add)]
    assert adds == [("add", ("a", "b")), ("add_2", ("add", "input")), ("add_3", ("add_2", "add_2"))]


def test_what_changes_nothing_at_inference_is_passed_through() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.drop(net.same(net.channels(net.a(x)))).contiguous()
        return F.dropout(y, 0.3, training=net.training)

    graph = read(run, a=nn.Conv2d(2, 2, 1), drop=nn.Dropout(0.5), channels=nn.Dropout2d(0.2), same=nn.Identity())
    assert kinds(graph) == [(Input, "input", ()), (Convolution, "a", ("input",))]
    assert graph.output == "a"


def test_network_is_left_as_it_was() -> None:
    net = Net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(2, 3, 3), b=nn.BatchNorm2d(3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    capture(net, torch.randn(1, 2, 8, 8))
    assert net.training
    assert net.b.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_results_nobody_reads_are_left_out() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.a(x)
        net.after(y)
        return y

    graph = read(run, a=nn.Conv2d(2, 2, 1), after=nn.Conv2d(2, 2, 1))
    assert [operation.name for operation in graph] == ["input", "a"]


def _branches(net: Any, x: Tensor) -> Tensor:
    return torch.cat([net.a(x), net.a(x)], 1)


def _tokens(net: Any, x: Tensor) -> Tensor:
    """Every voxel of a channel against every other, in the shapes of a transformer."""
    tokens = net.a(x).flatten(2).transpose(1, 2)
    mixed = torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1) @ tokens
    heads: Tensor = net.linear(mixed.transpose(1, 2)).view(x.shape[0], 2, 8, 8)
    return heads


def _changed_in_place(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.a(x)
    same = F.dropout(y, 0.5, training=False)
    y.mul_(2.0)
    return same + x  # the same memory: twice as large


def test_a_join_is_float_only_where_real_values_reach_it() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        gated = torch.sigmoid(net.a(x))
        quantized = F.interpolate(F.max_pool2d(gated, 2), scale_factor=2, mode="bilinear")
        copied = F.interpolate(F.max_pool2d(gated, 2), scale_factor=2)
        return torch.cat([net.c(torch.cat([quantized, x], 1)), net.d(torch.cat([copied, x], 1))], 1)

    modules = {"c": nn.Conv2d(4, 2, 1), "d": nn.Conv2d(4, 2, 1)}
    graph = read(run, a=nn.Conv2d(2, 2, 1), **modules)
    joins = {operation.name: operation.inputs for operation in graph if isinstance(operation, Concat)}
    # Linear up-sampling writes integers of its own; pooling and copying pass real values on.
    assert joins == {"concat": ("upsample_bilinear2d", "input"), "concat_2": ("c", "d")}
    floats = [(operation.kind, operation.inputs) for operation in graph if isinstance(operation, FloatOperation)]
    assert floats == [("sigmoid", ("a",)), ("join", ("upsample_nearest2d", "input"))]


def _masked(net: Any, x: Tensor) -> Tensor:
    """A mask that is filled in by parts, as those of shifted windows are."""
    mask = torch.zeros(1, 1, *x.shape[2:])
    for number, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
        mask[:, :, rows, :] = number
    product: Tensor = net.a(x) * mask
    return product


def _changed_view(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.a(x)
    part = y.view(2, 64)
    y.mul_(2.0)
    return y + part.view(1, 2, 8, 8)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, Any], str]] = {
    "shared weights": (_branches, {}, "shares its weight with a"),
    "two outputs": (lambda net, x: (net.a(x), x), {}, "returns 2 tensors; expected one"),
    "uneven same": (lambda net, x: net.even(x), {"even": nn.Conv2d(2, 2, 2, padding="same")}, "even: 'same' padding of an even kernel"),
    "computed weight": (lambda net, x: F.conv2d(x, net.a.weight * 2), {}, "no integer form|computed, not a parameter"),
    "dropout that stays on": (lambda net, x: F.dropout(net.a(x)), {}, "dropout stays on in evaluation mode"),
    "batch statistics": (lambda net, x: net.norm(x), {"norm": nn.BatchNorm2d(2, track_running_stats=False)}, "norm: batch norm without"),
    "norm in training": (lambda net, x: F.batch_norm(net.a(x), None, None, training=True), {}, "batch norm without running statistics"),
    "fork on values": (lambda net, x: net.a(x) if x.sum() > 0 else x, {}, "cannot be read as a graph"),
    "wrong channels": (lambda net, x: net.b(x), {"b": nn.Conv2d(5, 1, 1)}, "cannot be read as a graph"),
    "draw of numbers": (lambda net, x: net.a(x) + torch.rand_like(x), {}, "draws random numbers"),
    "noise of its own": (lambda net, x: net.a(x) + torch.rand(1, 2, 8, 8), {}, "draws random numbers"),
    "view changed in place": (_changed_view, {}, "changes a tensor of which a view is read later|cannot be copied"),
}  # fmt: skip


FLOATS: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, Any], str, str]] = {
    "sigmoid": (lambda net, x: net.gate(net.a(x)), {"gate": nn.Sigmoid()}, "sigmoid", "no integer form"),
    "functional sigmoid": (lambda net, x: torch.sigmoid(net.a(x)), {}, "sigmoid", "no integer form"),
    "instance norm": (lambda net, x: net.norm(net.a(x)), {"norm": nn.InstanceNorm2d(2)}, "instance norm", "batch norm .* is exact"),
    "group norm": (lambda net, x: net.norm(net.a(x)), {"norm": nn.GroupNorm(1, 2)}, "group norm", "statistics of each image"),
    "leaky relu": (lambda net, x: net.act(net.a(x)), {"act": nn.LeakyReLU()}, "leaky relu", "slope 0.01 is no power of two"),
    "linear by 3": (
        lambda net, x: F.interpolate(net.a(x), scale_factor=3, mode="bilinear"),
        {},
        "upsample bilinear2d",
        "up-sampling 8×8 to 24×24",
    ),
    "aligned corners": (
        lambda net, x: F.interpolate(net.a(x), scale_factor=2, mode="bilinear", align_corners=True),
        {},
        "upsample bilinear2d",
        "with aligned corners",
    ),
    "uneven nearest": (lambda net, x: F.interpolate(net.a(x), size=(16, 24)), {}, "upsample nearest2d", "up-sampling 8×8 to 16×24"),
    "broken nearest": (lambda net, x: F.interpolate(net.a(x), size=(12, 12)), {}, "upsample nearest2d", "up-sampling 8×8 to 12×12"),
    "ceil mode": (lambda net, x: F.max_pool2d(net.a(x), 3, 2, ceil_mode=True), {}, "max pool2d", "ceil-mode max pooling"),
    "dilated pooling": (lambda net, x: net.pool(net.a(x)), {"pool": nn.MaxPool2d(2, dilation=2)}, "max pool2d", "dilated"),
    "padded mean": (lambda net, x: net.pool(net.a(x)), {"pool": nn.AvgPool2d(2, padding=1)}, "avg pool2d", "padded"),
    "mean of nine": (lambda net, x: net.pool(net.a(x)), {"pool": nn.AvgPool2d(3)}, "avg pool2d", "over 9 voxels"),
    "own divisor": (lambda net, x: F.avg_pool2d(net.a(x), 2, divisor_override=3), {}, "avg pool2d", "divisor of its own"),
    "scaled addition": (lambda net, x: torch.add(net.a(x), x, alpha=2), {}, "add", "scaled addition"),
    "addition of a number": (lambda net, x: net.a(x) + 1.0, {}, "add", "a constant or a parameter"),
    "addition of an attribute": (lambda net, x: net.a(x) + net.k, {"k": torch.ones(1)}, "add", "a constant or a parameter"),
    "addition of a parameter": (lambda net, x: net.a(x) + net.k, {"k": nn.Parameter(torch.ones(1))}, "add", "a constant or a parameter"),
    "subtraction": (lambda net, x: net.a(x) - x, {}, "subtract", "difference"),
    "join of rows": (lambda net, x: torch.cat([net.a(x), x], dim=2), {}, "join", "axis 2"),
    "padding by reflection": (
        lambda net, x: net.pad(x),
        {"pad": nn.Conv2d(2, 2, 3, 1, 1, padding_mode="reflect")},
        "pad",
        "pads by another value than zero",
    ),
    "leaky relu of a quarter": (lambda net, x: F.leaky_relu(net.a(x), 0.25), {}, "leaky relu", "0.25 is a power of two"),
    "parts": (lambda net, x: net.a(x).chunk(2, 1)[1] * 3.0, {}, "multiply", "step of its own"),
    "tokens": (_tokens, {"linear": nn.Linear(64, 64)}, "transpose", "moves real values"),
    "changed in place": (_changed_in_place, {}, "multiply", "step of its own"),
    "mask of constants": (_masked, {}, "multiply", "step of its own"),
}


@pytest.mark.parametrize("case", FLOATS)
def test_what_has_no_integer_form_stays_float_and_says_why(case: str) -> None:
    run, modules, kind, note = FLOATS[case]
    net = Net(run, a=nn.Conv2d(2, 2, 1), **modules).eval()
    graph = simplify(capture(net, torch.zeros(2, 2, 8, 8)))
    found = {operation.kind: operation.reason for operation in graph if isinstance(operation, FloatOperation)}
    assert re.search(note, found[kind])
    # With every layer in float the copy computes what the network does, for another number of images as well.
    images = torch.randn(3, 2, 8, 8)
    copy = QuantNetwork(graph, resolve_plan(graph, 32, 32, 32), get_method("fixed_point")).eval()
    with torch.no_grad():
        expected = net(images)
        torch.testing.assert_close(copy(images), expected, rtol=1e-6, atol=1e-6)
    assert infer_shapes(graph, images.shape)[graph.output] == expected.shape
    plan = resolve_plan(graph, 4, 6, 8)
    assert not plan.is_integer
    assert all(layer.note for layer in plan.layers if layer.activation_bits == 32)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_place_and_the_reason(case: str) -> None:
    run, modules, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        read(run, a=nn.Conv2d(2, 2, 1), **modules)
    assert not str(caught.value).startswith(":")  # a functional form at the top belongs to "the network"
