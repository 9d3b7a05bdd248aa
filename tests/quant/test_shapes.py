import itertools

import pytest
import torch
import torch.nn.functional as F

from medquant.errors import ConfigError
from medquant.quant.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    ConvGeometry,
    Convolution,
    Graph,
    Input,
    MaxPool,
    NormParameters,
    Operation,
    Relu,
    Upsample,
)
from medquant.quant.shapes import infer_shapes

GEOMETRIES = [
    (size, stride, padding, dilation)
    for size, stride, padding, dilation in itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2))
    if dilation * (size - 1) < 9
]


def shape_after(operation: Operation, image: tuple[int, ...]) -> tuple[int, ...]:
    graph = Graph((Input("input", (), image[1]), operation), operation.name)
    return infer_shapes(graph, image)[operation.name]


@pytest.mark.parametrize(("size", "stride", "padding", "dilation"), GEOMETRIES)
def test_convolutions_against_torch(size: int, stride: int, padding: int, dilation: int) -> None:
    x = torch.zeros(2, 4, 11, 9)
    geometry = ConvGeometry((stride, stride), (padding, padding), (dilation, dilation), groups=2)
    weight = torch.zeros(6, 2, size, size)
    if dilation * (size - 1) < 9 + 2 * padding:
        expected = F.conv2d(x, weight, None, stride, padding, dilation, 2).shape
        assert shape_after(Convolution("conv", ("input",), weight, None, geometry), (2, 4, 11, 9)) == tuple(expected)
    extra = min(stride, dilation) - 1 or (1 if max(stride, dilation) > 1 else 0)
    geometry = ConvGeometry((stride, stride), (padding, padding), (dilation, dilation), 2, True, (extra, extra))
    weight = torch.zeros(4, 3, size, size)
    expected = F.conv_transpose2d(x, weight, None, stride, padding, extra, 2, dilation).shape
    assert shape_after(Convolution("up", ("input",), weight, None, geometry), (2, 4, 11, 9)) == tuple(expected)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (2, 1, 1)])
def test_pooling_against_torch(size: int, stride: int, padding: int) -> None:
    x = torch.zeros(1, 3, 7, 8, 9)
    pool = MaxPool("pool", ("input",), (size,) * 3, (stride,) * 3, (padding,) * 3)
    assert shape_after(pool, tuple(x.shape)) == tuple(F.max_pool3d(x, size, stride, padding).shape)
    mean = AvgPool("mean", ("input",), (size,) * 3, (stride,) * 3)
    assert shape_after(mean, tuple(x.shape)) == tuple(F.avg_pool3d(x, size, stride).shape)


def test_the_other_operations_by_hand() -> None:
    graph = Graph(
        (
            Input("input", (), 2),
            Upsample("up", ("input",), 3, "nearest", 2),
            Relu("relu", ("up",)),
            BatchNorm("norm", ("relu",), torch.ones(2), torch.zeros(2), NormParameters(*[torch.ones(2)] * 4, 1e-5)),
            Concat("join", ("up", "norm", "relu")),
            Add("sum", ("join", "join")),
        ),
        "sum",
    )
    assert infer_shapes(graph, (1, 2, 4, 5)) == {
        "input": (1, 2, 4, 5), "up": (1, 2, 12, 15), "relu": (1, 2, 12, 15), "norm": (1, 2, 12, 15),
        "join": (1, 6, 12, 15), "sum": (1, 6, 12, 15),
    }  # fmt: skip


PLAIN = ConvGeometry((1, 1), (0, 0), (1, 1))
MISFITS = {
    "reads 3 channels, found 2": Convolution("x", ("input",), torch.zeros(4, 3, 3, 3), None, PLAIN),
    "expected as many axes": Convolution("x", ("input",), torch.zeros(4, 2, 3), None, PLAIN),
    "works on 3 spatial axes": MaxPool("x", ("input",), (2,) * 3, (2,) * 3, (0,) * 3),
    "leaves nothing": Convolution("x", ("input",), torch.zeros(4, 2, 9, 9), None, PLAIN),
    "which nothing before it writes": Relu("x", ("elsewhere",)),
    "no rule for the shape": Operation("x", ("input",)),
}


@pytest.mark.parametrize("message", MISFITS)
def test_layers_that_do_not_fit_are_named(message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_after(MISFITS[message], (1, 2, 8, 8))


@pytest.mark.parametrize("joining", [Concat("x", ("input", "small")), Add("x", ("input", "small"))])
def test_tensors_of_different_size_cannot_meet(joining: Operation) -> None:
    graph = Graph((Input("input", (), 2), MaxPool("small", ("input",), (2, 2), (2, 2), (0, 0)), joining), "x")
    with pytest.raises(ConfigError, match=r"\(1, 2, 8, 8\) and \(1, 2, 4, 4\)"):
        infer_shapes(graph, (1, 2, 8, 8))


@pytest.mark.parametrize("image", [(1, 1, 8, 8), (1, 2, 8), (2, 8), (1, 2, 8, 8, 8, 8)])
def test_images_of_another_kind_are_refused(image: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"reads images \(N, 2"):
        infer_shapes(Graph((Input("input", (), 2),), "input"), image)
