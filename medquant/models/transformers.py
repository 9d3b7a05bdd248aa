"""What the networks with transformers have in common."""

from __future__ import annotations

from importlib.util import find_spec

from medquant.errors import ConfigError

FLOATS = "the transformer's activations (softmax, layer norm, GELU), leaky ReLU"


def check_einops(network: str) -> None:
    """Raise ConfigError where einops, which MONAI's attention needs, is not installed."""
    if find_spec("einops") is None:
        raise ConfigError(f"the network {network} needs the package einops, which is not installed; install it: pip install einops")
