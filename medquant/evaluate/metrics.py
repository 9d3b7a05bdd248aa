"""The scores that exist, by the names they have in ``eval.json``."""

from __future__ import annotations

from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "dice": "2 TP / (2 TP + FP + FN) by class over a whole case; nothing to score where truth and prediction are both empty",
    "iou": "TP / (TP + FP + FN) by class",
    "jaccard": "the same as iou, under the name the gray matter challenge uses",
    "precision": "TP / (TP + FP) by class",
    "recall": "TP / (TP + FN) by class",
    "sensitivity": "the same as recall, under the name the gray matter challenge uses",
    "specificity": "TN / (TN + FP); grows with the field of view",
    "conformity": "3 − 2 / Dice, at most 1, negative below a Dice of 2/3; no value at a Dice of 0",
    "hd": "Hausdorff distance in mm, the largest distance between the two surfaces; no value where one mask is empty",
    "hd95": "larger of the two directed 95th percentiles of the distances between the surfaces, mm; no value where one mask is empty",
    "assd": "average symmetric surface distance, mm: mean over the points of both surfaces; no value where one mask is empty",
    "masd": "mean of the two directed mean surface distances, mm; no value where one mask is empty",
    "nsd": "normalised surface Dice: share of both surfaces within a tolerance in mm of the other; 0 where one mask is empty",
    "msd": "mean absolute surface distance of the gray matter challenge, mm; here the same as assd",
    "shd": "Hausdorff distance in mm between the skeletons of all slices (gray matter challenge)",
    "smd": "larger of the two directed median distances in mm between the skeletons of all slices (gray matter challenge)",
    "v_rand": "foreground-restricted Rand score after border thinning (ISBI 2012), mean over slices",
    "v_info": "foreground-restricted information-theoretic score after border thinning (ISBI 2012), mean over slices",
}
