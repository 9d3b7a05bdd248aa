"""Which metrics a case gets, and by which names; the figures themselves have tests of their own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from medquant.data.datasets.isbi_em import INFO as EM
from medquant.data.datasets.spinal_gm import INFO as SPINAL
from medquant.data.volume import Volume
from medquant.evaluate.case_metrics import case_metrics, members
from medquant.evaluate.gm_challenge import gm_challenge_scores

SPACING = np.diag([0.5, 0.5, 3.0, 1.0])


def _masks() -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((20, 20, 3), dtype=np.uint8)
    truth[5:15, 5:15], truth[8:12, 8:12] = 2, 1
    return np.roll(truth, 1, axis=0), truth


def test_spinal_gray_matter() -> None:
    prediction, truth = _masks()
    found = case_metrics(prediction, truth, SPINAL, Volume(truth, SPACING))
    expected = gm_challenge_scores(prediction == 1, truth == 1, (0.5, 0.5, 3.0))
    for name in SPINAL.official_score:
        assert found[name] == expected[name]
    # The cord is moved by one pixel of 0.5 mm: no surface voxel is farther away than that.
    assert found["cord_hd95_mm"] == 0.5
    assert 0 < found["cord_assd_mm"] < 0.5
    assert found["cord_nsd_1mm"] == 1.0
    assert found["cord_missed"] == 0.0
    assert members(SPINAL, "cord") == (1, 2)


def test_a_missed_class_is_counted() -> None:
    _, truth = _masks()
    found = case_metrics(np.zeros_like(truth), truth, SPINAL, Volume(truth, SPACING))
    assert found["gray_matter_missed"] == 1.0
    assert math.isnan(found["gray_matter_hd95_mm"])
    assert found["gray_matter_nsd_1mm"] == 0.0


def test_no_distances_without_geometry_and_em_scores() -> None:
    truth = np.zeros((16, 16, 1), dtype=np.uint8)
    truth[:7], truth[9:] = 1, 1
    found = case_metrics(truth, truth, EM, Volume(truth, np.eye(4), has_geometry=False))
    assert found == {"v_rand": 1.0, "v_info": 1.0}
    plain = replace(EM, official_score=())
    assert case_metrics(truth, truth, plain, Volume(truth, np.eye(4), has_geometry=False)) == {}
