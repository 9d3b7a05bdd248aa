"""The 2019 paper's gray matter cases: one a rater, the middle 50 mm, subjects 9 and 10 kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medquant.data.datasets import spinal_gm_paper
from medquant.data.datasets.spinal_gm_paper import _middle
from medquant.data.opening import open_dataset
from medquant.data.split import SplitRule, make_split
from tests.data.test_spinal_gm import VOTES, _case, _write


def test_each_rater_is_a_case_and_gray_matter_the_class(tmp_path: Path) -> None:
    for number in (1, 8, 9, 10):
        _case(tmp_path, f"site1-sc{number:02d}")
    assert open_dataset(tmp_path).info.name == "spinal_gm"
    dataset = open_dataset(tmp_path, "spinal_gm_paper")
    assert [case.id for case in dataset.cases][:5] == [*(f"site1-sc01-r{rater}" for rater in (1, 2, 3, 4)), "site1-sc08-r1"]
    assert dict(dataset.info.classes) == {0: "background", 1: "gray_matter"}
    for case, votes in zip(dataset.cases, VOTES * 4, strict=True):
        assert case.mask is not None
        # 4×5 voxels of 0.5 mm are less than 50 mm: nothing is cut
        assert case.mask.array[:, 0, 0].tolist() == [int(vote == 1) for vote in votes]


def test_subjects_nine_and_ten_are_watched_and_nothing_is_tested(tmp_path: Path) -> None:
    for number in (1, 8, 9, 10):
        _case(tmp_path, f"site1-sc{number:02d}", raters=2)
        _write(tmp_path / f"site1-sc{number:02d}-image.nii.gz", np.full((4, 5, 3), number, dtype=np.int16))
    dataset = open_dataset(tmp_path, "spinal_gm_paper")
    split = make_split(dataset)
    assert split.train == ("site1-sc01-r1", "site1-sc01-r2", "site1-sc08-r1", "site1-sc08-r2")
    assert split.validation == ("site1-sc09-r1", "site1-sc09-r2", "site1-sc10-r1", "site1-sc10-r2")
    assert split.test == ()
    assert "as the dataset divides itself: 4 train, 4 validation, 0 test" in split.rule
    assert make_split(dataset, SplitRule(fold=0, folds=2)).test


@pytest.mark.parametrize(
    ("length", "spacing", "kept"),
    # 50 mm are 100 voxels of half a millimetre, 200 of a quarter; a shorter axis stays whole
    [(384, 0.5, slice(142, 242)), (256, 0.25, slice(28, 228)), (80, 0.5, slice(0, 80)), (101, 0.5, slice(0, 100))],
)
def test_the_middle_fifty_millimetres(length: int, spacing: float, kept: slice) -> None:
    assert _middle(length, spacing) == kept


def test_real_files_keep_their_place(shared_data: Path) -> None:
    original = {case.id: case for case in open_dataset(shared_data / "spinal_gm").cases}
    assert spinal_gm_paper.recognise(shared_data / "spinal_gm") is None
    dataset = open_dataset(shared_data / "spinal_gm", "spinal_gm_paper")
    assert len(dataset.cases) == len(original)  # these five have one rater each
    for case in dataset.cases:
        whole = original[case.subject].image
        # the voxel that lies at the cut image's first one, found by the affine
        first = np.rint(np.linalg.solve(whole.affine, case.image.affine[:, 3])).astype(int)[:3]
        i, j, k = case.image.shape
        assert np.array_equal(case.image.array, whole.array[first[0] : first[0] + i, first[1] : first[1] + j, :k])
        assert [length * size for length, size in zip(case.image.shape[:2], case.image.spacing_mm[:2], strict=True)] == pytest.approx(
            [50.0, 50.0], abs=0.6
        )
