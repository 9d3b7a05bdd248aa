"""What every network can be told, and how a network says what it does not offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from medquant.errors import ConfigError
from medquant.models.unet import UNetOptions

NormKind = Literal["batch", "instance", "group"]
ActivationKind = Literal["relu", "leaky_relu", "prelu", "ternary_tanh"]


@dataclass(frozen=True)
class NetworkOptions(UNetOptions):
    """What a network of the registry is made of: the options of :class:`UNetOptions`, and those only some networks have.

    Args:
        norm: normalisation; batch norm alone folds away exactly.
        activation: rectifier, or the ternary tanh in its place; ReLU alone is exact in an integer program.
        residual_units: residual units of a level (``monai_unet``), or residual blocks when above 0 (``dynunet``).
        deep_supervision: also train the outputs of coarser levels; they leave the network in training mode only.
        size: spatial size of the training patches, for networks that take images of one size only; () where it does not matter.

    Raises:
        ConfigError: an option is none of these, or out of range.
    """

    norm: NormKind = "batch"
    activation: ActivationKind = "relu"
    residual_units: int = 0
    deep_supervision: bool = False
    size: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("norm", get_args(NormKind)), ("activation", get_args(ActivationKind))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"model.{name} must be one of {', '.join(allowed)}; found {getattr(self, name)!r}")
        if self.residual_units < 0:
            raise ConfigError(f"model.residual_units must be at least 0, found {self.residual_units}")

    @property
    def size_multiple(self) -> int:
        """What every spatial axis of an image must be a multiple of: each level but the first halves the image."""
        return int(2 ** (self.depth - 1))


@dataclass(frozen=True)
class Network:
    """One entry of the registry.

    Args:
        summary: one line for ``medquant info``.
        build: makes the network; options the network does not have were refused before.
        dimensions: numbers of spatial axes it exists for.
        offers: the values an option can have here, the one that ``auto`` means first; options without an entry have one value only.
        depths: fewest and most levels; None for no limit of its own.
        floats: what stays float with the default options, "" where all of it is an integer program.
        one_size: whether it takes images of one size only, that of the training patches.
    """

    summary: str
    build: Callable[[NetworkOptions], nn.Module]
    dimensions: tuple[int, ...] = (2, 3)
    offers: Mapping[str, Sequence[object]] | None = None
    depths: tuple[int, int | None] = (2, None)
    floats: str = ""
    one_size: bool = False

    def describe(self) -> str:
        """One line: what it is, for how many axes, and whether all of it becomes an integer program."""
        axes = " and ".join(f"{number}D" for number in self.dimensions)
        return f"{self.summary}; {axes}; {f'float: {self.floats}' if self.floats else 'exact'}"

    def values(self, option: str) -> Sequence[object]:
        """What an option can be, the one that ``auto`` means first."""
        return (self.offers or {}).get(option, _WITHOUT_CHOICE[option])

    def check(self, name: str, options: NetworkOptions) -> None:
        """Refuse what the network does not offer.

        Raises:
            ConfigError: one line for each option, with what there is.
        """
        mistakes = [
            f"{name} has model.{option} {' or '.join(map(str, self.values(option)))}, found {getattr(options, option)}"
            for option in _WITHOUT_CHOICE
            if getattr(options, option) not in self.values(option)
        ]
        if options.dimensions not in self.dimensions:
            mistakes.append(f"{name} has model.dimensions {' or '.join(map(str, self.dimensions))}, found {options.dimensions}")
        fewest, most = self.depths
        if not fewest <= options.depth <= (options.depth if most is None else most):
            allowed = f"{fewest}" if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
            mistakes.append(f"{name} has model.depth {allowed}, found {options.depth}")
        if self.one_size and len(options.size) != options.dimensions:
            mistakes.append(
                f"{name} takes images of one size, which must be given: {options.dimensions} spatial axes, found {options.size}"
            )
        elif any(length % options.size_multiple for length in options.size):
            mistakes.append(
                f"{name} takes images whose sides are multiples of {options.size_multiple}, found {'×'.join(map(str, options.size))}; "
                "change data.patch_size or data.patch_slices"
            )
        if mistakes:
            raise ConfigError("\n".join(mistakes))


# What a network has that says nothing of the option.
_WITHOUT_CHOICE: dict[str, Sequence[object]] = {
    "block": ("conv_norm_act",),
    "norm": ("batch",),
    "activation": ("relu",),
    "upsample": ("transposed",),
    "residual_units": (0,),
    "deep_supervision": (False,),
}
