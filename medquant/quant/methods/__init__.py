"""Registry of quantization methods: one file each, one line here."""

from __future__ import annotations

from collections.abc import Mapping

from medquant.errors import ConfigError, unknown_name
from medquant.quant.methods.base import Method
from medquant.quant.methods.binary import Binary
from medquant.quant.methods.dynamic_fixed_point import DynamicFixedPoint
from medquant.quant.methods.fixed_point import FixedPoint
from medquant.quant.methods.learned_step import LearnedStep
from medquant.quant.methods.paper import Paper
from medquant.quant.methods.ternary import Ternary
from medquant.quant.methods.uniform import Uniform

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Binary, DynamicFixedPoint, FixedPoint, LearnedStep, Paper, Ternary, Uniform)
}


def get_method(name: str, options: Mapping[str, object] | None = None) -> Method:
    """The method of this name.

    Args:
        name: as registered.
        options: values of ``quant.options``; what is not given has the method's default.

    Raises:
        ConfigError: there is no such method (the message lists those there are), or no such option.
    """
    if name not in METHODS:
        raise ConfigError(unknown_name("quantization method", name, METHODS))
    return METHODS[name](options)
