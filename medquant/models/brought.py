"""Networks that were made elsewhere: built from the arguments their own makers wrote down, as plain data.

Two families: classes of MONAI (``monai_class``) and the plain convolutional networks of nnU-Net (``nnunet_plain``). They stand
beside the registry of :mod:`medquant.models`: their size, depth and norms follow from their arguments, not from ``model.*``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from medquant.errors import ConfigError
from medquant.models.brought_facts import NetworkFacts
from medquant.models.monai_class import build_monai_class, monai_class_facts
from medquant.models.plain_conv_unet import build_plain_conv_unet, plain_conv_unet_facts

_MOST_PARAMETERS = 2**30
"""Refused above this: a description of a few lines must not fill the memory."""


@dataclass(frozen=True)
class _Family:
    build: Callable[[Mapping[str, object]], nn.Module]
    facts: Callable[[Mapping[str, object]], NetworkFacts]


BROUGHT: dict[str, _Family] = {
    "monai_class": _Family(build_monai_class, monai_class_facts),
    "nnunet_plain": _Family(build_plain_conv_unet, plain_conv_unet_facts),
}


def is_brought(name: str) -> bool:
    """Whether ``model.name`` is a family of this page."""
    return name in BROUGHT


def brought_facts(name: str, arguments: Mapping[str, object]) -> NetworkFacts:
    """What a brought network reads and writes, from its arguments alone.

    Raises:
        ConfigError: an argument is missing, unknown, or not plain data.
    """
    return BROUGHT[name].facts(arguments)


def build_brought(name: str, arguments: Mapping[str, object], check_only: bool = False) -> nn.Module:
    """The network of these arguments.

    Args:
        name: a family.
        arguments: plain data.
        check_only: shapes alone, on torch's ``meta`` device, without memory for the weights.

    Raises:
        ConfigError: the arguments do not make a network, or one beyond any use.
    """
    family = BROUGHT[name]
    family.facts(arguments)
    with torch.device("meta"):
        empty = _built(family, arguments)
    count = sum(parameter.numel() for parameter in empty.parameters())
    if count > _MOST_PARAMETERS:
        raise ConfigError(f"model.arguments: a network of {count} parameters; expected at most {_MOST_PARAMETERS}")
    return empty if check_only else _built(family, arguments)


def _built(family: _Family, arguments: Mapping[str, object]) -> nn.Module:
    try:
        return family.build(arguments)
    except ConfigError:
        raise
    except Exception as error:  # the classes check their arguments in many ways; each means the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model.arguments: these make no network: {reason}") from error
