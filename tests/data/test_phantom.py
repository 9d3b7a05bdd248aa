"""The phantom. Expected: its own description; positions by hand from the marker's stated offset."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from medquant.data.datasets.phantom import make_phantom
from medquant.data.datasets.phantom_scanner import MARKER_OFFSET_MM
from medquant.data.volume import Dataset
from medquant.errors import ConfigError


@pytest.fixture(scope="module")
def phantom() -> Dataset:
    return make_phantom()


def test_default_shape_classes_and_ids(phantom: Dataset) -> None:
    assert [case.id for case in phantom.cases[:6]] == [*(f"site1-sub{n:02d}" for n in range(1, 6)), "site2-sub01"]
    assert len(phantom.cases) == 20
    for case in phantom.cases:
        assert case.image.shape == (96, 96, 6)
        assert case.image.array.dtype == np.float32
        assert case.image.spacing_mm == (0.5, 0.5, 5.0)
        assert case.mask is not None
        assert case.mask.array.dtype == np.uint8
        for k in range(6):
            counts = np.bincount(case.mask.array[:, :, k].ravel(), minlength=3)
            # Real cords: about 60 to 100 mm² with 13 to 25 % of gray matter; a voxel is 0.25 mm². Room for raters.
            assert 150 < counts[1] + counts[2] < 700
            assert 0.1 < counts[1] / (counts[1] + counts[2]) < 0.45
    assert set(np.unique(np.concatenate([case.mask.array.ravel() for case in phantom.cases if case.mask]))) == {0, 1, 2}


def test_same_seed_same_bytes_in_another_process_with_other_threads(phantom: Dataset) -> None:
    code = "from medquant.data.datasets.phantom import make_phantom; print(make_phantom().content_sha256)"
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == phantom.content_sha256


def test_other_seed_other_subjects_and_cases_stand_alone(phantom: Dataset) -> None:
    fewer = make_phantom(subjects_per_site=2, sites=1)
    np.testing.assert_array_equal(fewer.cases[1].image.array, phantom.cases[1].image.array)
    other = make_phantom(seed=1, subjects_per_site=1, sites=1)
    assert not np.array_equal(other.cases[0].image.array, phantom.cases[0].image.array)
    images = {case.image.array.tobytes() for case in phantom.cases}
    assert len(images) == 20


def test_is_fast() -> None:
    # Processor time, so that a busy machine does not fail it.
    start = time.process_time()
    make_phantom()
    assert time.process_time() - start < 3.0


def test_gray_matter_is_brighter_than_white_but_not_separable(phantom: Dataset) -> None:
    for case in phantom.cases:
        assert case.mask is not None
        gray, white = (case.image.array[case.mask.array == number] for number in (1, 2))
        assert gray.mean() > white.mean()
        best = max(_dice(case.image.array > t, case.mask.array == 1) for t in np.quantile(case.image.array, np.linspace(0.3, 0.99, 40)))
        assert best < 0.5


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))


def test_sites_differ(phantom: Dataset) -> None:
    means = {
        site: np.mean([case.image.array.mean() for case in phantom.cases if case.site == site])
        for site in ("site1", "site2", "site3", "site4")
    }
    ordered = sorted(means.values())
    assert all(high > 1.2 * low for low, high in itertools.pairwise(ordered))


def test_marker_is_on_the_side_of_growing_i(phantom: Dataset) -> None:
    for case in phantom.cases:
        assert case.mask is not None
        surplus = []
        for k in range(6):
            cord = np.argwhere(case.mask.array[:, :, k] > 0).mean(axis=0)
            right = _contrast_at(case.image.array[:, :, k], cord, MARKER_OFFSET_MM)
            left = _contrast_at(case.image.array[:, :, k], cord, (-MARKER_OFFSET_MM[0], MARKER_OFFSET_MM[1]))
            surplus.append(right - left)
        # In a single slice the grain of the muscle may come close to it, not in all of a case.
        assert np.mean(surplus) > 0.2


def _contrast_at(image: np.ndarray, cord: np.ndarray, offset_mm: tuple[float, float]) -> float:
    """Brightest place near the offset, relative to its surroundings; the fluid around the cord ends 12 mm from its middle."""
    i, j = (round(float(cord[axis] + offset_mm[axis] / 0.5)) for axis in (0, 1))
    window = gaussian_filter(image, 0.7)[max(0, i - 2) : i + 3, max(0, j - 7) : j + 8]
    return float(window.max() / np.median(window)) - 1.0


def test_cord_is_one_piece(phantom: Dataset) -> None:
    for case in phantom.cases[::5]:
        assert case.mask is not None
        for k in range(6):
            pieces, count = label(case.mask.array[:, :, k] > 0)
            assert np.bincount(pieces.ravel())[1:].max() > 0.97 * np.count_nonzero(pieces)
            assert count >= 1


def test_refuses_impossible_sizes() -> None:
    with pytest.raises(ConfigError, match="40 mm"):
        make_phantom(size=32)
    with pytest.raises(ConfigError, match="counts of at least 1"):
        make_phantom(slices=0)
    with pytest.raises(ConfigError, match="seed -1"):
        make_phantom(seed=-1)


def test_more_sites_and_other_sizes() -> None:
    dataset = make_phantom(subjects_per_site=1, sites=6, slices=1, size=64, spacing_mm=0.75)
    assert [case.site for case in dataset.cases] == [f"site{n}" for n in range(1, 7)]
    assert dataset.cases[5].image.shape == (64, 64, 1)
