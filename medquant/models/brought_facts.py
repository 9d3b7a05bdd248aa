"""What has to be known of a network before it is built, and how its arguments are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medquant.errors import ConfigError


@dataclass(frozen=True)
class NetworkFacts:
    """What a network reads and writes.

    Args:
        inputs: channels of an image.
        outputs: channels of the logits.
        dimensions: 2 or 3 spatial axes.
        size_multiple: what every spatial axis must be a multiple of.
    """

    inputs: int
    outputs: int
    dimensions: Literal[2, 3]
    size_multiple: int


def whole_number(arguments: Mapping[str, object], key: str, least: int = 1, most: int = 4096) -> int:
    """An argument that must be a whole number within bounds.

    Raises:
        ConfigError: it is none.
    """
    value = arguments.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"model.arguments: {key} must be a whole number from {least} to {most}; found {value!r}")
    return value


def spatial_axes(arguments: Mapping[str, object], key: str = "spatial_dims") -> Literal[2, 3]:
    """The number of spatial axes.

    Raises:
        ConfigError: neither 2 nor 3.
    """
    return 2 if whole_number(arguments, key, 2, 3) == 2 else 3


def stride_product(value: object, axes: int, key: str) -> int:
    """How many voxels of the image one voxel of the coarsest level covers, along the axis where that is most.

    Args:
        value: strides by level, each a number or one for each axis.
        axes: number of spatial axes.
        key: name of the argument, for messages.

    Raises:
        ConfigError: not a list of strides.
    """
    if not isinstance(value, list | tuple):
        raise ConfigError(f"model.arguments: {key} must be a list of strides; found {value!r}")
    products = [1] * axes
    for stride in value:
        each = list(stride) if isinstance(stride, list | tuple) else [stride] * axes
        if len(each) != axes or not all(isinstance(step, int) and not isinstance(step, bool) and 1 <= step <= 16 for step in each):
            raise ConfigError(f"model.arguments: {key} must hold whole strides from 1 to 16 for {axes} axes; found {stride!r}")
        products = [product * step for product, step in zip(products, each, strict=True)]
    largest = max(products)
    if largest > 1024 or any(largest % product for product in products):
        raise ConfigError(f"model.arguments: {key} shrinks the image {products}-fold; expected at most 1024, each a divisor of the largest")
    return largest
