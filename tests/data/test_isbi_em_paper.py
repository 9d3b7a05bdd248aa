"""The 2019 paper's EM copies: what they are made of, that they are the same each time, and that they say they leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medquant.data.datasets import isbi_em_paper
from medquant.data.datasets.isbi_em_paper import _Change, _small
from medquant.data.opening import open_dataset
from medquant.data.split import make_split
from tests.data.test_isbi_em import write_em

STILL = _Change(0.0, (0.0, 0.0), 0.0, (1.0, 1.0), False)


def _folder(tmp_path: Path, slices: int = 6) -> Path:
    rows, columns = np.mgrid[:512, :512]
    images = np.stack([(rows // 4 + columns // 8 + 3 * k) % 256 for k in range(slices)]).astype(np.uint8)
    write_em(tmp_path, images, ((columns < 300)[None].repeat(slices, 0) * 255).astype(np.uint8))
    return tmp_path


def test_two_cropped_copies_of_every_slice_the_same_each_time(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    dataset = open_dataset(folder, "isbi_em_paper")
    assert [case.id for case in dataset.cases][::6] == ["slice-00-copy-1", "slice-00-copy-2"]
    assert len(dataset.cases) == 12
    assert {case.image.shape for case in dataset.cases} == {(200, 200, 1)}
    assert len({case.image.array.tobytes() for case in dataset.cases}) == 12
    for case in dataset.cases:
        assert case.mask is not None
        assert set(np.unique(case.mask.array)) == {0, 1}
        assert float(case.image.array.min()) >= 0
        assert np.array_equal(case.image.array, np.rint(case.image.array))
    assert open_dataset(folder, "isbi_em_paper").content_sha256 == dataset.content_sha256


def test_it_is_never_recognised_and_says_that_it_leaks(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    assert open_dataset(folder).info.name == "isbi_em"
    assert isbi_em_paper.recognise(folder) is None
    dataset = open_dataset(folder, "isbi_em_paper")
    assert "LEAKS BY DESIGN" in dataset.recognised
    split = make_split(dataset)
    training = {name.partition("-copy")[0] for name in split.train}
    assert training & {name.partition("-copy")[0] for name in split.test}


def test_a_copy_without_a_change_is_every_other_pixel_cut() -> None:
    plane = np.arange(512 * 512, dtype=np.float32).reshape(512, 512)  # columns first
    small = _small(plane)
    # the middle of small pixel n lies at 2 n + 1
    assert np.array_equal(small, plane.T[1::2, 1::2])
    assert np.array_equal(STILL.apply(small.astype(np.float32)), small)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (_Change(0.0, (1.0, 0.0), 0.0, (1.0, 1.0), False), [[2, 2, 2], [3, 3, 3], [3, 3, 3]]),  # reads one row below, the last one again
        (_Change(0.0, (0.0, 0.0), 0.0, (0.5, 1.0), False), [[1.5, 1.5, 1.5], [2, 2, 2], [2.5, 2.5, 2.5]]),  # twice as tall about the middle
    ],
)
def test_shift_and_zoom_read_where_they_say(change: _Change, shown: list[list[float]]) -> None:
    plane = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]], dtype=np.float32)
    np.testing.assert_allclose(change.apply(plane), shown)


def test_mirrored_copies_are_left_for_right() -> None:
    plane = np.array([[1, 2, 3]] * 3, dtype=np.float32)
    assert _Change(0.0, (0.0, 0.0), 0.0, (1.0, 1.0), True).apply(plane).tolist() == [[3, 2, 1]] * 3


def test_draws_stay_within_the_ranges() -> None:
    random = np.random.default_rng(0)
    draws = [_Change.draw(random) for _ in range(200)]
    assert max(abs(np.rad2deg(change.rotation)) for change in draws) <= 0.2
    assert 12 < max(abs(pixels) for change in draws for pixels in change.shift) <= 12.8
    assert all(0.95 <= factor <= 1.05 for change in draws for factor in change.zoom)
    assert 60 < sum(change.mirrored for change in draws) < 140


def test_the_real_stack(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "isbi_em", "isbi_em_paper")
    assert len(dataset.cases) == 60
    share = np.mean([np.mean(case.mask.array) for case in dataset.cases if case.mask is not None])
    assert 0.74 < share < 0.82  # 0.780 of the full slices are cell
