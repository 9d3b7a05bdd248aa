"""Which class numbers a mask holds, found out once and noted."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from medquant.data.content import volume_sha256
from medquant.data.stored import ArrayCache
from medquant.data.volume import Volume
from medquant.errors import InputError

_MOST_LISTED = 8


def label_counts(mask: Volume, cache: ArrayCache) -> Mapping[int, int]:
    """Number of voxels of every value that occurs in a uint8 mask."""

    def count() -> Mapping[str, object]:
        slices = np.asarray(mask.array).transpose(2, 1, 0)
        total = np.zeros(256, dtype=np.int64)
        # Slice by slice, because counting turns every voxel into eight bytes.
        for page in slices:
            total += np.bincount(page.ravel(), minlength=256)
        return {str(value): int(total[value]) for value in np.flatnonzero(total)}

    noted = cache.note(f"label counts 1 {volume_sha256(mask)}", count)
    return {int(value): int(str(voxels)) for value, voxels in noted.items()}


def check_labels(mask: Volume, allowed: Container[int], expected: str, name: str, cache: ArrayCache) -> Mapping[int, int]:
    """Refuse a mask that holds a value which is no class; otherwise return :func:`label_counts`.

    Args:
        mask: uint8.
        allowed: the class numbers.
        expected: the classes, as the message words them.
        name: the mask's file.
        cache: where counts are noted.

    Raises:
        InputError: there is another value.
    """
    counts = label_counts(mask, cache)
    foreign = [value for value in counts if value not in allowed]
    if foreign:
        listed = ", ".join(str(value) for value in foreign[:_MOST_LISTED]) + (" .." if len(foreign) > _MOST_LISTED else "")
        voxels = sum(counts[value] for value in foreign)
        raise InputError(f"{name}: found the values {listed} in {voxels} voxels, expected only {expected}; correct the mask")
    return counts
