"""The metrics of one case beside Dice: those of its challenge, and surface distances where the voxels have a size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import DatasetInfo, LabelArray, Volume
from medquant.evaluate.em_scores import stack_em_score
from medquant.evaluate.gm_challenge import GM_CHALLENGE_SCORES, gm_challenge_scores
from medquant.evaluate.surface_distances import surface_distances

NSD_TOLERANCE_MM = 1.0


def case_metrics(mask: LabelArray, truth: LabelArray, info: DatasetInfo, image: Volume) -> dict[str, float]:
    """Metrics by name.

    Args:
        mask: predicted class numbers, shape ``(I, J, K)``.
        truth: class numbers, the same shape.
        info: classes, and the names of the challenge's metrics.
        image: the image on the same grid, for the size of its voxels.

    Returns:
        The challenge's metrics by their plain names, and ``<class>_hd95_mm``, ``<class>_assd_mm``, ``<class>_nsd_1mm`` and
        ``<class>_missed`` for each scored class where the image has a geometry. NaN where a figure is not defined;
        ``missed`` is 1 where one of the masks is empty and the other is not, so that its mean is the share of cases that the
        distances leave out.
    """
    found: dict[str, float] = {}
    if "v_rand" in info.official_score:
        cell = members(info, "cell")[0]
        score = stack_em_score(mask == cell, truth == cell)
        found |= {"v_rand": score.v_rand, "v_info": score.v_info}
    if set(GM_CHALLENGE_SCORES) & set(info.official_score):
        gray = members(info, info.scored[0])
        challenge = gm_challenge_scores(_joined(mask, gray), _joined(truth, gray), image.spacing_mm)
        found |= {name: challenge[name] for name in info.official_score if name in challenge}
    if image.has_geometry:
        for name in info.scored:
            found |= _distances(name, mask, truth, members(info, name), image)
    return found


def members(info: DatasetInfo, name: str) -> tuple[int, ...]:
    """The class numbers of a scored name: a class, or a region of several."""
    if name in info.regions:
        return info.regions[name]
    return tuple(number for number, each in info.classes.items() if each == name)


def _joined(mask: LabelArray, numbers: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(mask == numbers[0] if len(numbers) == 1 else np.isin(mask, numbers), dtype=np.bool_)


def _distances(name: str, mask: LabelArray, truth: LabelArray, numbers: tuple[int, ...], image: Volume) -> dict[str, float]:
    predicted, true = _joined(mask, numbers), _joined(truth, numbers)
    found = surface_distances(predicted, true, image.spacing_mm)
    # The published surface Dice weighs by area; the distances are the border-voxel ones of MONAI and MedPy.
    elements = surface_distances(predicted, true, image.spacing_mm, surface="elements")
    return {
        f"{name}_hd95_mm": found.hd95,
        f"{name}_assd_mm": found.assd,
        f"{name}_nsd_1mm": elements.nsd(NSD_TOLERANCE_MM),
        f"{name}_missed": float(found.one_sided),
    }
