"""Learning rate over a stage: by default a short linear warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "paper_steps", "cosine_to_zero"]

WARM_UP_SHARE = 0.05
"""Share of a stage's steps in which the rate rises."""

FLOOR = 0.01
"""Rate at the end of a stage, relative to its peak."""


def learning_rate(peak: float, step: int, steps: int, schedule: Schedule = "cosine") -> float:
    """The rate of one optimiser step.

    Args:
        peak: the highest rate.
        step: 0 for the first step of the stage.
        steps: number of steps in the stage.
        schedule: ``cosine`` as above; ``paper_steps``: a tenth of it more at every fifth of the stage; ``cosine_to_zero``: no warm-up.
    """
    if schedule == "paper_steps":
        return peak * 0.1 ** (5 * step // steps)
    if schedule == "cosine_to_zero":
        return peak * 0.5 * (1.0 + math.cos(math.pi * step / steps))
    rising = max(1, round(WARM_UP_SHARE * steps))
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return peak * (FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress)))
