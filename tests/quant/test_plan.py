"""The bits of each layer, by hand, for a small network with one layer of each kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.config.bits import parse_rule, parse_rules
from medquant.errors import ConfigError, UsageError
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import Graph
from medquant.quant.plan import LayerPlan, QuantPlan, resolve_plan


class EachKind(nn.Module):
    """Every operation that writes new values, and some that only move integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AvgPool2d(2)
        self.shuffle = nn.MaxPool2d(3, stride=1, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.wide = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(F.relu(self.stem(x)))
        below = self.shuffle(self.pool(y))
        logits: Tensor = self.head(torch.cat([F.relu(self.up(below) + y), self.wide(below)], 1))
        return logits


@pytest.fixture(scope="module")
def graph() -> Graph:
    return simplify(capture(EachKind().eval(), torch.zeros(1, 2, 8, 8)))


def test_plan_row_by_row(graph: Graph) -> None:
    # Weights and biases by hand: 4·2·9, 4 norm scales, 4·4·4 transposed, 3·8 head.
    assert resolve_plan(graph, 4, 6, 8).layers == (
        LayerPlan("input", "image", None, 8, note="image: 8 bits"),
        LayerPlan("stem", "conv 3×3", 8, 6, 72, 4, "first layer: 8-bit weights"),
        LayerPlan("norm", "depthwise conv 1×1", 4, 6, 4, 4, "batch norm that cannot be folded"),
        LayerPlan("pool", "average pool", None, 6),
        LayerPlan("up", "up ×2 linear", None, 6),
        LayerPlan("add", "add", None, 6),
        LayerPlan("wide", "transposed conv 2×2", 4, 6, 64, 4),
        LayerPlan("head", "conv 1×1", 8, None, 24, 3, "last layer: 8-bit weights"),
    )


def bits(plan: QuantPlan) -> dict[str, tuple[int | None, int | None]]:
    return {layer.name: (layer.weight_bits, layer.activation_bits) for layer in plan.layers}


def test_edges_of_the_same_width_need_no_note(graph: Graph) -> None:
    plan = resolve_plan(graph, 8, 8, 8)
    assert [layer.note for layer in plan.layers] == ["", "", "batch norm that cannot be folded"] + [""] * 5
    assert plan.is_integer
    assert not plan.is_float


def test_float_weights_or_activations_leave_no_edges(graph: Graph) -> None:
    plan = resolve_plan(graph, 32, 32, 8)
    assert all(width in (None, 32) for pair in bits(plan).values() for width in pair)
    assert plan.is_float
    assert not plan.is_integer
    half = resolve_plan(graph, 32, 6, 8)
    assert bits(half)["input"] == (None, 8)
    assert bits(half)["stem"] == (32, 6)
    assert not half.is_float
    assert not half.is_integer
    other = resolve_plan(graph, 4, 32, 8)
    assert bits(other)["input"] == (None, 32)
    assert bits(other)["stem"] == (8, 32)


def test_rules_change_what_they_match_and_the_last_wins(graph: Graph) -> None:
    plan = resolve_plan(graph, 4, 6, 8, parse_rules(["*=2/3", "wide=7/", "head=32/32", "input=/5", "up=/4"]))
    assert bits(plan) == {
        "input": (None, 5), "stem": (2, 3), "norm": (2, 3), "pool": (None, 3), "up": (None, 4), "add": (None, 3), "wide": (7, 3),
        "head": (32, None),
    }  # fmt: skip
    assert all(layer.note == "set by rule" for layer in plan.layers)
    assert not plan.is_integer


def test_rule_that_says_what_holds_anyway_leaves_no_note(graph: Graph) -> None:
    assert resolve_plan(graph, 4, 6, 8, parse_rules(["wide=4/6"]))["wide"].note == ""


def test_rule_without_a_layer_names_near_ones(graph: Graph) -> None:
    with pytest.raises(UsageError, match=r"'hed=8/8' matches no layer; near: 'head'"):
        resolve_plan(graph, 4, 6, 8, parse_rules(["hed=8/8"]))


def test_weight_bits_for_what_has_no_weights(graph: Graph) -> None:
    with pytest.raises(UsageError, match=r"'pool=4/' gives weight bits to pool, which has no weights; write 'pool=/A'"):
        resolve_plan(graph, 4, 6, 8, parse_rules(["pool=4/"]))


def test_network_without_convolution() -> None:
    with pytest.raises(ConfigError, match="no convolution"):
        resolve_plan(capture(nn.ReLU(), torch.zeros(1, 1, 4, 4)), 4, 6, 8)


def test_unknown_layer(graph: Graph) -> None:
    with pytest.raises(KeyError):
        resolve_plan(graph, 4, 6, 8)["nowhere"]


def test_unet_layers_in_the_order_they_run() -> None:
    module = UNet(UNetOptions(channels=2)).eval()
    plan = resolve_plan(simplify(capture(module, torch.zeros(1, 1, 16, 16))), 4, 6, 8)
    blocks = [f"{block}.{part}" for block in ("enc1", "enc2", "enc3", "bottom") for part in ("conv1", "conv2")]
    blocks += [f"{block}.{part}" for block in ("dec3", "dec2", "dec1") for part in ("up", "conv1", "conv2")]
    assert [layer.name for layer in plan.layers] == ["input", *blocks, "head"]


def test_activation_bits_for_the_accumulators_of_the_last_layer(graph: Graph) -> None:
    with pytest.raises(UsageError, match=r"'head=/6'.*accumulators"):
        resolve_plan(graph, 4, 6, 8, [parse_rule("head=/6")])


class Gated(nn.Module):
    """A convolution gated by a sigmoid, and a linear layer over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.mix, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Linear(4, 4), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        mixed = self.mix(self.gate(y).movedim(1, -1)).movedim(-1, 1)
        logits: Tensor = self.head(y * mixed)
        return logits


def test_float_operations_have_rows_and_reasons_beside_the_quantized_layers() -> None:
    plan = resolve_plan(simplify(capture(Gated().eval(), torch.zeros(2, 1, 8, 8))), 4, 6, 8)
    rows = [(layer.name, layer.kind, layer.weight_bits, layer.activation_bits, layer.weights) for layer in plan.layers]
    assert rows == [
        ("input", "image", None, 8, 0),
        ("conv", "conv 3×3", 8, 6, 36),
        ("gate", "sigmoid", None, 32, 0),
        ("movedim", "movedim", None, 32, 0),
        ("mix", "linear", 4, 32, 16),
        ("movedim_2", "movedim", None, 32, 0),
        ("multiply", "multiply", None, 32, 0),
        ("head", "conv 1×1", 8, None, 4),
    ]
    assert all(layer.note.startswith("float: ") for layer in plan.layers if layer.activation_bits == 32)
    assert not plan.is_integer


def test_rules_pass_by_what_stays_float_and_are_refused_where_they_match_nothing_else() -> None:
    graph = simplify(capture(Gated().eval(), torch.zeros(2, 1, 8, 8)))
    everything = resolve_plan(graph, 4, 6, 8, parse_rules(["*=2/3"]))
    assert (everything["mix"].weight_bits, everything["mix"].activation_bits) == (2, 32)
    assert (everything["gate"].weight_bits, everything["gate"].activation_bits) == (None, 32)
    assert resolve_plan(graph, 4, 6, 8, parse_rules(["mix=2/"]))["mix"].weight_bits == 2
    # A rule for activations changes nothing here, and the note does not say it did.
    assert resolve_plan(graph, 4, 6, 8, parse_rules(["*=/3"]))["mix"].note == "float: reads and writes real values"
    for rule in ("gate=/4", "gate=4/4", "mix=/4"):
        with pytest.raises(UsageError, match="writes real values and stays float"):
            resolve_plan(graph, 4, 6, 8, parse_rules([rule]))
