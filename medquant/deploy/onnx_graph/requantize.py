"""Requantization as ONNX operators: a power of two, one rounding half to even, a zero point, two limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.onnx_graph.writer import GraphWriter
from medquant.errors import EngineMismatchError

_FLOAT32_BITS = 24
_LONGEST_SHIFT = 40
_UINT8_HIGHEST = 255


def effective_shift(shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shifts that a float32 scale can hold, with the same results.

    Sums have at most 31 bits: 40 places to the right nothing is left of any, 40 to the left all but zero saturate.
    """
    return np.clip(shift, -_LONGEST_SHIFT, _LONGEST_SHIFT)


def power_of_two(exponent: NDArray[np.int64], dtype: type[np.floating] = np.float32) -> NDArray[np.floating]:
    """``2**exponent``, exact."""
    return np.ldexp(np.ones(np.shape(exponent), dtype), exponent.astype(np.int32)).astype(dtype)


@dataclass(frozen=True)
class Levels:
    """Which integers a uint8 tensor of the graph may hold, and which of them stands for real zero."""

    lowest: int
    highest: int
    zero_point: int


@dataclass(frozen=True)
class Requantizer:
    """Writes requantizations.

    Args:
        writer: the graph.
        portable: for OpenVINO too, which adds the zero point before it rounds.
    """

    writer: GraphWriter
    portable: bool

    def _fits_one_operator(self, written: Levels, places: int) -> bool:
        """Whether ``QuantizeLinear`` is exact: it has to be exact in OpenVINO too where the graph is portable.

        An odd zero point added before the rounding turns ties the other way, and with many places behind the point the sum
        of the two does not fit float32; what is not limited afterwards has 8 before it.
        """
        return not self.portable or written.zero_point == 0 or (written.zero_point % 2 == 0 and places + 8 <= _FLOAT32_BITS)

    def __call__(self, sums: str, shift: NDArray[np.int64] | np.int64, written: Levels, relu: bool, stem: str, scaled_by: int = 0) -> str:
        """``clamp(round_half_even(sums * 2**-shift) + zero_point)``.

        Args:
            sums: a float32 tensor.
            shift: one number.
            written: the format of the result.
            relu: whether the zero point is the lower limit.
            stem: what the tensors are called after.
            scaled_by: binary places behind the point that ``sums`` has already.

        Returns:
            The name of a uint8 tensor.

        Raises:
            EngineMismatchError: there is no form that is exact in every runtime.
        """
        shift = effective_shift(np.asarray(shift))
        if not self._fits_one_operator(written, scaled_by + int(shift)):
            raise EngineMismatchError(
                f"{stem} rounds {scaled_by + int(shift)} binary places to {written.highest + 1} levels around the zero point "
                f"{written.zero_point}, which OpenVINO does otherwise: it takes even zero points and at most 16 places; "
                "use fewer bits there, or the model file itself"
            )
        scale = self.writer.constant(power_of_two(shift), "scale")
        zero_point = self.writer.scalar(written.zero_point, np.uint8, "zero_point")
        return self._limited(self.writer.op("QuantizeLinear", [sums, scale, zero_point], f"{stem}_levels"), written, relu, stem)

    def spelled_out(
        self,
        sums: str,
        shift: NDArray[np.int64],
        written: Levels,
        relu: bool,
        stem: str,
        axes: int = 0,
        dtype: type[np.floating] = np.float64,
    ) -> str:
        """The same in single operators, for sums of more bits than float32 has: ``sums`` is of ``dtype``.

        Args:
            shift: one number, or one for each channel, with so many spatial axes behind them.
        """
        factor = power_of_two(-effective_shift(np.asarray(shift)), dtype)
        write = self.writer
        value = sums
        if (factor != 1).any():
            factor = factor.reshape(-1, *[1] * axes) if factor.ndim else factor
            value = write.op("Mul", [value, write.constant(factor, "factor")], f"{stem}_scaled")
        value = write.op("Round", [value], f"{stem}_rounded")
        if written.zero_point:
            value = write.op("Add", [value, write.scalar(written.zero_point, dtype, "offset")], f"{stem}_moved")
        limits = [write.scalar(limit, dtype, "limit") for limit in (written.zero_point if relu else written.lowest, written.highest)]
        return write.cast(write.op("Clip", [value, *limits], f"{stem}_limited"), np.uint8, stem)

    def _limited(self, levels: str, written: Levels, relu: bool, stem: str) -> str:
        """uint8 levels within their true width, and not below real zero where there is a rectifier."""
        lowest = written.zero_point if relu else written.lowest
        if lowest == 0 and written.highest == _UINT8_HIGHEST:
            return levels
        limits = [self.writer.scalar(limit, np.uint8, "level") for limit in (lowest, written.highest)]
        return self.writer.op("Clip", [levels, *limits], stem)
