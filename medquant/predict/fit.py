"""Whether a scan is of the kind a model was made for: a network answers any image, and says nothing of those it never saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medquant.data.prepared import Preparation
from medquant.data.slabs import let_go
from medquant.data.volume import Case, Volume
from medquant.deploy.metadata import ModelMetadata
from medquant.errors import GeometryError, InputError, MedquantError

MOST_SPACING_RATIO = 2.0
"""How many times smaller or larger than in any training scan the distance of voxels may be."""

_OVERRIDE = "give a scan like those the model was trained on, or allow others (--allow-other-scans)"


@dataclass(frozen=True)
class Misfit:
    """One way in which a scan is not what the model was made for.

    Args:
        error: the refusal.
        can_be_allowed: whether the user may want the mask nevertheless.
    """

    error: MedquantError
    can_be_allowed: bool = True


def find_misfits(metadata: ModelMetadata, preparation: Preparation, case: Case, modality: str) -> list[Misfit]:
    """All that speaks against predicting a scan with a model.

    Args:
        metadata: of the model file; what it does not say of the training scans is not checked.
        preparation: how the model takes a case.
        case: the scan, with as many channels as the model takes.
        modality: what the scan's files say, "" where they say nothing.
    """
    found = [_too_small(metadata, preparation, case), _modality(metadata, case, modality), _spacing(metadata, preparation, case)]
    if preparation.normalisation.kind == "range":
        # Only there are file units the same for all scans.
        found += [_values(preparation, case, volume) for volume in case.channels]
    return [misfit for misfit in found if misfit is not None]


def _too_small(metadata: ModelMetadata, preparation: Preparation, case: Case) -> Misfit | None:
    shape = preparation.grid.grid(case.image).shape
    least = metadata.size_multiple
    if min(shape[:2]) >= least:
        return None
    return Misfit(
        InputError(
            f"{case.source}: slices of {shape[0]}×{shape[1]} pixels on the model's grid, expected at least {least}×{least}; "
            "the network would see more padding than scan"
        ),
        can_be_allowed=False,
    )


def _modality(metadata: ModelMetadata, case: Case, modality: str) -> Misfit | None:
    wanted = metadata.scan.get("modality")
    if not modality or not isinstance(wanted, str) or modality == wanted:
        return None
    return Misfit(InputError(f"{case.source}: found {modality}, the model was trained on {wanted}; {_OVERRIDE}"))


def _spacing(metadata: ModelMetadata, preparation: Preparation, case: Case) -> Misfit | None:
    limits = _pair_of_lists(metadata.scan.get("spacing_mm"))
    if limits is None:
        return None
    low, high = limits
    if not case.image.has_geometry:
        return Misfit(
            GeometryError(
                f"{case.source}: says nothing about its spacing, the model was trained on voxels of {_range(low, high)}; {_OVERRIDE}"
            )
        )
    axes = preparation.grid.grid(case.image).axes
    spacing = [case.image.spacing_mm[axis] for axis in axes]
    pairs = zip(spacing, low, high, strict=True)
    if all(least / MOST_SPACING_RATIO <= each <= most * MOST_SPACING_RATIO for each, least, most in pairs):
        return None
    return Misfit(
        GeometryError(
            f"{case.source}: found voxels of {'×'.join(f'{each:.3g}' for each in spacing)} mm, the model was trained on "
            f"{_range(low, high)} (up to {MOST_SPACING_RATIO:g} times less or more is taken); {_OVERRIDE}"
        )
    )


def _values(preparation: Preparation, case: Case, volume: Volume) -> Misfit | None:
    low, high = preparation.normalisation.low, preparation.normalisation.high
    least, most = value_range(volume)
    if low is None or high is None or (least < high and most > low):
        return None
    return Misfit(
        InputError(
            f"{case.source}: found values from {least:.6g} to {most:.6g}, the model looks at {low:g} to {high:g}, where this scan is all "
            f"one value; {_OVERRIDE}"
        )
    )


def value_range(volume: Volume) -> tuple[float, float]:
    """Smallest and largest voxel, found slice by slice."""
    least, most = math.inf, -math.inf
    for k in range(volume.shape[2]):
        pixels = volume.array[:, :, k]
        least, most = min(least, float(np.min(pixels))), max(most, float(np.max(pixels)))
        let_go(pixels)
    return least, most


def _pair_of_lists(value: object) -> tuple[list[float], list[float]] | None:
    """Two lists of three numbers, None where it is anything else: an older model file does not have them."""
    if isinstance(value, Mapping) or not isinstance(value, Sequence) or len(value) != 2:
        return None
    lists = [[float(each) for each in part if isinstance(each, int | float)] for part in value if isinstance(part, list | tuple)]
    return (lists[0], lists[1]) if [len(part) for part in lists] == [3, 3] else None


def _range(low: Sequence[float], high: Sequence[float]) -> str:
    return "×".join(f"{a:.3g}" if f"{a:.3g}" == f"{b:.3g}" else f"({a:.3g} to {b:.3g})" for a, b in zip(low, high, strict=True)) + " mm"
