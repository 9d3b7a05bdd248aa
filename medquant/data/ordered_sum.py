"""Sums whose order is fixed, over arrays that need not be in memory: the same bits whatever the layout, chunks or NumPy build.

The order: add the second half to the first until one value is left; where the count is odd, its last value goes to the first.
NumPy's own sum may group the terms differently from one build to another; elementwise additions cannot.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medquant.data.slabs import let_go

Read = Callable[[int, int], NDArray[np.float64]]
"""Values ``start .. stop`` of a sequence, as a new array or a view that is not written to."""

_AT_ONCE = 2**21
_SLICES_AT_ONCE = 32


def ordered_sum(count: int, read: Read, at_once: int = _AT_ONCE) -> float:
    """Sum of ``count`` values, of which about ``at_once`` times the logarithm of their number are in memory at a time."""
    sizes = [count]
    while sizes[-1] > at_once:
        sizes.append(sizes[-1] // 2)

    def folded(level: int, start: int, stop: int) -> NDArray[np.float64]:
        """Values ``start .. stop`` of what is left after so many foldings."""
        if level == 0:
            return read(start, stop)
        total = folded(level - 1, start, stop) + folded(level - 1, start + sizes[level], stop + sizes[level])
        if start == 0 and sizes[level - 1] % 2:
            total[0] += folded(level - 1, sizes[level - 1] - 1, sizes[level - 1])[0]
        return total

    values = folded(len(sizes) - 1, 0, sizes[-1])
    while values.size > 1:
        half = values.size // 2
        shorter = values[:half] + values[half : 2 * half]
        if values.size % 2:
            shorter[0] += values[-1]
        values = shorter
    return float(values[0])


def read_volume(array: NDArray[np.generic]) -> Read:
    """The voxels of ``(I, J, K)`` in C order as float64, whatever the array's layout; pages of a mapped file are let go of."""
    row = array.shape[1] * array.shape[2]

    def read(start: int, stop: int) -> NDArray[np.float64]:
        first, last = start // row, -(-stop // row)
        values = np.empty((last - first, *array.shape[1:]), dtype=np.float64)
        for k in range(0, array.shape[2], _SLICES_AT_ONCE):
            values[:, :, k : k + _SLICES_AT_ONCE] = array[first:last, :, k : k + _SLICES_AT_ONCE]
            let_go(array)
        return values.reshape(-1)[start - first * row : stop - first * row]

    return read
