"""Random affines through the whole chain with a network that gives back what it sees: the mask lies where the scan lies.

Written and read by medquant, checked with nibabel and SimpleITK, and against the affine the scan was made with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medquant.data.nifti import read_nifti, read_nifti_mask, write_nifti
from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, PreparedCase, prepare_case
from medquant.data.prepared_grid import GridRule
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, FloatArray, LabelArray, Volume
from medquant.predict.windows import predict_case

ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]
"""All 48 ways to lay array axes along the body's axes; half of them mirror."""

THRESHOLD = 100
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    # Thousands of small files; what a crash would leave of them is tested elsewhere.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@dataclass(frozen=True)
class Identity:
    """The predictor that finds class 1 where the network's image lies above the middle of its range."""

    name: str = "identity"
    dimensions: int = 2

    def __call__(self, images: FloatArray) -> LabelArray:
        return (images[:, 0] > 0.5).astype(np.uint8)


def affines(orientations: list[int], repeats: int) -> Iterator[tuple[int, NDArray[np.float64], np.random.Generator]]:
    """Oblique up to 40 degrees about any axis, voxels from 0.2 to 6 mm, up to half a metre from the origin."""
    for number in orientations:
        axes, signs = ORIENTATIONS[number]
        for repeat in range(repeats):
            random = np.random.default_rng([number, repeat])
            directions = np.eye(3)[list(axes)].T * signs
            axis = random.normal(size=3)
            turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(random.uniform(0, 40)))
            affine = np.eye(4)
            affine[:3, :3] = turn.as_matrix() @ directions * random.uniform(0.2, 6.0, 3)
            affine[:3, 3] = random.uniform(-500, 500, 3)
            yield number, affine, random


def marked(random: np.random.Generator) -> NDArray[np.int16]:
    """Dim noise with three bright blocks of three sizes near three corners: no turn or mirror image is the same."""
    shape = tuple(int(length) for length in random.integers(9, 15, 3))
    values = random.integers(0, THRESHOLD, shape).astype(np.int16)
    values[:4, :3, :2] = 180
    values[-3:, :2, :3] = 190
    values[:2, -2:, -1:] = 199
    values.flat[[0, 1]] = 0, 200  # the ends of the range, so that its middle is the threshold
    return values


def prepared_case(folder: Path, affine: NDArray[np.float64], values: NDArray[np.int16], mask: LabelArray, rule: GridRule) -> PreparedCase:
    """Written as files and read again, then brought to the network's grid."""
    packed = ".nii.gz" if values.size % 2 else ".nii"
    write_nifti(folder / f"scan{packed}", Volume(values, affine))
    write_nifti(folder / f"label{packed}", Volume(mask, affine))
    image, label = read_nifti(folder / f"scan{packed}"), read_nifti_mask(folder / f"label{packed}")
    case = Case("case", "case", "", image, label, "case")
    return prepare_case(case, Preparation(Normalisation("range", 0, 200), rule), ArrayCache(None))


def written(folder: Path, case: PreparedCase, mask: LabelArray) -> Path:
    path = folder / "mask.nii.gz"
    write_nifti(path, Volume(mask, case.case.image.affine, case.case.image.has_geometry))
    return path


def check_place(path: Path, affine: NDArray[np.float64], mask: LabelArray) -> None:
    """nibabel's affine is that of the scan, each column to a millionth of its length; both libraries see the same voxels there."""
    found = nib.load(path)
    error = np.abs(found.affine - affine)[:3] / np.linalg.norm(affine[:3], axis=0)
    assert error.max() <= TOLERANCE
    np.testing.assert_array_equal(np.asarray(found.dataobj), mask)
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), mask)
    size = float(np.linalg.norm(affine[:3], axis=0).max()) * max(mask.shape)
    for corner in product(*((0, length - 1) for length in mask.shape)):
        # SimpleITK counts millimetres to the left and to the back.
        place = np.array(image.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1)
        assert np.abs(place - (affine @ (*corner, 1))[:3]).max() <= TOLERANCE * size


def check_unsampled(folder: Path, orientations: list[int], repeats: int) -> int:
    count = 0
    for number, affine, random in affines(orientations, repeats):
        values = marked(random)
        truth = (values > THRESHOLD).astype(np.uint8)
        case = prepared_case(folder, affine, values, truth, GridRule("axial"))
        # The network sees right to left, back to front, foot to head: nibabel's closest canonical order.
        canonical = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
        np.testing.assert_array_equal(case.channels[0].array, np.asarray(canonical.dataobj), err_msg=str(number))
        mask = predict_case(case, Identity())
        np.testing.assert_array_equal(mask, truth, err_msg=str(number))
        np.testing.assert_array_equal(case.restore(np.stack([case.label(k) for k in range(case.slices)], axis=2)), truth)
        check_place(written(folder, case, mask), affine, truth)
        count += 1
    return count


def check_resampled(folder: Path, orientations: list[int], repeats: int) -> int:
    """Onto pixels of 0.6 to 1.4 times the scan's and back, as image and as mask."""
    shifts = []
    for number, affine, random in affines(orientations, repeats):
        blob, values = ellipsoid(random)
        grid = GridRule("axial").grid(Volume(values, affine))
        factors = random.uniform(0.6, 1.4, 2)
        new = tuple(float(length) for length in np.array(grid.spacing_mm[:2]) * factors)
        case = prepared_case(folder, affine, values, blob, GridRule("axial", (new[0], new[1])))
        assert case.grid.plane is not None
        drawn = case.restore(np.stack([case.label(k) for k in range(case.slices)], axis=2))
        for mask in (predict_case(case, Identity()), drawn):
            overlap = 2 * np.count_nonzero(mask & blob) / (np.count_nonzero(mask) + np.count_nonzero(blob))
            assert overlap > 0.97, number
            apart = centroid(mask) - centroid(blob)
            # A mask on finer pixels comes back as it was; an outline that is rounded to coarser ones, or cut from an image, scatters.
            assert np.abs(apart).max() < (0.1 if mask is drawn and factors.max() < 1 else 0.2), number
            shifts.append([apart[axis] * (-1 if turned else 1) for axis, turned in zip(grid.axes, grid.flipped, strict=True)])
            check_place(written(folder, case, mask), affine, mask)
    # Each outline is rounded by chance (0.035 voxels, root mean square); a shift that all have in common would be a mistake.
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.005 + 0.1 / np.sqrt(len(shifts))
    return len(shifts) // 2


def ellipsoid(random: np.random.Generator) -> tuple[LabelArray, NDArray[np.int16]]:
    """A blob of half axes from 14 to 17 voxels, turned at random, and a smooth image that passes the threshold at its surface."""
    shape = np.array([44, 46, 42])
    middle, half = shape / 2 + random.uniform(-3, 3, 3), random.uniform(14, 17, 3)
    places = np.stack(np.meshgrid(*(np.arange(length) for length in shape), indexing="ij"), axis=3)
    # Turned, because an outline along the grid is rounded alike in all slices.
    turn = Rotation.random(random_state=int(random.integers(2**31))).as_matrix()
    distance = np.linalg.norm((places - middle) @ turn / half, axis=3)
    values = np.clip(200 - THRESHOLD * distance, 0, 200).astype(np.int16)
    return (distance < 1).astype(np.uint8), values


def centroid(mask: LabelArray) -> NDArray[np.float64]:
    return np.argwhere(mask).mean(axis=0)


def test_no_two_orientations_are_the_same() -> None:
    assert len({(tuple(axes), signs) for axes, signs in ORIENTATIONS}) == 48
    values = marked(np.random.default_rng(0)) > THRESHOLD
    cube = np.zeros((15, 15, 15), dtype=bool)
    cube[tuple(slice(length) for length in values.shape)] = values
    seen = {
        np.ascontiguousarray(cube.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]).tobytes()
        for axes, signs in ORIENTATIONS
    }
    assert len(seen) == 48


def test_masks_come_back_to_their_scans(tmp_path: Path) -> None:
    assert check_unsampled(tmp_path, list(range(48)), 1) == 48


def test_resampled_masks_come_back_to_their_scans(tmp_path: Path) -> None:
    assert check_resampled(tmp_path, list(range(0, 48, 7)), 1) == 7


@pytest.mark.slow
def test_960_masks_come_back_to_their_scans(tmp_path: Path) -> None:
    assert check_unsampled(tmp_path, list(range(48)), 20) == 960


@pytest.mark.slow
def test_480_resampled_masks_come_back_to_their_scans(tmp_path: Path) -> None:
    assert check_resampled(tmp_path, list(range(48)), 10) == 480


@pytest.mark.parametrize("axis", ["coronal", "sagittal", "stored"])
def test_other_slice_axes_come_back_too(tmp_path: Path, axis: str) -> None:
    for _, affine, random in affines(list(range(0, 48, 7)), 1):
        values = marked(random)
        case = prepared_case(tmp_path, affine, values, (values > THRESHOLD).astype(np.uint8), GridRule(axis))  # type: ignore[arg-type]
        mask = predict_case(case, Identity())
        check_place(written(tmp_path, case, mask), affine, (values > THRESHOLD).astype(np.uint8))
