"""What of a case a network sees. Expected: boxes counted by hand, or from the millimetres of the object and the margin."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, PreparedCase, Window, prepare_case
from medquant.data.prepared_grid import GridRule, SliceAxis
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, DatasetInfo, FloatArray, LabelArray, Volume
from medquant.errors import CheckpointError, InputError
from medquant.evaluate.evaluation import evaluate_cases
from medquant.predict.predictors import MaskPredictor
from medquant.predict.regions import CoarseRegion, TruthCentredRegion, WholeRegion, largest_piece, region_from_json

RANGE = Normalisation("range", 0.0, 100.0)
INFO = DatasetInfo("toy", {0: "background", 1: "organ"}, ("organ",))


class _Threshold(MaskPredictor):
    """Finds what is brighter than half of the range."""

    name = "threshold"

    def __init__(self) -> None:
        super().__init__(size_multiple=8)

    def _predict(self, images: FloatArray) -> LabelArray:
        return (images[:, 0] > 0.5).astype(np.uint8)

    def _levels(self, images: FloatArray) -> FloatArray:
        return images[:, :1] - np.float32(0.5)


def _case(shape: tuple[int, int, int], box: tuple[slice, slice, slice], affine: NDArray[np.float64] | None = None, **mask: object) -> Case:
    """A bright box in darkness; the mask is the box unless another is given."""
    image = np.zeros(shape, np.float32)
    image[box] = 100
    truth = mask.get("mask", (image > 0).astype(np.uint8))
    placed = np.eye(4) if affine is None else affine
    volume = None if truth is None else Volume(np.asarray(truth, np.uint8), placed)
    return Case("c", "c", "", Volume(image, placed), volume, "made c")


def _prepare(case: Case, rule: GridRule) -> PreparedCase:
    return prepare_case(case, Preparation(RANGE, rule), ArrayCache(None))


def _finder(rule: GridRule, margin_mm: float, minimum: tuple[int, int] = (1, 1)) -> CoarseRegion:
    return CoarseRegion(_Threshold(), Preparation(RANGE, rule), margin_mm, minimum)


STORED = GridRule("stored")
BOX = (slice(10, 16), slice(20, 31), slice(4, 7))


# --- the coarse region ------------------------------------------------------------------------------------------------


def test_on_one_grid_the_window_is_the_box_and_its_margin() -> None:
    affine = np.diag([0.5, 0.25, 2.0, 1.0])
    case = _prepare(_case((40, 50, 12), BOX, affine), STORED)
    # A margin of 2 mm is 4, 8 and 1 voxels; of 2.1 mm it is 4.2, 8.4 and 1.05, hence one voxel more at every side.
    assert _finder(STORED, 2.0).place(case).window == Window((6, 12, 3), (20, 39, 8))
    assert _finder(STORED, 2.1).place(case).window == Window((5, 11, 2), (21, 40, 9))
    assert _finder(STORED, 0.0).place(case).window == Window((10, 20, 4), (16, 31, 7))


def test_the_window_stays_inside_and_keeps_its_size() -> None:
    case = _prepare(_case((40, 50, 12), (slice(0, 3), slice(46, 50), slice(0, 12))), STORED)
    found = _finder(STORED, 5.0).place(case).window
    # 3 + 10 and 4 + 10 voxels, pushed inside; the slices are all there are.
    assert found == Window((0, 36, 0), (13, 50, 12))


def test_the_least_size_is_reached_around_the_middle_where_there_is_room() -> None:
    case = _prepare(_case((40, 50, 12), BOX), STORED)
    assert _finder(STORED, 1.0, (16, 24)).place(case).window == Window((5, 14, 3), (21, 38, 8))
    # 64 does not fit into 40: the whole axis.
    assert _finder(STORED, 1.0, (64, 8)).place(case).window == Window((0, 19, 3), (40, 32, 8))


def _voxels_of(low_mm: float, high_mm: float, spacing: float) -> tuple[int, int]:
    """The voxels that a stretch of millimetres touches, the grid's border at 0."""
    return math.floor(low_mm / spacing + 1e-6), math.ceil(high_mm / spacing - 1e-6)


@pytest.mark.parametrize("spacing", [0.5, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("margin", [0.0, 3.3, 6.0])
def test_from_a_coarser_grid_the_window_is_known_in_millimetres(spacing: float, margin: float) -> None:
    # Stored pixels of 1 mm, seen by the coarse network in pixels of 4 mm: a box whose borders lie on theirs is found exactly.
    case = _case((64, 64, 10), (slice(16, 28), slice(24, 44), slice(3, 6)), np.diag([1.0, 1, 3, 1]))
    fine = _prepare(case, GridRule("stored", (spacing, spacing)))
    found = _finder(GridRule("stored", (4.0, 4.0)), margin).place(fine).window
    # Borders are counted from the middle, which all grids share.
    for axis, (low, high) in enumerate(((16, 28), (24, 44))):
        offset = fine.grid.shape[axis] * spacing / 2 - 32
        assert (found.start[axis], found.stop[axis]) == _voxels_of(low - margin + offset, high + margin + offset, spacing)
    assert (found.start[2], found.stop[2]) == _voxels_of(9 - margin, 18 + margin, 3.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_object_and_its_margin_are_inside_whatever_the_grids(seed: int) -> None:
    rng = np.random.default_rng(seed)
    letters = [pair[rng.integers(2)] for pair in ("LR", "PA", "IS")]
    order = rng.permutation(3)
    orientation = nib.orientations.axcodes2ornt([letters[axis] for axis in order])
    spacing = rng.uniform(0.4, 2.5, 3)
    shape = tuple(int(length) for length in rng.integers(30, 70, 3))
    affine = nib.orientations.inv_ornt_aff(orientation, shape) @ np.diag([*spacing, 1.0])
    starts = [int(rng.integers(8, length - 20)) for length in shape]
    box = tuple(slice(start, start + int(rng.integers(8, 12))) for start in starts)
    case = _case(shape, box, affine)  # type: ignore[arg-type]
    slice_axis: SliceAxis = ("axial", "coronal", "sagittal")[seed % 3]  # type: ignore[assignment]
    fine = _prepare(case, GridRule(slice_axis, (float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.5, 1.5)))))
    coarse_mm, margin = float(rng.uniform(1.0, 2.0)), 3.0
    placed = _finder(GridRule(slice_axis, (coarse_mm, coarse_mm)), margin).place(fine)
    # Corners of the object in millimetres; beyond them the window must reach on by the margin, less the error of one coarse
    # pixel, and at most by the margin and two coarse pixels, both only where the image goes on.
    visible = np.argwhere(placed.visible())
    for axis in range(3):
        low, high = box[axis].start, box[axis].stop
        first, last = int(visible[:, axis].min()), int(visible[:, axis].max()) + 1
        assert first <= max(0.0, low - (margin - coarse_mm) / spacing[axis]) + 1.0
        assert last >= min(shape[axis], high + (margin - coarse_mm) / spacing[axis]) - 1.0
        room = (margin + 2 * coarse_mm) / spacing[axis] + 2.0
        size = high - low + 2 * room
        assert last - first <= size + 1.0


def test_flipped_data_give_the_flipped_window() -> None:
    sizes = [(41, 50), (40, 51), (33, 33)]
    for (rows, columns), spacing, margin in product(sizes, (0.7, 1.0, 1.3), (0.0, 2.4)):
        case = _case((rows, columns, 4), (slice(8, 17), slice(12, 20), slice(1, 3)))
        turned = _case((rows, columns, 4), (slice(rows - 17, rows - 8), slice(columns - 20, columns - 12), slice(1, 3)))
        finder, rule = _finder(GridRule("stored", (2.0, 2.0)), margin), GridRule("stored", (spacing, spacing))
        one, other = (finder.place(_prepare(each, rule)) for each in (case, turned))
        for axis in (0, 1):
            length = one.grid.shape[axis]
            assert (other.window.start[axis], other.window.stop[axis]) == (length - one.window.stop[axis], length - one.window.start[axis])


def test_where_nothing_is_found_the_whole_case_is_seen() -> None:
    case = _prepare(_case((20, 20, 3), (slice(0, 0), slice(0, 0), slice(0, 0)), mask=np.ones((20, 20, 3))), STORED)
    assert _finder(STORED, 5.0).place(case) is case


def test_only_the_largest_piece_counts() -> None:
    image = np.zeros((40, 40, 8), np.float32)
    image[2:5, 2:5, 0:3] = image[20:26, 20:30, 2:6] = 100
    case = _case((40, 40, 8), (slice(0, 0), slice(0, 0), slice(0, 0)))
    found = _finder(STORED, 0.0).place(_prepare(replace(case, image=Volume(image, np.eye(4))), STORED))
    assert found.window == Window((20, 20, 2), (26, 30, 6))


@pytest.mark.parametrize("rule", [STORED, GridRule("coronal", (0.7, 0.7))])
def test_the_truth_is_never_looked_at(rule: GridRule) -> None:
    affine = np.diag([1.0, 0.5, 2.0, 1.0])
    rng = np.random.default_rng(0)
    masks = [None, np.zeros((40, 50, 12)), np.ones((40, 50, 12)), rng.integers(0, 2, (40, 50, 12))]
    windows = {_finder(rule, 4.0).place(_prepare(_case((40, 50, 12), BOX, affine, mask=mask), rule)).window for mask in masks}
    assert len(windows) == 1
    untouchable = _prepare(_case((40, 50, 12), BOX, affine), rule)
    case = replace(untouchable, masks=(_Untouchable(),), case=replace(untouchable.case, raters=()))  # type: ignore[arg-type]
    assert _finder(rule, 4.0).place(case).window in windows


class _Untouchable:
    @property
    def array(self) -> NDArray[np.uint8]:
        raise AssertionError("the truth was looked at")


def test_pieces_touch_by_their_faces() -> None:
    mask = np.zeros((6, 6, 6), np.uint8)
    assert largest_piece(mask) is None
    mask[0, 0, 0] = mask[1, 1, 0] = mask[3, 3, 3:5] = 2
    assert largest_piece(mask) == (slice(3, 4), slice(3, 4), slice(3, 5))


def test_a_window_is_scored_with_the_background_around_it() -> None:
    # The truth has a second part that the region misses: it counts as missed. 108 voxels right, 0 wrong, 27 missed.
    image = np.zeros((30, 30, 6), np.float32)
    image[10:16, 10:16, 1:4] = 100
    truth = (image > 0).astype(np.uint8)
    truth[25:28, 25:28, 2:5] = 1
    case = Case("c", "c", "", Volume(image, np.eye(4)), Volume(truth, np.eye(4)), "made")
    placed = _finder(STORED, 1.0).place(_prepare(case, STORED))
    (score,) = evaluate_cases([placed], INFO, _Threshold()).scores
    assert score.dice["organ"] == pytest.approx(2 * 108 / (2 * 108 + 27))


# --- the crop of the paper --------------------------------------------------------------------------------------------


def test_the_crop_around_the_truth_is_scored_inside_alone() -> None:
    # The organ: 6×6 in slices 2 and 3, and one voxel far away in slice 3 which the crop of 10×10 around the middle leaves out.
    truth = np.zeros((30, 30, 6), np.uint8)
    truth[4:10, 4:10, 2:4] = 1
    truth[25, 25, 3] = 1
    image = np.zeros(truth.shape, np.float32)
    image[4:10, 4:10, 2] = 100  # of two slices one is found
    image[20:, :, 5] = 100  # wrong, in a slice that is not shown
    case = _prepare(Case("c", "c", "", Volume(image, np.eye(4)), Volume(truth, np.eye(4)), "made"), STORED)
    placed = TruthCentredRegion((10, 10)).place(case)
    # Middle between 4 and 26: 15, so the crop is 10..20 and shows nothing of either.
    assert placed.window == Window((10, 10, 2), (20, 20, 4))
    assert placed.scored_inside
    wide = TruthCentredRegion((24, 24)).place(case)
    assert wide.window == Window((3, 3, 2), (27, 27, 4))
    (score,) = evaluate_cases([wide], INFO, _Threshold()).scores
    assert score.dice["organ"] == pytest.approx(2 * 36 / (36 + 73))
    # Seen as a whole the wrong slice counts.
    (whole,) = evaluate_cases([WholeRegion().place(case)], INFO, _Threshold()).scores
    assert whole.dice["organ"] == pytest.approx(2 * 36 / (36 + 300 + 73))
    near = np.array(truth)
    near[25, 25, 3] = 0
    inside = TruthCentredRegion((6, 6)).place(_prepare(replace(case.case, mask=Volume(near, np.eye(4))), STORED))
    assert inside.window == Window((4, 4, 2), (10, 10, 4))
    hidden = TruthCentredRegion((4, 4)).place(_prepare(replace(case.case, mask=Volume(near, np.eye(4))), STORED))
    assert hidden.window == Window((5, 5, 2), (9, 9, 4))
    # Of the 4×4 of two slices that are shown, one slice is found; what lies outside is neither truth nor error.
    (score,) = evaluate_cases([hidden], INFO, _Threshold()).scores
    assert score.dice["organ"] == pytest.approx(2 * 16 / (16 + 32))


def test_the_crop_needs_a_truth_that_is_not_empty() -> None:
    for mask, words in ((None, "needs the truth, which this case has not"), (np.zeros((20, 20, 3)), "the mask is empty")):
        with pytest.raises(InputError, match=f"made c: data.region paper_truth_centred:? {words}"):
            TruthCentredRegion((8, 8)).place(_prepare(_case((20, 20, 3), BOX, mask=mask), STORED))


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_rules_come_out_of_a_file_as_they_are() -> None:
    coarse = _Threshold(), Preparation(RANGE)
    assert isinstance(region_from_json({}, None), WholeRegion)
    assert isinstance(region_from_json({"kind": "whole"}, coarse), WholeRegion)
    found = region_from_json({"kind": "coarse", "margin_mm": 7.5, "minimum": [64, 32]}, coarse)
    assert isinstance(found, CoarseRegion)
    assert (found.predictor, found.preparation, found.margin_mm, found.minimum) == (*coarse, 7.5, (64, 32))
    crop = region_from_json({"kind": "paper_truth_centred", "margin_mm": 10.0, "minimum": [176, 112]}, None)
    assert isinstance(crop, TruthCentredRegion)
    assert crop.size == (176, 112)


GOOD: dict[str, object] = {"kind": "coarse", "margin_mm": 10.0, "minimum": [64, 64]}


@pytest.mark.parametrize(
    "change",
    [{"kind": "truth"}, {"kind": None}, {"margin_mm": None}, {"margin_mm": "10"}, {"margin_mm": True}, {"margin_mm": -1.0}]
    + [{"margin_mm": float("nan")}, {"margin_mm": float("inf")}]
    + [{"minimum": value} for value in (None, 64, [], [64], [64, 64, 64], [64, "64"], [64, 0], [64.0, 64], [True, 64], {"a": 1})],
)  # fmt: skip
def test_damaged_rules_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"stored region rule .* is not readable"):
        region_from_json({**GOOD, **change}, (_Threshold(), Preparation(RANGE)))
    if "minimum" in change:
        with pytest.raises(CheckpointError, match=r"stored region rule .* is not readable"):
            region_from_json({**GOOD, "kind": "paper_truth_centred", **change}, None)


def test_a_coarse_region_without_its_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="its coarse network is missing"):
        region_from_json(GOOD, None)
