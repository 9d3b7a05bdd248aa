"""Sums in chunks have the bits of the sum in one piece. Expected: the folding written down directly, on the whole array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.data import normalise as normalise_module
from medquant.data import ordered_sum as ordered_sum_module
from medquant.data.normalise import Normalisation, volume_statistics
from medquant.data.ordered_sum import ordered_sum, read_volume
from medquant.errors import InputError


def folded(values: NDArray[np.float64]) -> float:
    while values.size > 1:
        half = values.size // 2
        shorter = values[:half] + values[half : 2 * half]
        if values.size % 2:
            shorter[0] += values[-1]
        values = shorter
    return float(values[0])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 31, 100, 1023, 4097])
@pytest.mark.parametrize("at_once", [1, 2, 3, 10, 64, 10**6])
def test_chunks_do_not_change_a_bit(count: int, at_once: int) -> None:
    random = np.random.default_rng(count)
    values = random.normal(size=count) * 10.0 ** random.integers(-8, 8, count)
    assert ordered_sum(count, lambda start, stop: values[start:stop], at_once) == folded(values)


def test_other_orders_have_other_bits() -> None:
    values = np.random.default_rng(0).normal(size=4097) * 1e3
    assert folded(values) != folded(np.random.default_rng(1).permutation(values))


@pytest.mark.parametrize("layout", ["C", "F", "mapped", "flipped"])
def test_the_layout_does_not_matter(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).integers(-1000, 3000, (13, 9, 67)).astype(np.int16)
    array: NDArray[np.generic] = np.asarray(values, order="F" if layout == "F" else "C")
    if layout == "mapped":
        np.save(tmp_path / "a.npy", values.transpose(2, 1, 0))
        array = np.lib.format.open_memmap(tmp_path / "a.npy", mode="r").transpose(2, 1, 0)
    if layout == "flipped":
        array = np.ascontiguousarray(values[::-1, :, ::-1])[::-1, :, ::-1]
    flat = values.astype(np.float64).ravel()
    for start, stop in ((0, flat.size), (5, 6), (600, 4000), (flat.size - 1, flat.size)):
        np.testing.assert_array_equal(read_volume(array)(start, stop), flat[start:stop])
    monkeypatch.setattr(ordered_sum_module, "_AT_ONCE", 500)
    monkeypatch.setattr(normalise_module, "ordered_sum", lambda count, read: ordered_sum(count, read, 500))
    mean = folded(flat) / flat.size
    assert volume_statistics(array) == (mean, np.sqrt(folded(np.square(flat - mean)) / flat.size))
    assert Normalisation("zscore_volume").statistics(array) == volume_statistics(array)


def test_bad_voxels_and_one_value() -> None:
    assert volume_statistics(np.full((3, 4, 5), 7, dtype=np.uint8)) == (7.0, 0.0)
    holed = np.zeros((3, 4, 5), dtype=np.float32)
    holed[1, 2, 3], holed[0, 0, 0] = np.nan, np.inf
    with pytest.raises(InputError, match="found 2 NaN or Inf voxels"):
        volume_statistics(holed)
