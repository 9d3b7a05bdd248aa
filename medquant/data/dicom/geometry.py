"""The stack that the slices form: their order, whether all of them are there, and the affine of the whole.

Everything is taken from positions and orientations (PS3.3 C.7.6.2.1.1). File names and instance numbers say nothing
reliable about place, and the thickness of a slice says nothing about the distance to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.data.dicom.headers import SliceHeader
from medquant.errors import GeometryError

# Positions are decimal text, often with two digits after the point: distances may differ by that and by this share.
_ROUNDING_MM = 0.02
_SPACING_SHARE = 0.02
# Drift off the normal per millimetre of the stack (0.06°); what stays below is kept exactly in the affine.
_DRIFT_SHARE = 0.001
# Distances this many times the usual one have room for a slice in between.
_GAP_RATIO = 1.5
_SAME_PLACE_MM = 1e-3
_COSINE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Stack:
    """Slices in order along their normal, and where the voxels lie.

    Args:
        slices: sorted so that the slice index grows along row direction × column direction.
        affine: shape ``(4, 4)``, index (column, row, slice) → RAS millimetres; its determinant is positive.
        has_geometry: False where a slice stands alone and its header tells no thickness; it is then 1 mm nominally.
    """

    slices: tuple[SliceHeader, ...]
    affine: NDArray[np.float64]
    has_geometry: bool


def stack_slices(slices: Sequence[SliceHeader], where: str) -> Stack:
    """Order the slices of one series and check that they form a regular box.

    A slice missing at either end leaves no trace in the positions and cannot be noticed.

    Raises:
        GeometryError: slices of different size, orientation, pixel spacing or frame of reference; two at one place; one
            missing; distances that differ; or a stack that leans against its normal (tilted gantry).
    """
    first = slices[0]
    for other in slices[1:]:
        _check_alike(where, first, other)
    rows, columns = np.array(first.row_cosines), np.array(first.column_cosines)
    normal = np.cross(rows, columns)
    normal /= np.linalg.norm(normal)
    positions = np.array([header.position for header in slices])
    order = np.argsort(positions @ normal, kind="stable")
    ordered = tuple(slices[place] for place in order)
    positions = positions[order]
    if len(ordered) == 1:
        step = normal * (first.thickness_mm or 1.0)
    else:
        _check_distances(where, ordered, positions @ normal)
        _check_upright(where, ordered, positions, normal)
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    lps = np.eye(4)
    lps[:3] = np.column_stack([rows * first.column_spacing_mm, columns * first.row_spacing_mm, step, positions[0]])
    # DICOM counts towards left and posterior, NIfTI towards right and anterior.
    return Stack(ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, len(ordered) > 1 or first.thickness_mm is not None)


def _check_alike(where: str, first: SliceHeader, other: SliceHeader) -> None:
    sizes = [(header.pixels.columns, header.pixels.rows) for header in (first, other)]
    cosines = [np.array(header.row_cosines + header.column_cosines) for header in (first, other)]
    spacings = [np.array([header.row_spacing_mm, header.column_spacing_mm]) for header in (first, other)]
    frames = [header.file.fields.get("FrameOfReferenceUID") for header in (first, other)]
    found: str | None = None
    if sizes[0] != sizes[1]:
        found = f"{sizes[1][0]}×{sizes[1][1]} pixels but {first.file.label} has {sizes[0][0]}×{sizes[0][1]}"
    elif np.abs(cosines[0] - cosines[1]).max() > _COSINE_TOLERANCE:
        found = f"another orientation than {first.file.label}"
    elif np.abs(spacings[0] - spacings[1]).max() > 1e-4 * spacings[0].max():
        found = f"another pixel spacing than {first.file.label}"
    elif frames[0] != frames[1]:
        found = f"another frame of reference than {first.file.label}"
    if found is not None:
        raise GeometryError(f"{where}: {other.file.label} has {found}, expected one alike stack; move the odd files elsewhere")


def _check_distances(where: str, ordered: Sequence[SliceHeader], heights: NDArray[np.float64]) -> None:
    steps = np.diff(heights)
    # The lower of the middle two: with few slices, a gap must not pass for the usual distance.
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    count = len(ordered)
    for place, step in enumerate(steps):
        lower, upper = ordered[place].file.label, ordered[place + 1].file.label
        between = f"{where}: slices {place + 1} and {place + 2} of {count} ({lower}, {upper})"
        if step < _SAME_PLACE_MM:
            raise GeometryError(
                f"{between} lie at the same position, expected each place once; remove the copy, or separate the time points or echoes"
            )
        if abs(step - usual) <= max(_ROUNDING_MM, _SPACING_SHARE * usual):
            continue
        if usual >= _SAME_PLACE_MM and step > _GAP_RATIO * usual:
            missing = max(1, round(float(step / usual)) - 1)
            raise GeometryError(
                f"{between} are {step:.2f} mm apart, expected {usual:.2f}: about {missing} missing between them; get the whole series"
            )
        raise GeometryError(f"{between} are {step:.2f} mm apart, expected {usual:.2f}: irregular distances; resample the series first")


def _check_upright(where: str, ordered: Sequence[SliceHeader], positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    offsets = positions - positions[0]
    heights = offsets @ normal
    drifts = np.linalg.norm(offsets - np.outer(heights, normal), axis=1)
    excess = drifts - (_ROUNDING_MM + _DRIFT_SHARE * heights)
    if excess.max() <= 0:
        return
    place = int(np.argmax(excess > 0))
    angle = float(np.degrees(np.arctan2(drifts[place], heights[place])))
    raise GeometryError(
        f"{where}: slice {place + 1} of {len(ordered)} ({ordered[place].file.label}) lies {drifts[place]:.2f} mm beside the normal "
        f"of the first ({angle:.1f}°): tilted gantry or shifted slice; resample the series to an upright stack first"
    )
