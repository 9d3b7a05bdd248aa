"""The exactness contract: simulation, reference and every exact engine hold the same integers in every tensor of every network here.

Nothing in this file says what the right values are (tests/deploy/test_reference_engine.py does, node by node); it says that all agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.config.bits import parse_rules
from medquant.deploy.decide import decide, quantize_image
from medquant.deploy.engines import ENGINES, auto_order, check_engine, open_engine, openvino_engine
from medquant.deploy.engines.base import Engine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.engines.torch_float import FloatTorchProgram
from medquant.deploy.self_test import small_program
from medquant.errors import EngineMismatchError, InputError, UsageError
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.formats import FLOAT32_EXACT_LIMIT, TensorFormat
from medquant.quant.graph import ConvGeometry, Graph
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.program import AddNode, ConvolutionNode, ImageNode, IntegerProgram, accumulator_bound

EXACT = [name for name, engine in ENGINES.items() if engine.info.exact and engine.unavailable() is None]
PLANS = {"W4A6": (4, 6, 8), "W8A8": (8, 8, 8), "W1A1": (1, 1, 1), "W3A5": (3, 5, 6), "mixed": (4, 6, 8)}
# Values that a U-Net compares at least with each plan, in three implementations: over 10**7 in all.
LEAST = {2: 800_000, 3: 280_000}


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights, biases and statistics of every size and sign."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            part.weight.data = torch.randn(part.num_features, generator=generator)
            part.bias.data = torch.randn(part.num_features, generator=generator)
            part.running_mean = torch.randn(part.num_features, generator=generator)
            part.running_var = torch.rand(part.num_features, generator=generator) * 2 + 0.05
        elif hasattr(part, "weight") and isinstance(part.weight, Tensor):
            part.weight.data *= torch.exp(torch.randn(part.weight.shape[:2], generator=generator)).reshape(
                *part.weight.shape[:2], *[1] * (part.weight.dim() - 2)
            )
            if part.bias is not None:
                part.bias.data = torch.randn(part.bias.shape, generator=generator)
    return module.eval()


def network_of(graph: Graph, plan: str, image: Tensor, seed: int) -> QuantNetwork:
    """Calibrated, then every learned step moved by up to two powers of two, so that values saturate at both ends or vanish."""
    wbits, abits, edge_bits = PLANS[plan]
    generator = torch.Generator().manual_seed(seed)
    rules = []
    if plan == "mixed":
        for layer in resolve_plan(graph, 4, 6, 8).layers:
            weight, activation = torch.randint(1, 9, (2,), generator=generator).tolist()
            rules.append(f"{layer.name}={'' if layer.weight_bits is None else weight}/{activation}")
    network = QuantNetwork(graph, resolve_plan(graph, wbits, abits, edge_bits, parse_rules(rules)), get_method("fixed_point"))
    network.calibrate([image])
    with torch.no_grad():
        for parameter in network.step_parameters():
            parameter += torch.randint(-2, 3, parameter.shape, generator=generator)
    return network.eval()


def images(shape: tuple[int, ...], seed: int) -> Tensor:
    """Noise, all zero, and beyond the highest and the lowest level everywhere."""
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    return torch.cat([noise * 1.5, torch.zeros_like(noise), torch.full_like(noise, 1e4), torch.full_like(noise, -1e4)])


@contextmanager
def recording(owner: Any) -> Iterator[dict[str, Tensor]]:
    """Keep what each step of a network or an engine writes."""
    kept: dict[str, Tensor] = {}
    run = owner._run

    def keep(step: Any, *rest: Any) -> Tensor:
        kept[step.name] = value = run(step, *rest)
        return value

    owner._run = keep
    try:
        yield kept
    finally:
        del owner._run


def integers_of_simulation(network: QuantNetwork, program: IntegerProgram, x: Tensor) -> dict[str, np.ndarray]:
    """What the simulation writes, each tensor on its own grid; exact in float64."""
    with recording(network) as kept, torch.no_grad():
        network(x)
    integers = {}
    for node in program:
        exponents = torch.tensor(program.output_exponents if node.output is None else [node.output.exponent], dtype=torch.float64)
        integers[node.name] = (kept[node.name].double() * 2.0 ** exponents.reshape(-1, *[1] * (x.dim() - 2))).numpy()
    return integers


def float32_is_too_narrow(program: IntegerProgram) -> bool:
    """Whether an engine that rounds in float32 has to refuse: a sum may pass 2**24."""
    sums = [accumulator_bound(node, program.format_of(node.inputs[0])) for node in program.convolutions]
    for node in program:
        if isinstance(node, AddNode):
            first, second = (program.format_of(name).exponent for name in node.inputs)
            sums.append(255 * (2 ** abs(first - second) + 1))
    return max(sums) >= FLOAT32_EXACT_LIMIT


def assert_all_agree(network: QuantNetwork, x: Tensor, label: str) -> dict[str, np.ndarray]:
    """Compare every tensor of the simulation and of all exact engines with the reference; return the reference's."""
    program = lower(network)
    image = quantize_image(x.numpy(), program.format_of("input"))
    written: dict[str, dict[str, np.ndarray]] = {"simulation": integers_of_simulation(network, program, x)}
    outputs = {}
    for name, walk in (("reference", ReferenceEngine), ("torch in float", FloatTorchProgram)):
        engine = walk(program)
        with recording(engine) as kept:
            outputs[name] = engine.run(image)
        written[name] = {node: np.asarray(value, dtype=np.float64) for node, value in kept.items()}
    for name in EXACT:
        try:
            outputs[name] = ENGINES[name](program).run(image)
        except EngineMismatchError:
            if not float32_is_too_narrow(program):
                raise
    expected = written.pop("reference")
    for name, tensors in written.items():
        assert tensors.keys() == expected.keys()
        different = {node: int((tensors[node] != expected[node]).sum()) for node in expected}
        assert not any(different.values()), f"{label}: {name} differs from the reference in {different}"
    last = program.nodes[-1]
    zero_point = 0 if last.output is None else last.output.zero_point
    for name, output in outputs.items():
        assert output.dtype == np.int32
        assert np.array_equal(output, expected[last.name] + zero_point), f"{label}: what {name} returns is not what it wrote"
    return expected


ARCHITECTURES = list(itertools.product(["conv_norm_act", "conv_act_norm"], ["bilinear", "nearest", "transposed"], [2, 3]))


def unet_graph(block: Any, upsample: Any, dimensions: Any, seed: int, channels: int, depth: int) -> Graph:
    torch.manual_seed(seed)
    outputs = 1 + 2 * (seed % 2)
    options = UNetOptions(1, outputs, channels, depth, block, upsample, dropout=0.1 * (seed % 2), dimensions=dimensions)
    size = [2 ** (depth - 1) * 2] * dimensions
    return simplify(capture(randomise(UNet(options), seed), torch.zeros(1, 1, *size)))


def some_plans(architecture: int) -> set[str]:
    """Two of the five, so that over the architectures every one is met at least four times."""
    return {list(PLANS)[(architecture + step) % len(PLANS)] for step in (0, 2)}


@pytest.mark.parametrize(("block", "upsample", "dimensions"), ARCHITECTURES)
def test_unets_agree_in_every_tensor(block: str, upsample: str, dimensions: int) -> None:
    compare_unets(block, upsample, dimensions, some_plans(ARCHITECTURES.index((block, upsample, dimensions))))


@pytest.mark.slow
@pytest.mark.parametrize(("block", "upsample", "dimensions"), ARCHITECTURES)
def test_unets_agree_in_every_tensor_with_the_other_plans(block: str, upsample: str, dimensions: int) -> None:
    compare_unets(block, upsample, dimensions, set(PLANS) - some_plans(ARCHITECTURES.index((block, upsample, dimensions))))


def compare_unets(block: str, upsample: str, dimensions: int, plans: set[str]) -> None:
    seed = ARCHITECTURES.index((block, upsample, dimensions))
    channels, depth = (6, 4) if dimensions == 2 else (4, 3)
    graph = unet_graph(block, upsample, dimensions, seed, channels, depth)
    size = (56, 40) if dimensions == 2 else (16, 8, 12)
    count = 0
    for place, plan in enumerate(PLANS):
        if plan not in plans:
            continue
        x = images((1, *size), seed)
        network = network_of(graph, plan, x[:1], seed * 10 + place)
        written = assert_all_agree(network, x, f"{block} {upsample} {dimensions}D {plan}")
        count += sum(tensor.size for tensor in written.values())
        # Both ends of the range are reached somewhere, or saturation is not tested.
        formats = {node.name: node.output for node in lower(network) if node.output is not None}
        assert any(written[name].max() == form.highest - form.zero_point for name, form in formats.items() if name != "input")
        assert any(written[name].min() == -form.zero_point for name, form in formats.items() if name != "input")
    assert count >= len(plans) * LEAST[dimensions]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("block", "upsample", "dimensions"), ARCHITECTURES)
def test_larger_unets_agree_in_every_tensor(block: str, upsample: str, dimensions: int, seed: int) -> None:
    channels, depth = (16, 4) if dimensions == 2 else (8, 4)
    graph = unet_graph(block, upsample, dimensions, seed, channels, depth)
    size = (128, 96) if dimensions == 2 else (24, 16, 32)
    for place, plan in enumerate(PLANS):
        x = images((1, *size), seed)
        assert_all_agree(
            network_of(graph, plan, x[:1], 1000 + seed * 10 + place), x, f"large {block} {upsample} {dimensions}D {plan} {seed}"
        )


class Residual(nn.Module):
    """Residual blocks with addition, strided and dilated convolutions, max pooling with padding, an average at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 5, padding=2, bias=False)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.a, self.norm_a = nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=3), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.side = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(6, 8, 1, stride=2)
        self.head = nn.Conv2d(8, 4, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = x + self.norm_b(self.b(F.relu(self.norm_a(self.a(F.relu(x))))))
        x = F.relu(self.down(F.relu(x)) + self.side(x))
        x = x + x
        logits: Tensor = self.head(F.avg_pool2d(x, (2, 1), stride=1))
        return logits


class ThreeWays(nn.Module):
    """An encoder and a decoder with three up-samplings that meet with the image; the output is up-sampled too."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv, transposed, norm = {2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)}[
            axes
        ]
        self.first, self.norm = conv(1, 4, 3, padding=1), norm(4)
        self.pool = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[axes](2)
        self.below = conv(4, 4, 3, padding=1)
        self.up = transposed(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.near = nn.Upsample(scale_factor=2)
        self.head = conv(1 + 4 + 4 + 6 + 4, 3, 1)
        self.mode = "bilinear" if axes == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(F.relu(self.first(x)))
        below = self.below(self.pool(first))
        linear = F.interpolate(below, size=first.shape[2:], mode=self.mode)
        joined = torch.cat([x, first, linear, self.up(below), self.near(F.relu(below))], 1)
        return F.interpolate(self.head(F.relu(joined)), scale_factor=2, mode=self.mode)


STYLES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual, odd sizes": (Residual, (2, 37, 23)),
    "three ways 2D": (lambda: ThreeWays(2), (1, 26, 34)),
    "three ways 3D": (lambda: ThreeWays(3), (1, 6, 10, 8)),
    "one convolution": (lambda: nn.Conv2d(3, 2, 3), (3, 9, 7)),
    "rectified output": (lambda: nn.Sequential(nn.Conv3d(1, 3, 3), nn.ReLU(), nn.Conv3d(3, 2, 1), nn.ReLU()), (1, 5, 7, 3)),
    "transposed k4 head": (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1)), (1, 7, 5)),
}


@pytest.mark.parametrize("style", STYLES)
def test_networks_of_other_styles_agree(style: str) -> None:
    build, shape = STYLES[style]
    torch.manual_seed(0)
    graph = simplify(capture(randomise(build(), 3), torch.zeros(1, *shape)))
    for place, plan in enumerate(PLANS):
        x = images(shape, place)
        assert_all_agree(network_of(graph, plan, x[:1], place), x, f"{style} {plan}")


def test_network_after_some_training_agrees() -> None:
    graph = unet_graph("conv_norm_act", "bilinear", 2, 1, 4, 3)
    x = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    network = QuantNetwork(graph, resolve_plan(graph, 4, 6, 8), get_method("fixed_point"))
    network.calibrate([x])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.Adam(network.parameters(), 0.05)
    network.train()
    for _ in range(5):
        optimiser.zero_grad()
        F.cross_entropy(network(x), (x[:, 0] > 0.3).long()).backward()
        optimiser.step()
    assert all(
        not torch.equal(value, before[name])
        for name, value in network.state_dict().items()
        if name.endswith("log2_step") and "input" not in name
    )
    assert_all_agree(network.eval(), images((1, 32, 32), 5), "trained")


def wide_network() -> tuple[QuantNetwork, Tensor]:
    """W8A8 with all weights and activations near their largest: accumulators around 127 · 255 · 9 · 160, above 2^25."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 160, 1), nn.ReLU(), nn.Conv2d(160, 160, 3, padding=1), nn.ReLU(), nn.Conv2d(160, 3, 3, padding=1))
    for convolution in (module[0], module[2], module[4]):
        nn.init.uniform_(convolution.weight, 0.4, 1.0)  # type: ignore[arg-type]
    x = torch.rand(1, 1, 12, 12) * 0.5 + 0.5
    graph = simplify(capture(module.eval(), torch.zeros(1, 1, 12, 12)))
    network = QuantNetwork(graph, resolve_plan(graph, 8, 8, 8), get_method("fixed_point"))
    network.calibrate([x])
    return network.eval(), x


def test_layers_beyond_float32_agree_and_would_not_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = wide_network()
    program = lower(network)
    bounds = [accumulator_bound(node, program.format_of(node.inputs[0])) for node in program.convolutions]
    assert [bound >= FLOAT32_EXACT_LIMIT for bound in bounds] == [False, True, True]
    expected = assert_all_agree(network, x, "wide")
    assert np.abs(expected[program.nodes[-1].name]).max() > FLOAT32_EXACT_LIMIT
    # The same layers summed in float32: the accumulators lose their last bits, in the engine and in the simulation.
    monkeypatch.setattr("medquant.deploy.engines.torch_float.FLOAT32_EXACT_LIMIT", 2**62)
    monkeypatch.setattr("medquant.quant.network.FLOAT32_EXACT_LIMIT", 2**62)
    image = quantize_image(x.numpy(), program.format_of("input"))
    last = program.nodes[-1].name
    assert (ENGINES["torch"](program).run(image) != expected[last]).any()
    assert (integers_of_simulation(network, program, x)[last] != expected[last]).any()


@pytest.mark.parametrize("gap", [0, 9, 16, 17, 24, 30])
def test_sums_of_tensors_with_steps_far_apart_agree(gap: int) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.a(x) + self.b(x))
            return y

    torch.manual_seed(0)
    graph = simplify(capture(Sum().eval(), torch.zeros(1, 1, 8, 8)))
    network = QuantNetwork(graph, resolve_plan(graph, 8, 8, 8), get_method("fixed_point"))
    network.calibrate([torch.randn(1, 1, 8, 8)])
    with torch.no_grad():
        steps = {name: network.activation_quantizer(name).log2_step_value() for name in ("a", "b", "add")}  # type: ignore[union-attr]
        # Half a step of the sum is a whole number of steps of a, so b alone decides on which side of a tie a sum lies.
        steps["add"].copy_(steps["a"] + 1)
        steps["b"].copy_(steps["a"] - gap)
    assert_all_agree(network.eval(), torch.randn(8, 1, 32, 32), f"gap {gap}")


def tiny_program() -> IntegerProgram:
    graph = capture(nn.Conv2d(2, 1, 1).eval(), torch.zeros(1, 2, 4, 4))
    network = QuantNetwork(graph, resolve_plan(graph, 4, 6, 8), get_method("fixed_point"))
    network.calibrate([torch.randn(1, 2, 4, 4)])
    return lower(network)


@pytest.mark.parametrize("exponents", [(5, 5, 5), (5, 4, 6), (0, 31, 7), (0, 2, 40)])
@pytest.mark.parametrize("name", EXACT)
def test_classes_are_decided_alike(name: str, exponents: tuple[int, ...]) -> None:
    """Three classes on grids of their own, ties among them: what an engine decides itself is what its output decides."""
    image, inner = TensorFormat(8, 128, 5), TensorFormat(3, 0, 1)
    random, geometry = np.random.default_rng(0), ConvGeometry((1, 1), (0, 0), (1, 1))
    first = ConvolutionNode(
        "first", ("image",), inner, random.integers(-8, 8, (4, 1, 1, 1)), np.zeros(4, np.int64), np.full(4, 3), 4, geometry, True
    )
    weight = np.array([[1, 0, 1, -1], [0, 1, 1, -1], [-1, 0, 1, 1]], np.int8).reshape(3, 4, 1, 1)
    head = ConvolutionNode("head", ("first",), None, weight, np.array([0, 1, -1]), np.array(exponents), 2, geometry, False)
    program = IntegerProgram((ImageNode("image", (), image, 1), first, head), tuple(1 + each for each in exponents))
    opened = ENGINES[name](program)
    levels = random.integers(0, 256, (3, 1, 9, 13)).astype(np.uint8)
    expected = decide(ReferenceEngine(program).run(levels), program)
    found = opened.run_decided(levels)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert len(np.unique(expected)) == 3


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if engine.unavailable() is None])
@pytest.mark.parametrize("image", [np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 2, 4, 4), np.float32), np.zeros((2, 4), np.uint8)])
def test_images_of_another_kind_are_refused(name: str, image: Any) -> None:
    with pytest.raises(InputError, match=r"reads uint8 images of 2 channel\(s\) .* found "):
        ENGINES[name](tiny_program()).run(image)


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program()
    assert all(type(open_engine(name, program)) is ENGINES[name] for name in EXACT)
    assert open_engine("auto", program).priority() == max(ENGINES[name].priority() for name in EXACT)
    assert [engine.info.name for engine in auto_order()] == sorted(EXACT, key=lambda name: -ENGINES[name].priority())
    with pytest.raises(UsageError, match=r"unknown engine 'tourch' \(did you mean 'torch'\?\); known: .*auto"):
        open_engine("tourch", program)

    class Absent(Engine):
        info = ENGINES["torch"].info

        @classmethod
        def unavailable(cls) -> str | None:
            return "its library is not installed"

        def run(self, image: Any) -> Any:
            raise NotImplementedError

    class Refusing(Engine):
        info = ENGINES["torch"].info

        def __init__(self, program: IntegerProgram) -> None:
            raise EngineMismatchError("input: not this one")

        def run(self, image: Any) -> Any:
            raise NotImplementedError

    for name in set(ENGINES) - {"reference"}:
        monkeypatch.setitem(ENGINES, name, Absent)
    assert open_engine("auto", program).info.name == "reference"
    with pytest.raises(UsageError, match="'torch' does not work here: its library is not installed"):
        check_engine("torch")

    monkeypatch.setitem(ENGINES, "torch", Refusing)
    said: list[str] = []
    assert open_engine("auto", program, notify=said.append).info.name == "reference"
    # What is not installed is no news; what was passed over is.
    assert said == ["engine torch does not take this program (input: not this one); using reference"]
    with pytest.raises(EngineMismatchError, match="not this one"):
        open_engine("torch", program)


def test_auto_takes_another_engine_where_openvino_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor for which it has no kernel: found out when it is opened, on the smallest image, not at the first scan."""
    asked: list[list[int]] = []

    class NoKernel:
        def compile_model(self, model: Any, device: str, hints: object) -> None:
            asked.append(list(model.inputs[0].shape))
            raise RuntimeError("Check 'false' failed\nno implementation for this primitive")

    program, opening = small_program(), ENGINES["openvino"]
    monkeypatch.setattr(openvino_engine, "openvino_core", NoKernel)
    expected = max(set(EXACT) - {"openvino"}, key=lambda name: ENGINES[name].priority())
    monkeypatch.setattr(opening, "info", replace(opening.info, priority=1000))
    said: list[str] = []
    opened = open_engine("auto", program, notify=said.append)
    assert opened.info.name == expected
    assert len(said) == 1
    assert said[0].startswith("engine openvino does not take this program (OpenVINO cannot compile")
    assert said[0].endswith(f"; using {expected}")
    assert len(asked) == 1
    assert max(asked[0][2:]) <= 16
    with pytest.raises(EngineMismatchError, match=r"OpenVINO cannot compile .*no implementation for this primitive"):
        open_engine("openvino", program).run(np.zeros((1, program.image.channels, 16, 16), np.uint8))
