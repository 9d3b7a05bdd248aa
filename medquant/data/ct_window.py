"""The window of a CT dataset: the range in which the voxels of its labelled structures lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from medquant.data.content import volume_sha256
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, DatasetInfo

SOFT_TISSUE_HU = (-200.0, 300.0)
"""Where nothing is labelled."""

SHARES = (0.005, 0.995)
"""Of the labelled voxels that lie below the window's ends; the rule of Isensee et al. 2021, Nature Methods 18:203-211, for CT."""

_ROUNDED_TO_HU = 10
_LOWEST_HU, _HIGHEST_HU = -1024, 3071


def is_ct(info: DatasetInfo) -> bool:
    """Whether every channel is called CT, so that values are Hounsfield units."""
    return all(name.lower() == "ct" for name in info.channels)


def foreground_window(cases: Sequence[Case], cache: ArrayCache) -> tuple[float, float]:
    """Window in the files' units (HU) from the labelled voxels of cases; that of soft tissue where nothing is labelled.

    The ends are rounded outwards to multiples of 10 HU, so that no single case decides on them.

    Args:
        cases: those that are trained on; the first channel is looked at.
        cache: where each case's counts are noted.
    """
    total: Counter[int] = Counter()
    for case in cases:
        total.update(_counts(case, cache))
    if not total:
        return SOFT_TISSUE_HU
    values = np.array(sorted(total))
    shares = np.cumsum([total[int(value)] for value in values]) / total.total()
    low, high = (int(values[min(len(values) - 1, int(np.searchsorted(shares, share)))]) for share in SHARES)
    low = _ROUNDED_TO_HU * (low // _ROUNDED_TO_HU)
    high = max(low + _ROUNDED_TO_HU, -_ROUNDED_TO_HU * (-high // _ROUNDED_TO_HU))
    return float(low), float(high)


def _counts(case: Case, cache: ArrayCache) -> Mapping[int, int]:
    """Voxels of each whole value, within the range of a CT, where the mask is not background."""
    mask = case.mask
    if mask is None:
        return {}

    def count() -> Mapping[str, object]:
        found: Counter[int] = Counter()
        image, labels = np.asarray(case.image.array), np.asarray(mask.array)
        for k in range(image.shape[2]):
            inside = image[:, :, k][labels[:, :, k] > 0]
            if inside.size:
                values, counts = np.unique(np.clip(np.rint(inside), _LOWEST_HU, _HIGHEST_HU).astype(np.int64), return_counts=True)
                found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        return {str(value): number for value, number in sorted(found.items())}

    noted = cache.note(f"foreground values 1 {volume_sha256(case.image)} {volume_sha256(mask)}", count)
    return {int(value): int(str(number)) for value, number in noted.items()}
