"""The scores that exist, by the names they have in ``eval.json``."""

from __future__ import annotations

from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "dice": "2 TP / (2 TP + FP + FN) by class over a whole case; nothing to score where truth and prediction are both empty",
    "iou": "TP / (TP + FP + FN) by class",
    "precision": "TP / (TP + FP) by class",
    "recall": "TP / (TP + FN) by class",
    "v_rand": "foreground-restricted Rand score after border thinning (ISBI 2012), mean over slices",
    "v_info": "foreground-restricted information-theoretic score after border thinning (ISBI 2012), mean over slices",
}
