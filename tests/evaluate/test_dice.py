"""Overlap scores: expected values are counted by hand, or taken from MONAI where its rules are ours."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medquant.errors import InputError
from medquant.evaluate.dice import Overlap, Regions, confusion, dice, score_case

CLASSES = {0: "background", 1: "gray", 2: "white"}


def test_counts_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 0]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 2], [2, 2, 0, 0]], dtype=np.uint8)
    counts = confusion(prediction, truth, CLASSES)
    assert counts == {"background": Overlap(tp=2, fp=1, fn=1), "gray": Overlap(tp=1, fp=1, fn=1), "white": Overlap(tp=2, fp=1, fn=1)}
    assert list(counts) == ["background", "gray", "white"]
    assert counts["white"].dice == pytest.approx(4 / 6)
    assert counts["white"].iou == pytest.approx(2 / 4)
    assert counts["white"].precision == pytest.approx(2 / 3)
    assert counts["white"].recall == pytest.approx(2 / 3)


def test_precision_and_recall_are_not_swapped() -> None:
    counts = Overlap(tp=6, fp=2, fn=6)
    assert (counts.precision, counts.recall) == (6 / 8, 6 / 12)
    assert counts.dice == 12 / 20
    assert counts.iou == 6 / 14


def test_empty_masks_follow_the_stated_rule() -> None:
    empty, one = np.zeros((4, 4), dtype=np.uint8), np.eye(4, dtype=np.uint8)
    classes = {0: "background", 1: "organ"}
    assert math.isnan(dice(empty, empty, classes)["organ"])
    assert dice(one, empty, classes)["organ"] == 0.0
    assert dice(empty, one, classes)["organ"] == 0.0
    assert math.isnan(Overlap(0, 3, 0).recall)
    assert Overlap(0, 3, 0).precision == 0.0
    assert math.isnan(Overlap(0, 0, 3).precision)
    assert Overlap(0, 0, 3).recall == 0.0


def test_class_numbers_need_not_be_dense_or_sorted() -> None:
    truth, prediction = np.array([200, 7, 7, 200]), np.array([200, 7, 200, 7])
    assert confusion(prediction, truth, {200: "a", 7: "b"}) == {"a": Overlap(1, 1, 1), "b": Overlap(1, 1, 1)}


def test_counts_over_chunks_equal_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    truth, prediction = rng.integers(0, 3, (2, 5, 7, 11), dtype=np.uint8)
    whole = confusion(prediction, truth, CLASSES)
    monkeypatch.setattr("medquant.evaluate.dice._CHUNK_VOXELS", 13)
    assert confusion(prediction, truth, CLASSES) == whole


def test_a_case_is_scored_over_all_its_slices_together() -> None:
    # slice 0: truth 4, found 4; slice 1: truth 1, found 0, 3 false. Together 2·4 / (5 + 7); the mean over slices would be 1/2.
    truth, prediction = np.zeros((2, 2, 2), dtype=np.uint8), np.zeros((2, 2, 2), dtype=np.uint8)
    truth[:, :, 0] = prediction[:, :, 0] = 1
    truth[0, 0, 1] = 1
    prediction[:, :, 1] = [[0, 1], [1, 1]]
    assert dice(prediction, truth, {0: "background", 1: "organ"})["organ"] == pytest.approx(8 / 12)


def test_agrees_with_monai_and_dice_follows_iou() -> None:
    torch = pytest.importorskip("torch")
    from monai.metrics.meandice import compute_dice

    rng = np.random.default_rng(1)
    for _ in range(50):
        truth, prediction = rng.integers(0, 3, (2, 6, 6))
        counts = confusion(prediction, truth, CLASSES)
        one_hot = [torch.from_numpy(np.stack([mask == c for c in CLASSES])[None].astype(np.float32)) for mask in (prediction, truth)]
        expected = compute_dice(one_hot[0], one_hot[1], include_background=True)[0].tolist()
        for overlap, value in zip(counts.values(), expected, strict=True):
            assert overlap.tp + overlap.fn > 0  # MONAI gives NaN wherever the truth is empty; our rule differs there
            assert overlap.dice == pytest.approx(value)
            assert overlap.dice == pytest.approx(2 * overlap.iou / (1 + overlap.iou))


def test_score_case_reports_the_scored_classes_and_names_the_empty_ones() -> None:
    truth, prediction = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    score = score_case("sc01", prediction, truth, CLASSES, scored=("gray", "white"), metrics={"v_rand": 0.5})
    assert score.id == "sc01"
    assert list(score.dice) == ["gray", "white"]
    assert score.dice["gray"] == pytest.approx(2 / 3)
    assert score.empty == ("white",)
    assert score.metrics["v_rand"] == 0.5
    assert score.metrics["gray_precision"] == 1.0
    assert score.metrics["gray_recall"] == 0.5


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\).*\(3, 2\)"),
        (np.array([0, 9]), np.array([0, 1]), "prediction mask holds class 9"),
        (np.array([0, 1]), np.array([-1, 254]), "truth mask holds class -1, 254"),
        (np.array([0.0, 1.0]), np.array([0, 1]), "float64"),
    ],
)
def test_masks_that_cannot_be_scored_are_refused(prediction: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confusion(prediction, truth, CLASSES)


def test_an_unknown_scored_class_is_refused() -> None:
    with pytest.raises(InputError, match="lesion"):
        score_case("sc01", np.zeros(2, int), np.zeros(2, int), CLASSES, scored=("lesion",))


# ----------------------------------------------------------------------------------------------------------- regions

CORD: Regions = {"cord": (1, 2)}


def test_a_region_is_counted_by_hand() -> None:
    # gray called white is right in the cord and wrong in both classes
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 0]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 2], [2, 2, 0, 0]], dtype=np.uint8)
    counts = confusion(prediction, truth, CLASSES, CORD)
    assert list(counts) == ["background", "gray", "white", "cord"]
    assert counts["cord"] == Overlap(tp=4, fp=1, fn=1)
    del counts["cord"]
    assert counts == confusion(prediction, truth, CLASSES)


def test_a_region_equals_joined_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.evaluate.dice._CHUNK_VOXELS", 50)
    rng = np.random.default_rng(11)
    classes = {7: "a", 0: "b", 200: "c", 3: "d"}
    truth, prediction = rng.choice(list(classes), size=(2, 9, 8, 7))
    for regions in ({"x": (0,)}, {"x": (200, 7), "y": (3, 0, 7)}, {"all": (0, 3, 7, 200)}):
        found = confusion(prediction, truth, classes, regions)
        for name, numbers in regions.items():
            one, two = np.isin(prediction, numbers), np.isin(truth, numbers)
            expected = Overlap(int((one & two).sum()), int((one & ~two).sum()), int((~one & two).sum()))
            assert found[name] == expected
            assert dice(prediction, truth, classes, regions)[name] == expected.dice


def test_score_case_reports_a_region_like_a_class() -> None:
    truth, prediction = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 0])
    score = score_case("sc01", prediction, truth, CLASSES, scored=("gray", "cord"), regions=CORD)
    assert score.dice == {"gray": 0.0, "cord": pytest.approx(4 / 5)}
    assert score.metrics["cord_recall"] == pytest.approx(2 / 3)
    assert score.metrics["cord_iou"] == pytest.approx(2 / 3)
    assert list(score_case("sc01", prediction, truth, CLASSES, regions=CORD).dice) == ["background", "gray", "white", "cord"]
    nothing = np.zeros(4, int)
    assert score_case("sc01", nothing, nothing, CLASSES, scored=("cord",), regions=CORD).empty == ("cord",)
    assert score_case("sc01", prediction, truth, CLASSES) == score_case("sc01", prediction, truth, CLASSES, regions={})


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"cord": (1, 5)}, r"region 'cord' joins \(1, 5\)"),
        ({"cord": ()}, "region 'cord' joins"),
        ({"cord": (1, 1)}, "each once"),
        ({"white": (1, 2)}, "region 'white' has the name of a class"),
    ],
)
def test_regions_that_do_not_fit_the_classes_are_refused(regions: Regions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confusion(np.zeros(2, int), np.zeros(2, int), CLASSES, regions)
