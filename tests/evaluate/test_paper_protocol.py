"""Scores by slice, against counts by hand; the threshold and the statistics a torch network is evaluated with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, PreparedCase, prepare_cases
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, DatasetInfo, Volume
from medquant.errors import InputError
from medquant.evaluate.paper_protocol import evaluate_slices
from medquant.predict.float_predictor import Decision, FloatPredictor
from medquant.quant.batch_norm import with_batch_statistics

INFO = DatasetInfo("made", {0: "background", 1: "organ"}, ("organ",))


class _Copy(nn.Module):
    """The image itself is the logit."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x * self.one


def _case(name: str, logits: np.ndarray, mask: np.ndarray) -> PreparedCase:
    volumes = [Volume(array, np.eye(4)) for array in (logits.astype(np.float32), mask.astype(np.uint8))]
    case = Case(name, name, "", volumes[0], volumes[1], "made")
    return prepare_cases([case], Preparation(Normalisation("range", 0.0, 1.0)), ArrayCache(None))[0]


def _three_slices() -> PreparedCase:
    logits, mask = np.zeros((4, 4, 3)), np.zeros((4, 4, 3))
    logits[:2, :, 0] = 1.0  # predicted 8, true 4 of them: Dice 8 / 12
    mask[0, :, 0] = 1
    logits[0, 0, 1] = 1.0  # predicted 1, nothing true: 0
    return _case("a", logits, mask)  # the third slice is empty in both: 0 as well


def test_slices_are_scored_by_themselves_and_empty_ones_count_as_zero() -> None:
    found = evaluate_slices([_three_slices()], INFO, FloatPredictor(_Copy(), 1))
    assert [score.id for score in found.scores] == ["a slice 0", "a slice 1", "a slice 2"]
    assert [score.dice["organ"] for score in found.scores] == pytest.approx([8 / 12, 0.0, 0.0])
    assert [score.empty for score in found.scores] == [(), (), ("organ",)]
    assert found.dice_summary("organ").mean == pytest.approx(8 / 36)
    assert int(found.masks["a"].sum()) == 9


def test_four_slices_are_run_together_across_cases_of_one_size() -> None:
    network = _Copy()
    cases = [_three_slices(), _three_slices(), _case("wide", np.zeros((4, 8, 1)), np.ones((4, 8, 1)))]
    evaluate_slices(cases, INFO, FloatPredictor(network, 1), keep_masks=())
    assert network.shapes == [(4, 1, 4, 4), (2, 1, 4, 4), (1, 1, 4, 8)]


def test_a_case_without_a_mask_is_refused() -> None:
    case = _three_slices()
    bare = PreparedCase(case.case, case.grid, case.normalisation, case.channels, (), case.window, case.statistics)
    with pytest.raises(InputError, match="case a has no mask"):
        evaluate_slices([bare], INFO, FloatPredictor(_Copy(), 1))


def test_the_threshold_is_a_probability() -> None:
    # the logit of 0.999 is ln 999 = 6.9068
    images = np.array([[[[-1.0, 0.1, 6.9, 6.91]]]], dtype=np.float32)
    assert FloatPredictor(_Copy(), 1)(images).tolist() == [[[0, 1, 1, 1]]]
    assert FloatPredictor(_Copy(), 1, decision=Decision(threshold=0.999))(images).tolist() == [[[0, 0, 0, 1]]]
    assert Decision(threshold=0.999).level == pytest.approx(math.log(999))


def test_batch_statistics_normalise_what_is_shown_and_leave_what_is_kept() -> None:
    norm = nn.BatchNorm2d(1, affine=False, eps=1e-12).eval()
    images = torch.tensor([[[[1.0, 3.0]]]])
    with with_batch_statistics(norm), torch.no_grad():
        assert norm(images).flatten().tolist() == pytest.approx([-1.0, 1.0])  # mean 2, deviation 1
    assert norm(images).flatten().tolist() == [1.0, 3.0]
    assert (float(norm.running_mean), float(norm.running_var), int(norm.num_batches_tracked)) == (0.0, 1.0, 0)  # type: ignore[arg-type]
