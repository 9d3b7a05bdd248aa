"""Input normalisation: the one place where file units become network units.

The rule is stored in a model file and applied by every engine, so the same voxels must give the same bits each time.
All steps are elementwise IEEE operations in a fixed order, sums included; neither the memory layout of the array, nor
the vector width of the processor, nor the number of threads enters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from medquant.data.ordered_sum import ordered_sum, read_volume
from medquant.data.slabs import let_go
from medquant.data.volume import FloatArray
from medquant.errors import CheckpointError, ConfigError, InputError, unknown_name

NormalisationKind = Literal["zscore_slice", "zscore_volume", "range"]
KINDS: tuple[str, ...] = get_args(NormalisationKind)

Statistics = tuple[float, float]
"""Mean and standard deviation, the latter 0 where all values are equal."""


@dataclass(frozen=True)
class Normalisation:
    """How an image is brought to the range a network expects.

    Args:
        kind: ``zscore_slice`` (mean 0, standard deviation 1 in each slice), ``zscore_volume`` (the same over the whole volume), or
            ``range`` (``low`` → 0, ``high`` → 1, values beyond are clipped).
        low: lower end in file units, for ``range`` alone.
        high: upper end in file units, for ``range`` alone.

    Raises:
        ConfigError: an unknown kind, or ends that are missing, superfluous, not finite or not in order.
    """

    kind: NormalisationKind
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"data.normalisation: {unknown_name('normalisation', str(self.kind), KINDS)}")
        if self.kind != "range":
            if self.low is not None or self.high is not None:
                raise ConfigError(f"data.normalisation: {self.kind} takes no low and high; leave them out, or use range")
        elif self.low is None or self.high is None or not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"data.normalisation: range needs finite low < high in file units, found low={self.low}, high={self.high}")

    def apply(self, array: NDArray[np.generic]) -> FloatArray:
        """Normalise an image.

        Args:
            array: shape ``(I, J, K)``, file units.

        Returns:
            float32 array of the same shape, C-contiguous. A slice (or volume) of one single value becomes zeros.

        Raises:
            InputError: the array has not three axes, no voxel, or holds NaN or Inf.
        """
        if array.ndim != 3 or array.size == 0:
            raise InputError(f"found an image array of shape {array.shape}, expected three axes (i, j, slice) with at least one voxel")
        statistics = self.statistics(array)
        return np.stack([self.apply_slice(array[:, :, k], statistics) for k in range(array.shape[2])], axis=2)

    def statistics(self, array: NDArray[np.generic]) -> Statistics | None:
        """What normalising a slice needs to know of the whole volume: mean and deviation for ``zscore_volume``, nothing otherwise.

        Args:
            array: shape ``(I, J, K)``, file units.

        Raises:
            InputError: the array holds NaN or Inf.
        """
        return volume_statistics(array) if self.kind == "zscore_volume" else None

    def apply_slice(self, pixels: NDArray[np.generic], statistics: Statistics | None) -> FloatArray:
        """Normalise one slice.

        Args:
            pixels: shape ``(I, J)``, file units.
            statistics: what ``statistics`` said of the volume.

        Returns:
            float32 array of the same shape, C-contiguous.

        Raises:
            InputError: the slice holds NaN or Inf.
        """
        values = _checked(pixels)
        if self.kind == "range" and self.low is not None and self.high is not None:
            return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0).astype(np.float32)
        mean, deviation = _statistics(values) if statistics is None else statistics
        if deviation == 0.0:
            return np.zeros(values.shape, dtype=np.float32)
        return ((values - mean) / deviation).astype(np.float32)

    def to_json(self) -> dict[str, object]:
        """The rule as plain JSON values; ``from_json`` gives it back."""
        ends = {} if self.kind != "range" else {"low": self.low, "high": self.high}
        return {"kind": self.kind, **ends}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> Normalisation:
        """Read what ``to_json`` wrote.

        Raises:
            CheckpointError: keys, types or values are not those of a normalisation.
        """
        numbers = {key: data[key] for key in ("low", "high") if key in data}
        well_typed = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers.values())
        if not isinstance(data.get("kind"), str) or set(data) - {"kind", "low", "high"} or not well_typed:
            raise CheckpointError(f"stored normalisation {dict(data)!r} is not readable, expected kind and, for range, low and high")
        try:
            return Normalisation(
                kind=cast(NormalisationKind, data["kind"]), **{key: float(cast(float, value)) for key, value in numbers.items()}
            )
        except ConfigError as error:
            raise CheckpointError(f"stored normalisation: {error}") from error


def _checked(array: NDArray[np.generic]) -> NDArray[np.float64]:
    values = np.array(array, dtype=np.float64, order="C")
    if not np.isfinite(values).all():
        raise bad_voxels(int(np.count_nonzero(~np.isfinite(values))))
    return values


def bad_voxels(count: int) -> InputError:
    """The refusal of an image with so many bad voxels."""
    return InputError(f"found {count} NaN or Inf voxels in the image, expected finite numbers; repair the image first")


def _statistics(values: NDArray[np.float64]) -> Statistics:
    # Compared, not computed: the mean of equal values may round away from them and leave a tiny deviation to divide by.
    if values.min() == values.max():
        return float(values.flat[0]), 0.0
    count = float(values.size)
    mean = _ordered_sum(values.ravel()) / count
    return mean, math.sqrt(_ordered_sum(np.square(values - mean).ravel()) / count)


def volume_statistics(array: NDArray[np.generic]) -> Statistics:
    """What :func:`_statistics` says of all voxels in C order, ``(I, J, K)``, without a copy of them in memory.

    Raises:
        InputError: NaN or Inf.
    """
    bad, low, high = 0, math.inf, -math.inf
    for k in range(array.shape[2]):
        pixels = np.asarray(array[:, :, k], dtype=np.float64)
        bad += int(np.count_nonzero(~np.isfinite(pixels)))
        low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        let_go(array)
    if bad:
        raise bad_voxels(bad)
    if low == high:
        return low, 0.0
    read, count = read_volume(array), float(array.size)
    mean = ordered_sum(array.size, read) / count
    return mean, math.sqrt(ordered_sum(array.size, lambda start, stop: np.square(read(start, stop) - mean)) / count)


def _ordered_sum(values: NDArray[np.float64]) -> float:
    """:func:`~medquant.data.ordered_sum.ordered_sum` of values that are in memory."""
    return ordered_sum(values.size, lambda start, stop: values[start:stop])
