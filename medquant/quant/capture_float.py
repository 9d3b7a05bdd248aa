"""Which operations of an exported network stay float, what they are called in the plan, and why they are no integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from medquant.errors import ConfigError
from medquant.quant.graph import TERNARY_TANH, BatchMultiple, FloatArgument, FloatOperation, HeldTensor, ReadInput

_STATISTICS = "float: statistics of each image; batch norm (model.norm=batch) is exact"
_CURVE = "float: no integer form of this function"
_MOVED = "float: moves real values"

_KINDS: dict[str, tuple[str, str]] = {
    "instance_norm": ("instance norm", _STATISTICS),
    "group_norm": ("group norm", _STATISTICS),
    "layer_norm": ("layer norm", "float: statistics of each image"),
    "prelu": ("prelu", "float: a learned slope; ReLU (model.activation=relu) is exact"),
    "sigmoid": ("sigmoid", _CURVE),
    "softmax": ("softmax", _CURVE),
    "gelu": ("gelu", _CURVE),
    "tanh": ("tanh", _CURVE),
    "ternary_tanh": ("ternary tanh", "float: no integer form of a tanh; ReLU (model.activation=relu) is exact"),
    "silu": ("silu", _CURVE),
    "elu": ("elu", _CURVE),
    "exp": ("exp", _CURVE),
    "mul": ("multiply", "float: a product of activations, or with a number, needs a step of its own"),
    "div": ("divide", "float: a quotient has no integer form"),
    "matmul": ("matrix product", "float: both factors are activations"),
    "einsum": ("matrix product", "float: both factors are activations"),
    "scaled_dot_product_attention": ("attention", _CURVE),
    "add": ("add", "float: all it adds are real values, a constant or of different shapes"),
    "sub": ("subtract", "float: no integer form of a difference yet"),
    "cat": ("join", "float: joins real values, or along another axis than the channels"),
    "index": ("look-up", "float: a table of real values"),
    "linear": ("linear", "float: its weight is computed"),
    "pad": ("pad", "float: pads by another value than zero, or a tensor of real values"),
    "constant": ("constant", "float: fixed numbers"),
}  # fmt: skip

_MOVES = {
    "view", "reshape", "_unsafe_view", "permute", "transpose", "flatten", "unflatten", "slice", "select", "squeeze", "unsqueeze",
    "expand", "roll", "flip", "split", "split_with_sizes", "chunk", "unbind", "narrow", "movedim", "swapaxes", "t", "pixel_shuffle",
}  # fmt: skip
"""Operations whose results only hold what they read; all but ``roll``, ``flip`` and ``pixel_shuffle`` may share its memory."""

ANY_SIZE = {
    "instance_norm", "group_norm", "layer_norm", "leaky_relu", "prelu", "sigmoid", "softmax", "gelu", "tanh", "silu", "elu", "exp", "mul",
    "div", "add", "sub", "cat", "concat", "concatenate", "linear", "avg_pool2d", "avg_pool3d", "max_pool2d", "max_pool3d", "pixel_shuffle",
    "ternary_tanh",
}  # fmt: skip
"""Operations that mean the same for images of every size, unless they hold a constant."""


class NoIntegerFormError(Exception):
    """An operation of a known kind with options that no integer form exists for; its text is the plan's note."""


def base_name(target: str) -> str:
    """``leaky_relu`` of ``aten.leaky_relu_.default``."""
    parts = target.split(".")
    return (parts[1] if len(parts) > 1 else target).rstrip("_") or target


def is_copyable(target: str) -> bool:
    """Whether an operator means the same wherever it is run: torch's own, and the ternary tanh."""
    return target.startswith("aten.") or target == TERNARY_TANH


def is_in_place(target: str) -> bool:
    """Whether an operator changes its first argument."""
    parts = target.split(".")
    return len(parts) == 3 and parts[1].endswith("_") and not parts[1].startswith("__")


def may_share_memory(target: str) -> bool:
    """Whether a result may be a view of what was read."""
    return base_name(target) in _MOVES - {"roll", "flip", "pixel_shuffle"}


def kind_and_reason(node: Any, reason: str | None) -> tuple[str, str]:
    """What an operation is called in the plan, and why it is float."""
    base = base_name(str(node.target))
    if base == "leaky_relu":
        slope = float(node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01))
        return "leaky relu", reason or _leaky_reason(slope)
    if base in _MOVES:
        return base.strip("_").replace("_", " "), reason or _MOVED
    kind, usual = _KINDS.get(base, (base.replace("_", " "), "float: no integer form"))
    return kind, reason or usual


def _leaky_reason(slope: float) -> str:
    exact = "ReLU (model.activation=relu) is exact"
    mantissa, _ = torch.frexp(torch.tensor(slope, dtype=torch.float64))
    if abs(float(mantissa)) == 0.5:
        return f"float: the slope {slope:g} is a power of two, which is not computed in integers yet; {exact}"
    return f"float: the slope {slope:g} is no power of two; {exact}"


def check_repeatable(node: Any, where: str) -> None:
    """Refuse an operation that draws random numbers in evaluation mode.

    Raises:
        ConfigError: it does.
    """
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    if base_name(str(node.target)) == "scaled_dot_product_attention":
        if dropout:
            raise ConfigError(f"{where}: dropout of attention stays on in evaluation mode; pass dropout_p=0 there")
    elif torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise ConfigError(f"{where}: {node.target} draws random numbers in evaluation mode; a copy would compute something else")


class Gathered:
    """The arguments of an operation, with what it reads and holds taken out of them.

    Args:
        named: the graph's name of an activation, by torch node.
        tensors: parameters, buffers and constants, by torch node.
        parameters: the torch nodes that are parameters.
        batch: torch's symbol of the number of images, None where that is fixed.
    """

    def __init__(self, named: Mapping[str, str], tensors: Mapping[str, Tensor], parameters: set[str], batch: Any) -> None:
        self.named, self.known, self.parameters, self.batch = named, tensors, parameters, batch
        self.inputs: list[str] = []
        self.tensors: list[Tensor] = []
        self.trainable: list[bool] = []
        self.held: list[str] = []

    def argument(self, value: Any) -> FloatArgument:
        """One argument as the graph holds it."""
        if isinstance(value, list | tuple):
            return tuple(self.argument(item) for item in value)
        if not isinstance(value, torch.fx.Node):
            return value
        if value.name in self.named:
            self.inputs.append(self.named[value.name])
            return ReadInput(len(self.inputs) - 1)
        if value.name in self.known:
            self.tensors.append(self.known[value.name].detach().clone())
            self.trainable.append(value.name in self.parameters)
            self.held.append(value.name)
            return HeldTensor(len(self.tensors) - 1)
        if isinstance(value.meta.get("val"), int):
            return int(value.meta["val"])
        if isinstance(value.meta.get("val"), torch.SymInt):
            return _batch_multiple(value, self.batch)
        raise ConfigError(f"an operation reads {value}, which is neither an activation nor a number; it cannot be copied")


def _batch_multiple(node: Any, batch: Any) -> BatchMultiple:
    each = node.meta["val"].node.expr / batch
    if not each.is_Integer:
        raise ConfigError(f"a length of the network is {node.meta['val']}, no whole multiple of the number of images; it cannot be copied")
    return BatchMultiple(int(each))


def float_operation(
    name: Callable[[str], str], node: Any, gathered: Gathered, reason: str | None = None, part: int | None = None
) -> FloatOperation:
    """The float operation of a torch node.

    Args:
        name: gives a unique name for a suffix.
        node: an operator of the exported program.
        gathered: empty, over what the program holds.
        reason: why it is float, where that depends on its options.
        part: which of its results, where it has several.
    """
    kind, why = kind_and_reason(node, reason)
    arguments = tuple(gathered.argument(value) for value in node.args)
    keywords = tuple((key, gathered.argument(value)) for key, value in node.kwargs.items())
    target = str(node.target)
    if is_in_place(target):
        target = ".".join(piece.rstrip("_") if place == 1 else piece for place, piece in enumerate(target.split(".")))
    base = base_name(target)
    by_scale = base.startswith("upsample") and len(arguments) > 1 and arguments[1] is None
    constants = any(tensor.numel() > 1 and not learns for tensor, learns in zip(gathered.tensors, gathered.trainable, strict=True))
    return FloatOperation(
        name(kind.replace(" ", "_")),
        tuple(gathered.inputs),
        kind,
        why,
        target,
        arguments,
        keywords,
        tuple(gathered.tensors),
        tuple(gathered.trainable),
        part,
        any_size=(base in ANY_SIZE or by_scale) and not constants and bool(gathered.inputs),
    )
