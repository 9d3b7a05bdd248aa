"""Classes of MONAI with arguments of their own, as bundles state them: a known name and plain data, nothing that is evaluated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from medquant.errors import ConfigError, unknown_name
from medquant.models.brought_facts import NetworkFacts, spatial_axes, stride_product, whole_number
from medquant.models.dynunet import SupervisedUNet
from medquant.models.monai_options import monai_networks

TARGET = "_target_"

_MODULES = {
    "UNet": "unet",
    "BasicUNet": "basic_unet",
    "DynUNet": "dynunet",
    "SegResNet": "segresnet",
    "AttentionUnet": "attentionunet",
}
_ALIASES = {"Unet": "UNet", "unet": "UNet", "BasicUnet": "BasicUNet", "DynUnet": "DynUNet", "AttentionUNet": "AttentionUnet"}
_BASIC_UNET_MULTIPLE = 16
_MOST = 4096
_MOST_BLOCKS = 64
_COUNTS = ("num_res_units", "blocks_down", "blocks_up")
"""Arguments that say how many layers there are: each layer costs time even where it is only laid out."""
_KNOWN = ", ".join(_MODULES)


def known_class(target: object) -> str:
    """The class a ``_target_`` names: ``UNet``, or with one of the paths MONAI has it under.

    Raises:
        ConfigError: it names anything else.
    """
    if not isinstance(target, str):
        raise ConfigError(f"{TARGET} must name a class of MONAI ({_KNOWN}); found {target!r}")
    path, _, last = target.rpartition(".")
    name = _ALIASES.get(last, last)
    if name not in _MODULES or path not in ("", "monai.networks.nets", f"monai.networks.nets.{_MODULES.get(name)}"):
        raise ConfigError(f"{TARGET} is never imported: {unknown_name('network class', target, _MODULES)}")
    return name


def monai_class_facts(arguments: Mapping[str, object]) -> NetworkFacts:
    """What the class reads and writes with these arguments.

    Args:
        arguments: ``_target_`` and the constructor's own; those left out have MONAI's default.

    Raises:
        ConfigError: another class, or an argument that is missing or unknown or no plain value.
    """
    name = known_class(arguments.get(TARGET))
    given = _bound(name, arguments)
    axes = spatial_axes(given)
    if name in ("UNet", "AttentionUnet", "DynUNet"):
        multiple = stride_product(given["strides"], axes, "strides")
    elif name == "SegResNet":
        blocks = given["blocks_down"]
        if not isinstance(blocks, list | tuple) or not 1 <= len(blocks) <= 8:
            raise ConfigError(f"model.arguments: blocks_down must hold 1 to 8 numbers; found {blocks!r}")
        multiple = 2 ** (len(blocks) - 1)
    else:
        multiple = _BASIC_UNET_MULTIPLE
    return NetworkFacts(whole_number(given, "in_channels"), whole_number(given, "out_channels"), axes, multiple)


def build_monai_class(arguments: Mapping[str, object]) -> nn.Module:
    """The network. A DynUNet's blocks come without their second names (``skip_layers``), which no checkpoint could hold."""
    name = known_class(arguments.get(TARGET))
    made: nn.Module = _constructor(name)(**{key: _tuples(value) for key, value in arguments.items() if key != TARGET})
    return SupervisedUNet(made) if name == "DynUNet" else made


def _constructor(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(monai_networks(), name)
    return found


def _bound(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
    parameters = inspect.signature(_constructor(name)).parameters
    own = {key: value for key, value in arguments.items() if key != TARGET}
    for key, value in own.items():
        if key not in parameters:
            raise ConfigError(f"model.arguments: {unknown_name(f'argument of {name}', key, parameters)}")
        _check_plain(key, value)
        _check_size(key, value)
    missing = [key for key, each in parameters.items() if each.default is inspect.Parameter.empty and key not in own]
    if missing:
        raise ConfigError(f"model.arguments: {name} needs {', '.join(missing)}")
    defaults = {key: each.default for key, each in parameters.items() if each.default is not inspect.Parameter.empty}
    return {**defaults, **own}


def _check_plain(key: str, value: object) -> None:
    """Refuse what a bundle would have evaluated: expressions, references, and classes below an argument."""
    if isinstance(value, str) and value[:1] in ("$", "@", "%"):
        raise ConfigError(f"model.arguments: {key} asks for code: {value[:60]!r} is evaluated nowhere here; write its value")
    if isinstance(value, Mapping):
        marked = [str(inner) for inner in value if str(inner).startswith("_")]
        if marked:
            raise ConfigError(f"model.arguments: {key} asks for code: {', '.join(marked)} is evaluated nowhere here; write its value")
        for inner, item in value.items():
            _check_plain(f"{key}.{inner}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(key, item)
    elif value is not None and not isinstance(value, str | int | float | bool):
        raise ConfigError(f"model.arguments: {key} must be plain data; found {type(value).__name__}")


def _check_size(key: str, value: object) -> None:
    """Refuse numbers and lists beyond those of any network, before a layer is made."""
    most = _MOST_BLOCKS if key in _COUNTS else _MOST
    if isinstance(value, list | tuple):
        if len(value) > _MOST_BLOCKS:
            raise ConfigError(f"model.arguments: {key} must have at most {_MOST_BLOCKS} entries; found {len(value)}")
        for item in value:
            _check_size(key, item)
    elif isinstance(value, Mapping):
        for inner, item in value.items():
            _check_size(str(inner), item)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > most:
        raise ConfigError(f"model.arguments: {key} must be at most {most}; found {value}")


def _tuples(value: object) -> object:
    """Lists as tuples, as MONAI wants ``("instance", {"affine": True})``."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
