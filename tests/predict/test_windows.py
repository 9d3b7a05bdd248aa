"""Slabs put to their places on the canvas. Expected: every slice predicted alone, stacked, and brought back by ``restore``."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import RANGE, ct_values, oblique, unet

from medquant.data.prepared import Preparation, PreparedCase, Window, prepare_case
from medquant.data.prepared_grid import GridRule
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
from medquant.predict import windows as windows_module
from medquant.predict.predictors import ProgramPredictor
from medquant.predict.windows import predict_canvas, predict_case, predict_window

PREDICTOR = ProgramPredictor(unet(4), 4, "reference")


def prepared(rule: GridRule, window: Window | None) -> PreparedCase:
    case = Case("c", "c", "", Volume(ct_values((31, 26, 23)), oblique(flips=(1, -1, -1))), None, "made")
    found = prepare_case(case, Preparation(RANGE, rule), ArrayCache(None))
    return found if window is None else found.with_window(window)


@pytest.mark.parametrize("at_once", [1, 3, 16])
@pytest.mark.parametrize("window", [None, Window((2, 5, 4), (17, 20, 13)), Window((0, 0, 6), (20, 22, 11))])
@pytest.mark.parametrize("rule", [GridRule("axial"), GridRule("sagittal"), GridRule("axial", (1.1, 0.95)), GridRule("stored")])
def test_slices_come_to_their_places(rule: GridRule, window: Window | None, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "SLICES_AT_ONCE", at_once)
    case = prepared(rule, window)
    alone = np.stack([PREDICTOR(case.image(k)[None])[0] for k in range(case.slices)], axis=2)
    assert len(np.unique(alone)) > 2
    told: list[tuple[int, int]] = []
    canvas = predict_canvas(case, PREDICTOR, lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(canvas, case.restore(alone))
    np.testing.assert_array_equal(predict_case(case, PREDICTOR), canvas)
    np.testing.assert_array_equal(predict_window(case, PREDICTOR), alone)
    # Slices lie one behind the other in memory, as they are written.
    assert canvas.T.flags.c_contiguous
    assert told[-1] == (case.slices, case.slices)
    assert len(told) == -(-case.slices // at_once)
