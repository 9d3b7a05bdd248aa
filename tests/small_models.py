"""Model files of networks with random weights, small enough to be made in every test, and scans for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation
from medquant.data.prepared_grid import GridRule
from medquant.deploy.engines import open_engine
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import save_model
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import (
    AvgPoolNode,
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntegerProgram,
    MaxPoolNode,
    Node,
    UpsampleNode,
)

RANGE = Normalisation("range", -200.0, 300.0)
INNER = TensorFormat(6, 0, 4)


class Builder:
    """Nodes with random weights, one after the other."""

    def __init__(self, channels: int = 1, axes: int = 2, seed: int = 0) -> None:
        self.random, self.axes = np.random.default_rng(seed), axes
        self.nodes: list[Node] = [ImageNode("image", (), TensorFormat(8, 128, 5), channels)]
        self.widths = {"image": channels}

    def convolution(self, name: str, source: str, width: int, written: TensorFormat | None = INNER, **geometry: Any) -> str:
        kernel = geometry.pop("kernel", 3)
        one = (1,) * self.axes
        usual: dict[str, Any] = {"stride": one, "padding": (kernel // 2,) * self.axes, "dilation": one}
        if geometry.get("transposed"):
            usual["output_padding"] = (0,) * self.axes
        shaped = ConvGeometry(**{**usual, **geometry})
        reads = self.widths[source]
        shape = (reads, width) if shaped.transposed else (width, reads // shaped.groups)
        weight = self.random.integers(-8, 8, (*shape, *[kernel] * self.axes))
        bias = self.random.integers(-100, 200, width)
        exponents = np.full(width, 5 + int(np.log2(reads) / 2), dtype=np.int64)
        self.nodes.append(ConvolutionNode(name, (source,), written, weight, bias, exponents, 4, shaped, relu=written is not None))
        self.widths[name] = width
        return name

    def pool(self, name: str, source: str, kernel: int = 2, stride: int = 2, padding: int = 0) -> str:
        sizes = ((each,) * self.axes for each in (kernel, stride, padding))
        self.nodes.append(MaxPoolNode(name, (source,), INNER, *sizes))
        self.widths[name] = self.widths[source]
        return name

    def average(self, name: str, source: str) -> str:
        self.nodes.append(AvgPoolNode(name, (source,), INNER, (2,) * self.axes, (2,) * self.axes))
        self.widths[name] = self.widths[source]
        return name

    def up(self, name: str, source: str, mode: Any = "linear") -> str:
        self.nodes.append(UpsampleNode(name, (source,), INNER, 2, mode, self.axes))
        self.widths[name] = self.widths[source]
        return name

    def join(self, name: str, *sources: str) -> str:
        self.nodes.append(ConcatNode(name, sources, INNER))
        self.widths[name] = sum(self.widths[source] for source in sources)
        return name

    def program(self) -> IntegerProgram:
        last = self.nodes[-1]
        assert isinstance(last, ConvolutionNode)
        return IntegerProgram(tuple(self.nodes), tuple(int(each) + 4 for each in last.weight_exponents))


def unet(
    outputs: int = 1, channels: int = 1, width: int = 4, levels: int = 2, axes: int = 2, seed: int = 0, up: Any = "linear"
) -> IntegerProgram:
    """A U-Net of one convolution a level on the way down and up."""
    build = Builder(channels, axes, seed)
    at, skips = "image", []
    for level in range(levels):
        at = build.convolution(f"enc{level}", at, width * 2**level)
        skips.append(at)
        at = build.pool(f"pool{level}", at)
    at = build.convolution("bottom", at, width * 2**levels)
    for level in reversed(range(levels)):
        at = build.join(f"join{level}", build.up(f"up{level}", at, up), skips[level])
        at = build.convolution(f"dec{level}", at, width * 2**level)
    build.convolution("head", at, outputs, None)
    return balanced(build.program())


def balanced(program: IntegerProgram) -> IntegerProgram:
    """The head's biases moved so that every class is found somewhere in an image of noise."""
    from scipy.ndimage import gaussian_filter

    axes = program.dimensions
    random = np.random.default_rng(7)
    noise = gaussian_filter(random.normal(size=(1, program.image.channels, *[48 if axes == 2 else 24] * axes)), (0, 0, *[2] * axes))
    image = np.clip(144 + 10 * noise / noise.std(), 128, 160).astype(np.uint8)
    found = open_engine("reference", program).run(image)
    head = program.nodes[-1]
    assert isinstance(head, ConvolutionNode)
    middles = np.median(found, axis=(0, *range(2, 2 + axes))).astype(np.int64)
    return replace(program, nodes=(*program.nodes[:-1], replace(head, bias=head.bias - middles)))


def model_file(
    path: Path,
    program: IntegerProgram | None = None,
    normalisation: Normalisation = RANGE,
    grid: GridRule | None = None,
    coarse: Path | None = None,
    **metadata: Any,
) -> Path:
    """A model file of a small U-Net of one output, unless another network is given."""
    program = program or unet()
    outputs, channels = len(program.output_exponents), program.image.channels
    names = {0: "background", **{number: f"organ {number}" for number in range(1, max(2, outputs))}}
    values: dict[str, Any] = {
        "preparation": Preparation(normalisation, grid or GridRule("axial")).to_json(),
        "size_multiple": 4,
        "channels": tuple(f"channel {number}" for number in range(channels)),
        "classes": names,
        "scored": tuple(names.values())[1:],
        "positive_class": 1 if outputs == 1 else None,
        "float_parameters": 0,
        "scan": {"modality": None, "spacing_mm": None, "values": []},
        "dataset": "made up",
        "data_sha256": "0" * 64,
    }
    save_model(path, program, ModelMetadata.model_validate({**values, **metadata}), coarse)
    return path


def ct_values(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.int16]:
    """Smooth blobs and noise in Hounsfield units."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=shape), 2.0)
    return np.asarray(np.clip(50 + 250 * smooth / smooth.std() + random.normal(0, 20, shape), -1024, 3071), dtype=np.int16)


def oblique(spacing: tuple[float, float, float] = (0.8, 0.9, 2.5), flips: tuple[int, int, int] = (-1, -1, 1)) -> NDArray[np.float64]:
    """An affine of right angles that is no plain diagonal: turned by 10 degrees about the body's long axis."""
    angle = np.deg2rad(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(np.multiply(spacing, flips))
    affine[:3, 3] = (70, 80, -300)
    return affine
