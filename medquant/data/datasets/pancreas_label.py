"""Where a Pancreas-CT label lies on its scan: by the affines first, then checked on the Hounsfield units under the mask.

The collection's label files do not all say where they lie in the way the scans do, and some conversions mirror them from
front to back. A mirrored mask of a middle organ can have a plausible mean, so the share of soft tissue is looked at as well:
on two real cases the mean was 104 and 92 HU in place and 94 and 90 HU mirrored, the share 99 % and 77 to 91 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from medquant.data.grids import AxisOrder, axis_order
from medquant.data.volume import Volume
from medquant.errors import GeometryError, InputError

Trust = Literal["affine", "directions", "mirrored"]
"""What placed a label: the affines; their directions alone, where the origins differ; or the Hounsfield units, against them."""

PLAUSIBLE_MEAN_HU, PLAUSIBLE_SOFT_SHARE = (40.0, 160.0), 0.85
"""Limits for a label that lies where the affines say: enhancement and fat differ between persons."""

CLEAR_MEAN_HU, CLEAR_SOFT_SHARE = (60.0, 130.0), 0.93
"""Limits for a label that is put elsewhere than the affines say."""

DOUBT_SHARE = 0.05
"""A mirrored label that fits by this much better puts the affines in doubt."""

SOFT_TISSUE_HU = (0, 200)


@dataclass(frozen=True)
class Fit:
    """What lies under a mask.

    Args:
        mean_hu: mean Hounsfield unit.
        soft_share: share of the voxels within ``SOFT_TISSUE_HU``.
    """

    mean_hu: float
    soft_share: float

    @property
    def is_plausible(self) -> bool:
        """Whether it may be a pancreas."""
        return PLAUSIBLE_MEAN_HU[0] <= self.mean_hu <= PLAUSIBLE_MEAN_HU[1] and self.soft_share >= PLAUSIBLE_SOFT_SHARE

    @property
    def is_clear(self) -> bool:
        """Whether it can hardly be anything but an organ like the pancreas."""
        return CLEAR_MEAN_HU[0] <= self.mean_hu <= CLEAR_MEAN_HU[1] and self.soft_share >= CLEAR_SOFT_SHARE

    def __str__(self) -> str:
        return f"mean {self.mean_hu:.0f} HU, {100 * self.soft_share:.0f} % soft tissue"


@dataclass(frozen=True)
class Placement:
    """How a label array becomes a mask on the scan's grid."""

    order: AxisOrder
    trust: Trust
    fit: Fit

    def to_json(self) -> dict[str, object]:
        """As plain values; see :meth:`from_json`."""
        return {
            "axes": list(self.order.axes),
            "reversed_axes": list(self.order.reversed_axes),
            "trust": self.trust,
            "mean_hu": self.fit.mean_hu,
            "soft_share": self.fit.soft_share,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Placement:
        """Inverse of :meth:`to_json`."""
        axes, turned = (tuple(data[key]) for key in ("axes", "reversed_axes"))
        fit = Fit(float(data["mean_hu"]), float(data["soft_share"]))
        return Placement(AxisOrder(axes, turned), cast("Trust", data["trust"]), fit)


def place_label(image: Volume, label: Volume, case: str) -> Placement:
    """Decide how a label lies on its scan.

    The affines decide as long as what lies under the label may be a pancreas. Where it may not, and clearly is one when the
    label is mirrored from front to back, the mirrored label is taken; ``Placement.trust`` tells, for the reader to say so.

    Args:
        image: Hounsfield units.
        label: 0 and 1, in its own axis order.
        case: name for messages.

    Raises:
        InputError: the label is empty.
        GeometryError: shapes or voxel sizes differ; neither place shows a pancreas; or the affines are in doubt because the
            mirrored label fits clearly better than one that barely fits.
    """
    trust: Trust = "affine"
    names = (f"the label of {case}", f"scan {case}")
    try:
        order = axis_order(label, image, names)
        if not label.has_geometry:
            trust = "directions"
    except GeometryError:
        trust = "directions"
        order = axis_order(_centred(label), _centred(image), names)
    mirrored = _mirrored(order, image)
    said, other = _fit(image, label, order, case), _fit(image, label, mirrored, case)
    in_doubt = other.is_clear and not said.is_clear and other.soft_share - said.soft_share >= DOUBT_SHARE
    if (said.is_clear or (said.is_plausible and trust == "affine")) and not in_doubt:
        return Placement(order, trust, said)
    if other.is_clear and not said.is_plausible:
        return Placement(mirrored, "mirrored", other)
    expected = f"expected {CLEAR_MEAN_HU[0]:.0f} to {CLEAR_MEAN_HU[1]:.0f} HU as of a pancreas"
    raise GeometryError(
        f"{case}: under the label lies, by the affines, {said}; with the label mirrored front to back, {other}; {expected} in one of "
        "them only.",
        "Look at scan and label in a viewer; take both from one download, or remove this case from the folder",
    )


def _fit(image: Volume, label: Volume, order: AxisOrder, case: str) -> Fit:
    # Slices first: that is how both lie in memory or in the cache.
    inside = order.apply(label.array).transpose(2, 1, 0) != 0
    slices = image.array.transpose(2, 1, 0)
    values = np.concatenate([page[drawn] for page, drawn in zip(slices, inside, strict=True)])
    if values.size == 0:
        raise InputError(f"the label of {case} is empty, expected voxels of value 1 (pancreas); download it again")
    low, high = SOFT_TISSUE_HU
    return Fit(float(values.mean(dtype=np.float64)), float(np.mean((values >= low) & (values <= high))))


def _mirrored(order: AxisOrder, image: Volume) -> AxisOrder:
    """The same order with the axis turned round that runs between the patient's back and front."""
    front = int(np.abs(image.affine[1, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)).argmax())
    turned = tuple(old != (axis == front) for axis, old in enumerate(order.reversed_axes))
    return replace(order, reversed_axes=(turned[0], turned[1], turned[2]))


def _centred(volume: Volume) -> Volume:
    """The same voxels about the origin: what is left to compare are shape, voxel size and directions."""
    affine: NDArray[np.float64] = volume.affine.copy()
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2)
    return Volume(array=volume.array, affine=affine, has_geometry=volume.has_geometry)
