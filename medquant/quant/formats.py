"""Number formats: which integers a tensor may hold and what they stand for.

A value is ``(q - zero_point) * 2**-exponent`` with ``q`` in ``[0, 2**bits - 1]`` for activations, and ``q * 2**-exponent``
with ``q`` in two's complement for weights (one bit: minus one and one).
"""

from __future__ import annotations

from dataclasses import dataclass

from medquant.config.bits import FLOAT_BITS
from medquant.errors import ConfigError

__all__ = ["FLOAT32_EXACT_LIMIT", "FLOAT_BITS", "TensorFormat", "float32_adds_exactly", "weight_range"]

FLOAT32_EXACT_LIMIT = 2**24
"""Integers below this magnitude are summed exactly by float32 in any order."""


def float32_adds_exactly(first: int, second: int) -> bool:
    """Whether float32 holds every sum of two activations of at most 8 bits with these exponents."""
    return bool(255 * (2 ** abs(first - second) + 1) < FLOAT32_EXACT_LIMIT)


@dataclass(frozen=True)
class TensorFormat:
    """How the integers of an activation tensor are read.

    Args:
        bits: stored width, 1 to 8.
        zero_point: the integer that stands for real zero; 0 for what comes out of a rectifier.
        exponent: a step is ``2**-exponent``.

    Raises:
        ConfigError: width or zero point out of range.
    """

    bits: int
    zero_point: int
    exponent: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or not 0 <= self.zero_point <= self.highest:
            raise ConfigError(
                f"an activation format needs 1 to 8 bits and a zero point within them; found {self.bits} bits, zero point {self.zero_point}"
            )

    @property
    def highest(self) -> int:
        """The largest stored integer; the smallest is 0."""
        return int(2**self.bits - 1)

    @property
    def largest_magnitude(self) -> int:
        """The largest ``|q - zero_point|``: what one activation can contribute to an accumulator."""
        return max(self.zero_point, self.highest - self.zero_point)


def weight_range(bits: int) -> tuple[int, int]:
    """Lowest and highest weight integer of a width; one bit means minus one and one, without zero.

    >>> weight_range(4), weight_range(1)
    ((-8, 7), (-1, 1))
    """
    if not 1 <= bits <= 8:
        raise ConfigError(f"quantized weights have 1 to 8 bits, found {bits}")
    if bits == 1:
        return -1, 1
    return int(-(2 ** (bits - 1))), int(2 ** (bits - 1) - 1)
