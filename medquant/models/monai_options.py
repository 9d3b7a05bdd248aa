"""What all of MONAI's networks are built with: the lazy import, and options in MONAI's own words."""

from __future__ import annotations

from types import ModuleType

from medquant.errors import ConfigError
from medquant.models.options import NetworkOptions

_GROUP_CHANNELS = 8
_LEAKY_SLOPE = 0.01


def monai_networks() -> ModuleType:
    """MONAI's networks, imported when one is built: the import takes seconds.

    Raises:
        ConfigError: MONAI is not installed.
    """
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ConfigError(f"this network needs MONAI ({error}); install it: pip install monai") from error
    module: ModuleType = nets
    return module


def widths(options: NetworkOptions) -> tuple[int, ...]:
    """Channels of each level, twice as many at each halving."""
    return tuple(options.channels * 2**level for level in range(options.depth))


def monai_norm(options: NetworkOptions) -> str | tuple[str, dict[str, object]]:
    """The norm as MONAI writes it, with a learned scale and shift for each channel.

    Raises:
        ConfigError: channels that do not divide into groups of 8, for group norm.
    """
    if options.norm == "batch":
        return "batch"
    if options.norm == "instance":
        return ("instance", {"affine": True})
    if options.channels % _GROUP_CHANNELS:
        raise ConfigError(
            f"model.norm group makes {_GROUP_CHANNELS} groups; model.channels must be a multiple of {_GROUP_CHANNELS}, "
            f"found {options.channels}"
        )
    return ("group", {"num_groups": _GROUP_CHANNELS})


def monai_activation(options: NetworkOptions) -> str | tuple[str, dict[str, object]]:
    """The rectifier as MONAI writes it; a leaky one has the slope 0.01 of nnU-Net."""
    if options.activation == "leaky_relu":
        return ("leakyrelu", {"negative_slope": _LEAKY_SLOPE, "inplace": True})
    return options.activation
