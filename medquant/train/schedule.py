"""Learning rate over a stage: a short linear warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math

WARM_UP_SHARE = 0.05
"""Share of a stage's steps in which the rate rises."""

FLOOR = 0.01
"""Rate at the end of a stage, relative to its peak."""


def learning_rate(peak: float, step: int, steps: int) -> float:
    """The rate of one optimiser step.

    Args:
        peak: the highest rate.
        step: 0 for the first step of the stage.
        steps: number of steps in the stage.
    """
    rising = max(1, round(WARM_UP_SHARE * steps))
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return peak * (FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress)))
