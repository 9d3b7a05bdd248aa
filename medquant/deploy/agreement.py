"""Whether a network's simulation and its integer program give the same values, counted one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medquant.data.volume import FloatArray
from medquant.deploy.decide import quantize_image
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.quant.network import QuantNetwork
from medquant.quant.program import IntegerProgram


@dataclass(frozen=True)
class Agreement:
    """Output values compared, and how many differed."""

    checked: int
    differing: int


def check_agreement(network: QuantNetwork, program: IntegerProgram, images: FloatArray) -> Agreement:
    """Run normalised images (N, C, *S) through the simulation in evaluation mode and through the int64 reference, one by one.

    Compared are the output values themselves, not the masks: integers times powers of two, equal or not.
    """
    network.eval()
    device = next(network.parameters()).device
    engine = ReferenceEngine(program)
    last = program.nodes[-1].output
    exponents = np.array(program.output_exponents, dtype=np.float64).reshape(1, -1, *[1] * (images.ndim - 2))
    checked = differing = 0
    for image in images:
        with torch.inference_mode():
            simulated = network(torch.from_numpy(image[None]).to(device)).double().cpu().numpy()
        integers = engine.run(quantize_image(image[None], program.format_of(program.image.name)))
        values = (integers - (last.zero_point if last is not None else 0)) * 2.0**-exponents
        checked += values.size
        differing += int((values != simulated).sum())
    return Agreement(checked, differing)
