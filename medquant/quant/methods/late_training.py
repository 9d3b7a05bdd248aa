"""What ``fixed_point`` can do late in training: freeze weights that oscillate, and average the weights of the last steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medquant.quant.methods.base import Controller, IntegerWeightQuantizer

if TYPE_CHECKING:
    from medquant.quant.network import QuantNetwork

_MOMENTUM = 0.01
"""Weight of the newest step in a running frequency, as published: it remembers about a hundred steps."""


class LateTraining(Controller):
    """Iterative freezing of oscillating weights (Nagel et al., 2022, algorithm 1) and averaging of late weights.

    A weight oscillates where its integer moves in the direction opposite to its last move. Where that happens more often than
    the threshold, the weight is frozen to the integer it holds on average, and stays there. Averaging keeps the mean of the
    latent weights and biases after each step of the last part of training; evaluation and the program use the mean.

    Args:
        freeze_above: share of steps with an oscillation above which a weight is frozen; 0: no freezing.
        average_from: share of quantized training after which weights are averaged; 1: no averaging.
    """

    averaged_steps: Tensor

    def __init__(self, freeze_above: float, average_from: float) -> None:
        super().__init__()
        self.freeze_above, self.average_from = freeze_above, average_from
        self.done = 0.0
        self.register_buffer("averaged_steps", torch.zeros((), dtype=torch.int64))

    def prepare(self, network: QuantNetwork) -> None:
        """Make the buffers, which have the shapes of the network's weights."""
        if self.average_from < 1:
            for key, parameter in _latent(network):
                self.register_buffer(f"mean/{key}", torch.zeros_like(parameter))
        if self.freeze_above > 0:
            for name, weight in network.named_weights():
                if isinstance(network.weight_quantizer(name), IntegerWeightQuantizer):
                    key = name.replace(".", "/")
                    for kind in ("integer", "direction", "frequency", "average"):
                        self.register_buffer(f"{kind}/{key}", torch.zeros_like(weight))
                    self.register_buffer(f"frozen/{key}", torch.zeros_like(weight, dtype=torch.bool))
                    self.register_buffer(f"seen/{key}", torch.zeros((), dtype=torch.bool))

    def before_step(self, network: QuantNetwork, done: float) -> None:
        """Note how far training is."""
        self.done = done

    @torch.no_grad()
    def after_step(self, network: QuantNetwork) -> None:
        """Freeze what oscillates, then take the weights into the mean."""
        if self.freeze_above > 0:
            for name, weight in network.named_weights():
                quantizer = network.weight_quantizer(name)
                if isinstance(quantizer, IntegerWeightQuantizer):
                    self._watch(name.replace(".", "/"), weight, quantizer)
        if self.average_from < 1 and self.done >= self.average_from:
            self.averaged_steps += 1
            for key, parameter in _latent(network):
                mean = self.get_buffer(f"mean/{key}")
                mean.add_((parameter - mean) / self.averaged_steps)

    def _watch(self, key: str, weight: Tensor, quantizer: IntegerWeightQuantizer) -> None:
        integers, exponents = quantizer.integers(weight)
        now, step = integers.to(weight.dtype), torch.exp2(-exponents.to(weight.dtype))
        before, direction, frequency, average, frozen, seen = (
            self.get_buffer(f"{kind}/{key}") for kind in ("integer", "direction", "frequency", "average", "frozen", "seen")
        )
        if not bool(seen):
            before.copy_(now)
            average.copy_(now)
            seen.fill_(True)
            return
        moved = torch.sign(now - before)
        oscillated = (moved != 0) & (moved == -direction)
        frequency.lerp_(oscillated.to(frequency.dtype), _MOMENTUM)
        average.lerp_(now, _MOMENTUM)
        direction.copy_(torch.where(moved != 0, moved, direction))
        frozen |= frequency > self.freeze_above
        # One bit has no nought: what the average is nearer to is its sign.
        held = torch.where(average >= 0, 1.0, -1.0).to(average.dtype) if quantizer.bits == 1 else average.round()
        weight.copy_(torch.where(frozen, held * step, weight))
        before.copy_(torch.where(frozen, held, now))

    def evaluated(self, key: str, parameter: Tensor) -> Tensor:
        """The mean over the late steps, where there is one."""
        if self.average_from >= 1 or int(self.averaged_steps) == 0:
            return parameter
        return self.get_buffer(f"mean/{key}")


def _latent(network: QuantNetwork) -> list[tuple[str, Tensor]]:
    kinds = (("weights", network.weights), ("biases", network.biases))
    return [(f"{kind}/{key}", parameter) for kind, held in kinds for key, parameter in held.items()]
