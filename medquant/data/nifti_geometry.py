"""Where the voxels of a NIfTI file lie: which of the header's transforms counts, and when they are not believed.

The rules, in order:

- Both codes 0: the file has no place, only voxel sizes (method 1 of nifti1.h); they must be positive and finite.
- One code above 0: that transform. The voxel sizes of an sform are those of its matrix; ``pixdim`` is not looked at.
- Both above 0: the sform, as in nibabel, provided the qform puts no voxel of the grid more than half a voxel elsewhere.
  Rounding and re-written headers stay below 0.03 voxels in real files; above a half, masks would land on the wrong voxels.
- The matrix must be finite and invertible. Metres and micrometres are turned into millimetres.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medquant.data.nifti_header import NiftiHeader
from medquant.data.volume import Volume
from medquant.errors import GeometryError, UsageError, unknown_name

TransformRule = Literal["agreed", "sform", "qform"]
"""``agreed``: the rules above. ``sform``, ``qform``: that one, whatever the other says."""

MOST_DISAGREEMENT_VOXELS = 0.5
"""How far apart, in voxels, sform and qform may put a corner of the grid."""

_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_HIGHEST_CODE = 5


def affine_mm(path: Path, header: NiftiHeader, rule: TransformRule = "agreed") -> tuple[NDArray[np.float64], bool]:
    """Choose and check the transform of a header.

    Returns:
        Affine of shape ``(4, 4)``, voxel index → RAS millimetres, and whether the header names a transform at all. Where it
        does not, the affine is nominal: voxel sizes on the diagonal.

    Raises:
        GeometryError: the transform is missing, not finite, singular, or contradicted by the other one.
        UsageError: the rule is unknown.
    """
    if rule not in get_args(TransformRule):
        raise UsageError(unknown_name("transform", rule, get_args(TransformRule)))
    for name, code in (("qform", header.qform_code), ("sform", header.sform_code)):
        if not 0 <= code <= _HIGHEST_CODE:
            raise GeometryError(
                f"{path}: found {name} code {code}, expected 0 to {_HIGHEST_CODE}; the header is damaged, so convert it again"
            )
    if header.unit_code not in _UNITS_MM:
        raise GeometryError(
            f"{path}: found unit of length {header.unit_code}, expected 0 to 3 (m, mm, µm); correct xyzt_units in the header"
        )
    name, matrix = _choose(path, header, rule)
    try:
        Volume(array=np.empty((1, 1, 1), dtype=np.uint8), affine=matrix)
    except GeometryError as error:
        raise GeometryError(
            f"{path}: the {name} is not finite and invertible, so the place of the voxels is unknown; correct the header, or choose the "
            "other transform if it is right"
        ) from error
    affine = np.diag([*[_UNITS_MM[header.unit_code]] * 3, 1.0]) @ matrix
    return affine, header.qform_code > 0 or header.sform_code > 0


def _choose(path: Path, header: NiftiHeader, rule: TransformRule) -> tuple[str, NDArray[np.float64]]:
    """Name and matrix, in the header's unit, of the transform that counts."""
    if rule == "sform" or (rule == "agreed" and header.sform_code > 0):
        if header.sform_code == 0:
            raise GeometryError(f"{path}: the sform was asked for, but its code is 0; leave the choice out")
        if rule == "agreed" and header.qform_code > 0:
            _check_agreement(path, header)
        return "sform", header.sform
    if rule == "qform" and header.qform_code == 0:
        raise GeometryError(f"{path}: the qform was asked for, but its code is 0; leave the choice out")
    if not all(np.isfinite(length) and length > 0 for length in header.pixdim):
        sizes = ", ".join(f"{length:g}" for length in header.pixdim)
        raise GeometryError(f"{path}: found voxel sizes {sizes}, expected positive numbers; correct pixdim in the header")
    if header.qform_code == 0:
        return "list of voxel sizes", np.diag([*header.pixdim, 1.0])
    return "qform", _usable_qform(path, header)


def _usable_qform(path: Path, header: NiftiHeader) -> NDArray[np.float64]:
    if header.qform is None or not np.isfinite(header.qform).all():
        remedy = "take the sform" if header.sform_code > 0 else "correct the header"
        raise GeometryError(f"{path}: the qform cannot be computed (quaternion, qfac or voxel sizes are impossible); {remedy}")
    return header.qform


def _check_agreement(path: Path, header: NiftiHeader) -> None:
    qform = _usable_qform(path, header)
    # A singular or NaN sform has no voxels to measure in; it is refused, with its own words, by the caller.
    if not np.isfinite(header.sform).all() or np.linalg.matrix_rank(header.sform) < 4:
        return
    lengths = (*header.shape, 1, 1)[:3]
    corners = np.array([[i, j, k, 1.0] for i in (0, lengths[0] - 1) for j in (0, lengths[1] - 1) for k in (0, lengths[2] - 1)]).T
    apart = np.linalg.norm((np.linalg.solve(header.sform, qform @ corners) - corners)[:3], axis=0).max()
    if not apart <= MOST_DISAGREEMENT_VOXELS:
        raise GeometryError(
            f"{path}: qform and sform put the voxels up to {apart:.3g} voxels apart, expected at most {MOST_DISAGREEMENT_VOXELS}; "
            "say which one is right (transform: sform or qform), or copy it over the other"
        )
