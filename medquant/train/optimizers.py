"""The optimiser of a stage: which parameters learn at which rate."""

from __future__ import annotations

import torch
from torch import nn

from medquant.config.schema import QuantConfig
from medquant.quant.network import QuantNetwork

_MOMENTUM = 0.9


def make_optimizer(network: nn.Module, weight_decay: float, quant: QuantConfig | None) -> torch.optim.Optimizer:
    """AdamW, or Nesterov SGD where ``quant.optimizer`` says so.

    Each group carries ``scale``, its learning rate relative to the stage's. Learned steps have a rate of their own and no decay,
    which would pull every step towards one; a method may set the rate of single weights apart (``Method.learning_rate_scale``).

    Args:
        network: float or quantized.
        weight_decay: decoupled for AdamW, added to the gradient for SGD.
        quant: how a quantized network is trained, None for other networks.
    """
    if not isinstance(network, QuantNetwork) or quant is None:
        return torch.optim.AdamW([{"params": list(network.parameters()), "scale": 1.0}], lr=1e-3, weight_decay=weight_decay)
    apart = {id(weight): scale for weight, scale in network.weight_rates(quant.optimizer) if scale != 1.0}
    groups = [{"params": [weight for weight in network.layer_weights() if id(weight) not in apart], "scale": 1.0}]
    for scale in sorted(set(apart.values())):
        # A rate of its own comes with limits of its own (clipping): decay is not meant for it.
        members = [weight for weight in network.layer_weights() if apart.get(id(weight)) == scale]
        groups.append({"params": members, "scale": scale, "weight_decay": 0.0})
    groups.append({"params": list(network.step_parameters()), "scale": quant.step_lr_scale, "weight_decay": 0.0})
    if quant.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1e-3, weight_decay=weight_decay, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=weight_decay)
