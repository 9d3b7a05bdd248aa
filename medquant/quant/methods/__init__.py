"""Registry of quantization methods: one file each, one line here."""

from __future__ import annotations

from medquant.errors import ConfigError, unknown_name
from medquant.quant.methods.base import Method
from medquant.quant.methods.fixed_point import FIXED_POINT

METHODS: dict[str, Method] = {method.name: method for method in (FIXED_POINT,)}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise ConfigError(unknown_name("quantization method", name, METHODS))
    return METHODS[name]
