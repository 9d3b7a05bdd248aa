"""Scores of masks that are known beforehand: Dice counted by hand, documents without NaN, missing cases named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, PreparedCase, prepare_case
from medquant.data.prepared_grid import GridRule
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Dataset, DatasetInfo, FloatArray, LabelArray, Volume
from medquant.errors import InputError
from medquant.evaluate.em_scores import stack_em_score
from medquant.evaluate.evaluation import baseline_document, evaluate_cases, mean_dice, scores_document, select_cases
from medquant.predict.predictors import MaskPredictor
from medquant.predict.windows import predict_case

INFO = DatasetInfo(name="toy", classes={0: "background", 1: "organ", 2: "lesion"}, scored=("organ", "lesion"))
PLAIN = Normalisation("range", 0.0, 1.0)
SAMPLES = 10_000
"""More slices than any toy has: all are watched."""


class _Threshold(MaskPredictor):
    """Calls a pixel by its grey value: it predicts exactly what the image says, whatever the truth is."""

    name = "threshold"

    def __init__(self) -> None:
        super().__init__(size_multiple=4)
        self.shapes: list[tuple[int, ...]] = []

    def _predict(self, images: FloatArray) -> LabelArray:
        self.shapes.append(images.shape)
        return np.rint(images[:, 0] * 2).astype(np.uint8)

    def _levels(self, images: FloatArray) -> FloatArray:
        return images


def _prepared(*cases: Case, rule: GridRule | None = None) -> list[PreparedCase]:
    return [prepare_case(case, Preparation(PLAIN, rule or GridRule()), ArrayCache(None)) for case in cases]


def _case(name: str, predicted: NDArray[np.uint8], truth: NDArray[np.uint8] | None) -> Case:
    # Without a geometry no distances are measured, which have tests of their own.
    image = Volume((predicted / 2).astype(np.float32), np.eye(4), has_geometry=False)
    return Case(name, name, "", image, None if truth is None else Volume(truth, np.eye(4), has_geometry=False), f"{name}.nii")


def _ramp(shape: tuple[int, int, int], **values: tuple[int, int]) -> NDArray[np.uint8]:
    """A flat run of class numbers: so many of each, the rest background."""
    flat = np.zeros(int(np.prod(shape)), dtype=np.uint8)
    for number, (start, stop) in zip((1, 2), values.values(), strict=False):
        flat[start:stop] = number
    return flat.reshape(shape)


SHAPE = (5, 6, 2)
# Case a: organ predicted 0..10, true 5..15: 5 in common of 10 and 10. Lesion predicted 20..24, true 20..28: 4 of 4 and 8.
A = _case("a", _ramp(SHAPE, organ=(0, 10), lesion=(20, 24)), _ramp(SHAPE, organ=(5, 15), lesion=(20, 28)))
# Case b: organ all right; no lesion in truth or prediction, so nothing to score.
B = _case("b", _ramp(SHAPE, organ=(0, 30)), _ramp(SHAPE, organ=(0, 30)))
# Case c: no organ found; a lesion where there is none.
C = _case("c", _ramp(SHAPE, organ=(0, 0), lesion=(0, 3)), _ramp(SHAPE, organ=(40, 50)))


def test_dice_by_hand_in_the_document() -> None:
    evaluation = evaluate_cases(_prepared(A, B, C), INFO, _Threshold())
    document = scores_document(evaluation, INFO)
    cases = {case["id"]: case for case in document["cases"]}  # type: ignore[attr-defined]
    assert cases["a"]["dice"] == {"organ": 0.5, "lesion": pytest.approx(8 / 12, abs=1e-6)}
    assert cases["b"]["dice"] == {"organ": 1.0, "lesion": None}
    assert cases["c"]["dice"] == {"organ": 0.0, "lesion": 0.0}
    assert cases["b"]["empty"] == ["lesion"]
    dice = document["dice"]
    assert isinstance(dice, dict)
    # 1/2, 1 and 0: mean 1/2, sample deviation 1/2.
    assert (dice["organ"]["mean"], dice["organ"]["std"], dice["organ"]["cases"]) == (0.5, 0.5, 3)
    assert (dice["lesion"]["mean"], dice["lesion"]["cases"], dice["lesion"]["empty"]) == (pytest.approx(1 / 3, abs=1e-6), 2, 1)
    assert document["engine"] == "threshold"
    assert document["metrics"] == {}


def test_documents_hold_no_nan() -> None:
    cases = [B, _case("d", _ramp(SHAPE), _ramp(SHAPE))]
    for some in (cases, cases[1:]):
        evaluation = evaluate_cases(_prepared(*some), INFO, _Threshold())
        document = {**scores_document(evaluation, INFO), "baseline": baseline_document(some, INFO)}
        text = json.dumps(document, allow_nan=False)
        assert "NaN" not in text
    assert document["dice"]["organ"]["mean"] is None  # type: ignore[index, call-overload]
    assert document["dice"]["organ"]["interval_95"] is None  # type: ignore[index, call-overload]


def test_what_is_watched_in_training_is_the_same_mean() -> None:
    found = mean_dice(_prepared(A, B, C), INFO, _Threshold(), SAMPLES)
    assert found == {"organ": pytest.approx(0.5), "lesion": pytest.approx(1 / 3)}
    empty = mean_dice(_prepared(B), INFO, _Threshold(), SAMPLES)
    assert empty["organ"] == 1.0
    assert math.isnan(empty["lesion"])


def test_masks_lie_on_the_grid_of_the_image() -> None:
    predictor = _Threshold()
    mask = predict_case(_prepared(A)[0], predictor)
    np.testing.assert_array_equal(mask, np.rint(A.image.array.astype(np.float64) * 2))
    assert (mask.shape, mask.flags["C_CONTIGUOUS"]) == (SHAPE, True)
    # Two slices of 5×6, padded to multiples of 4.
    assert predictor.shapes == [(2, 1, 8, 8)]


def test_only_so_many_slices_are_watched() -> None:
    # Ten slices, the organ right in the odd ones and missed in the even ones; of five evenly spaced ones the odd ones are seen.
    truth = np.zeros((8, 8, 10), np.uint8)
    truth[:4] = 1
    predicted = truth * (np.arange(10, dtype=np.uint8) % 2)
    (case,) = _prepared(_case("many", predicted, truth))
    predictor = _Threshold()
    # Slices 1, 3, 5, 7 and 9.
    assert mean_dice([case], INFO, predictor, 5)["organ"] == 1.0
    assert predictor.shapes == [(5, 1, 8, 8)]
    assert mean_dice([case], INFO, predictor, 10)["organ"] == pytest.approx(2 * 5 / (5 + 10))
    # Every case is looked at, however few slices are asked for.
    assert mean_dice(_prepared(A, B), INFO, predictor, 1)["organ"] > 0
    assert predictor.shapes[-2:] == [(1, 1, 8, 8), (1, 1, 8, 8)]


@pytest.mark.parametrize("rule", [GridRule("sagittal"), GridRule("coronal", (0.5, 0.5)), GridRule("axial", (0.7, 0.7))])
def test_scores_are_counted_on_the_grid_of_the_file(rule: GridRule) -> None:
    # Stored axes run left, head and back; a box whose prediction lies one stored voxel further along the first axis.
    affine = np.array([[-1.0, 0, 0, 5], [0, 0, -1.0, 6], [0, 1.0, 0, 7], [0, 0, 0, 1]])
    truth = np.zeros((24, 22, 20), np.uint8)
    truth[6:16, 6:16, 5:15] = 1
    image = np.roll(truth, 1, axis=0) / np.float32(2)
    case = Case("a", "a", "", Volume(image, affine), Volume(truth, affine), "a.nii")
    seen = prepare_case(case, Preparation(PLAIN, rule), ArrayCache(None))
    mask = predict_case(seen, _Threshold())
    assert mask.shape == truth.shape
    if rule.spacing_mm is None:
        np.testing.assert_array_equal(mask, np.roll(truth, 1, axis=0))
    (score,) = evaluate_cases([seen], INFO, _Threshold()).scores
    # 9 of 10 layers agree; resampling moves the border by less than a tenth of a voxel's volume.
    assert score.dice["organ"] == pytest.approx(0.9, abs=1e-9 if rule.spacing_mm is None else 0.06)
    assert score.metrics["organ_missed"] == 0.0
    if rule.spacing_mm is None:
        # The faces at either end lie 1 mm apart, all others coincide.
        assert score.metrics["organ_hd95_mm"] == pytest.approx(1.0)


def test_only_the_masks_that_are_wanted_are_kept() -> None:
    assert set(evaluate_cases(_prepared(A, B), INFO, _Threshold()).masks) == {"a", "b"}
    assert set(evaluate_cases(_prepared(A, B), INFO, _Threshold(), keep_masks=["b"]).masks) == {"b"}
    assert not evaluate_cases(_prepared(A, B), INFO, _Threshold(), keep_masks=()).masks


def test_regions_are_scored_as_one_class() -> None:
    # Organ and lesion joined: A predicts 10 + 4 voxels of 10 + 8 true ones, 5 + 4 in common.
    info = DatasetInfo("toy", INFO.classes, ("organ", "both"), regions={"both": (1, 2)})
    (score,) = evaluate_cases(_prepared(A), info, _Threshold()).scores
    assert score.dice == {"organ": 0.5, "both": pytest.approx(2 * 9 / (14 + 18))}
    assert mean_dice(_prepared(A), info, _Threshold(), SAMPLES)["both"] == pytest.approx(2 * 9 / 32)


def test_baselines_by_hand() -> None:
    # A holds 10 organ and 8 lesion voxels of 60; everything called organ scores 2·10 / (60 + 10).
    found = baseline_document([A], INFO)
    assert found == {
        "all_background": {"organ": 0.0, "lesion": 0.0},
        "all_organ": {"organ": pytest.approx(20 / 70, abs=1e-6), "lesion": 0.0},
        "all_lesion": {"organ": 0.0, "lesion": pytest.approx(16 / 68, abs=1e-6)},
    }


def test_the_scores_of_the_em_challenge_are_those_of_its_cells() -> None:
    info = DatasetInfo("isbi_em", {0: "membrane", 1: "cell"}, ("cell", "membrane"), ("v_rand", "v_info"))
    rng = np.random.default_rng(0)
    truth = np.ones((24, 24, 1), dtype=np.uint8)
    truth[8, :] = truth[:, 12] = 0
    predicted = np.where(rng.random(truth.shape) < 0.02, 1 - truth, truth).astype(np.uint8)
    document = scores_document(evaluate_cases(_prepared(_case("s", predicted * 2, truth)), info, _Halved()), info)
    expected = stack_em_score(predicted == 1, truth == 1)
    assert document["metrics"]["v_rand"]["mean"] == pytest.approx(expected.v_rand, abs=1e-6)  # type: ignore[index, call-overload]
    assert document["cases"][0]["v_info"] == pytest.approx(expected.v_info, abs=1e-6)  # type: ignore[index, call-overload]
    assert 0.5 < expected.v_rand < 1


class _Halved(_Threshold):
    def _predict(self, images: FloatArray) -> LabelArray:
        return np.rint(images[:, 0]).astype(np.uint8)


def test_seconds_and_progress_are_told_by_case() -> None:
    told: list[str] = []
    evaluation = evaluate_cases(_prepared(A, C), INFO, _Threshold(), told.append)
    assert told == ["a", "c"]
    assert evaluation.elapsed_s.keys() == {"a", "c"}
    assert all(seconds > 0 for seconds in evaluation.elapsed_s.values())


def test_unlabelled_and_missing_cases_are_named() -> None:
    unlabelled = _case("u", _ramp(SHAPE), None)
    with pytest.raises(InputError, match=r"u\.nii: case u has no mask"):
        evaluate_cases(_prepared(unlabelled), INFO, _Threshold())
    with pytest.raises(InputError, match=r"u\.nii: case u has no mask"):
        baseline_document([unlabelled], INFO)
    dataset = Dataset(INFO, (A, B, C), None, "a toy", "0")
    assert [case.id for case in select_cases(dataset, ["c", "a"])] == ["a", "c"]
    with pytest.raises(InputError, match="toy: 2 cases asked for, missing: x"):
        select_cases(dataset, ["a", "x"])
    with pytest.raises(InputError, match="0 cases asked for"):
        select_cases(dataset, [])
