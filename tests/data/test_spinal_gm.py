"""The gray matter challenge's layout. Expected: the table of the real files, small files written by nibabel, votes by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.data.datasets import spinal_gm
from medquant.data.opening import open_dataset
from medquant.data.raters import majority, staple
from medquant.data.reading import RaterRule, ReadOptions
from medquant.data.stored import ArrayCache
from medquant.errors import GeometryError, InputError

OFFICIAL_TRAINING = "training-data-gm-sc-challenge-ismrm16-v20160302b"
OFFICIAL_TEST = "test-data-gm-sc-challenge-ismrm16-v20160401"
AFFINE = np.array([[-0.5, 0, 0, 3], [0, 0.5, 0, -2], [0, 0, 5.0, 10], [0, 0, 0, 1]])
# Shape and voxels of gray and white matter, from the README of the real files.
REAL = {
    "site1-sc01": ((384, 384, 17), 906, 5567),
    "site2-sc01": ((384, 210, 17), 1283, 7043),
    "site3-sc01": ((256, 256, 20), 690, 2889),
    "site3-sc02": ((256, 256, 20), 980, 4141),
    "site4-sc01": ((448, 448, 15), 862, 4487),
}
# Rater by rater, the class of the voxels (0, 0, 0) to (3, 0, 0), and what most of them say.
VOTES = [(1, 1, 2, 0), (1, 1, 2, 2), (1, 2, 0, 2), (0, 2, 0, 1)]
MAJORITY = [1, 1, 0, 2]


def _write(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def _image(folder: Path, case: str) -> None:
    _write(folder / f"{case}-image.nii.gz", np.arange(60, dtype=np.int16).reshape(4, 5, 3) + len(case))


def _mask(row: tuple[int, ...] = (1, 2, 0, 0)) -> NDArray[np.uint8]:
    mask = np.zeros((4, 5, 3), dtype=np.uint8)
    mask[:, 0, 0] = row
    return mask


def _case(folder: Path, case: str = "site1-sc01", raters: int = 4) -> None:
    _image(folder, case)
    for rater in range(raters):
        _write(folder / f"{case}-mask-r{rater + 1}.nii.gz", _mask(VOTES[rater]))


def test_real_files(shared_data: Path, tmp_path: Path) -> None:
    options = ReadOptions(cache=ArrayCache(tmp_path))
    dataset = open_dataset(shared_data / "spinal_gm", options=options)
    assert dataset.info.name == "spinal_gm"
    found = {}
    for case in dataset.cases:
        assert case.mask is not None
        mask = np.asarray(case.mask.array)
        assert set(np.unique(mask)) == {0, 1, 2}
        found[case.id] = (case.image.shape, int((mask == 1).sum()), int((mask == 2).sum()))
        stored = nib.load(shared_data / "spinal_gm" / "train" / f"{case.id}-image.nii.gz")
        np.testing.assert_array_equal(case.image.array, np.asarray(stored.dataobj))
        np.testing.assert_allclose(case.image.affine, stored.affine, atol=1e-5)
    # In their order, and without site9 of the folder small, which is no part of the challenge's layout.
    assert list(found.items()) == list(REAL.items())
    assert [case.site for case in dataset.cases] == ["site1", "site2", "site3", "site3", "site4"]
    assert [case.subject for case in dataset.cases] == list(REAL)
    said = dataset.recognised
    assert "train/site1-sc01-image.nii.gz" in said
    assert "5 labelled cases (1 of site1, 1 of site2, 2 of site3, 1 of site4)" in said
    assert "one rater only in 5 cases of 5" in said
    assert "not used: 5 images without masks" in said


def test_real_small_files_directly_in_the_folder(shared_data: Path) -> None:
    dataset = spinal_gm.load(shared_data / "spinal_gm" / "small")
    assert [(case.id, case.image.shape) for case in dataset.cases] == [("site9-sc01", (40, 40, 5))]
    mask = dataset.cases[0].mask
    assert mask is not None
    assert np.bincount(np.asarray(mask.array).ravel()).tolist() == [40 * 40 * 5 - 99 - 422, 99, 422]


@pytest.mark.parametrize(
    ("training", "test"),
    [(OFFICIAL_TRAINING, OFFICIAL_TEST), ("train", "test"), (f"train/{OFFICIAL_TRAINING}", f"test/{OFFICIAL_TEST}"), (".", ".")],
)
def test_folder_namings(tmp_path: Path, training: str, test: str) -> None:
    root = tmp_path / "download"
    for case in ("site2-sc03", "site10-sc01", "site1-sc10"):
        _case(root / training, case)
    _image(root / test, "site1-sc11")
    (root / training / "site1-sc10-levels.txt").write_text("1,3")
    (root / training / "license.txt").write_text("free")
    (root / training / "._site1-sc10-image.nii.gz").write_bytes(b"\x00")
    dataset = open_dataset(root)
    assert dataset.info.name == "spinal_gm"
    assert [case.id for case in dataset.cases] == ["site1-sc10", "site2-sc03", "site10-sc01"]
    assert "not used: 1 image without masks" in dataset.recognised
    assert "majority of the raters (ties go to the lower class number): 4 raters in 3 cases" in dataset.recognised


def test_the_part_folder_itself(tmp_path: Path) -> None:
    _case(tmp_path / OFFICIAL_TRAINING)
    assert len(open_dataset(tmp_path / OFFICIAL_TRAINING).cases) == 1
    _image(tmp_path / OFFICIAL_TEST, "site1-sc11")
    with pytest.raises(InputError, match="found 1 image and no mask"):
        open_dataset(tmp_path / OFFICIAL_TEST)


@pytest.mark.parametrize("rule", ["majority", "each", "staple"])
def test_rules_for_several_raters(tmp_path: Path, rule: RaterRule) -> None:
    _case(tmp_path / "raw")
    options = ReadOptions(raters=rule, cache=ArrayCache(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache
        dataset = spinal_gm.load(tmp_path / "raw", options)
        (case,) = dataset.cases
        assert case.mask is not None
        if rule == "staple":
            assert "STAPLE estimate" in dataset.recognised
            assert np.asarray(case.mask.array)[1, 0, 0] in (1, 2)  # two raters say 1, two say 2, none background
        else:
            assert np.asarray(case.mask.array)[:, 0, 0].tolist() == MAJORITY
        assert np.asarray(case.mask.array)[:, 1:].max() == 0
        rows = [tuple(np.asarray(rater.array)[:, 0, 0].tolist()) for rater in case.raters]
        assert rows == (VOTES if rule == "each" else [])


def test_staple_and_majority_are_not_mixed_up(tmp_path: Path) -> None:
    _image(tmp_path, "site1-sc01")
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, (4, 5, 3), dtype=np.uint8)
    # Two careless raters against two careful ones.
    masks = [np.where(random.random(truth.shape) < share, (truth + 1) % 3, truth).astype(np.uint8) for share in (0.05, 0.05, 0.6, 0.6)]
    for number, mask in enumerate(masks, start=1):
        _write(tmp_path / f"site1-sc01-mask-r{number}.nii.gz", mask)
    rules: dict[RaterRule, NDArray[np.uint8]] = {"majority": majority(masks, 3), "staple": staple(masks, 3).mask}
    assert (rules["majority"] != rules["staple"]).any()
    for rule, expected in rules.items():
        found = spinal_gm.load(tmp_path, ReadOptions(raters=rule)).cases[0].mask
        assert found is not None
        np.testing.assert_array_equal(found.array, expected)


def test_rater_counts_are_said(tmp_path: Path) -> None:
    _case(tmp_path, "site1-sc01", raters=4)
    _case(tmp_path, "site1-sc02", raters=1)
    dataset = spinal_gm.load(tmp_path, ReadOptions(raters="each"))
    assert "takes each rater in turn" in dataset.recognised
    assert "4 raters in 1 case, 1 rater in 1 case" in dataset.recognised
    assert [len(case.raters) for case in dataset.cases] == [4, 1]


@pytest.mark.parametrize("codes", ["RPI", "LAS", "SAR", "PSR"])
def test_masks_along_other_axes_are_brought_into_the_images_order(tmp_path: Path, codes: str) -> None:
    _image(tmp_path, "site1-sc01")
    mask = _mask((1, 2, 2, 0))
    mask[3, 4, 2] = 1
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes)))
    nib.save(nib.Nifti1Image(mask, AFFINE).as_reoriented(turn), tmp_path / "site1-sc01-mask-r1.nii.gz")
    dataset = spinal_gm.load(tmp_path)
    found = dataset.cases[0].mask
    assert found is not None
    np.testing.assert_array_equal(found.array, mask)
    assert ("1 mask stored along other axes" in dataset.recognised) == (codes != "LAS")


def test_a_mask_elsewhere_is_refused(tmp_path: Path) -> None:
    _case(tmp_path, raters=2)
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    _write(tmp_path / "site1-sc01-mask-r2.nii.gz", _mask(), moved)
    with pytest.raises(GeometryError, match=r"site1-sc01-mask-r2\.nii\.gz .* does not lie on the grid of .*site1-sc01-image\.nii\.gz"):
        spinal_gm.load(tmp_path)


def test_a_mask_without_place_is_taken_by_shape(tmp_path: Path) -> None:
    _image(tmp_path, "site1-sc01")
    nowhere = nib.Nifti1Image(_mask(), None)
    nowhere.header.set_qform(None, code=0)
    nib.save(nowhere, tmp_path / "site1-sc01-mask-r1.nii.gz")
    dataset = spinal_gm.load(tmp_path)
    mask = dataset.cases[0].mask
    assert mask is not None
    np.testing.assert_allclose(mask.affine, AFFINE)
    assert "1 mask taken to lie on the image" in dataset.recognised


@pytest.mark.parametrize("value", [3, 254])
def test_other_values_are_refused(tmp_path: Path, value: int) -> None:
    _case(tmp_path, raters=2)
    _write(tmp_path / "site1-sc01-mask-r2.nii.gz", _mask((1, 2, value, value)))
    with pytest.raises(InputError, match=rf"mask-r2\.nii\.gz: found the values {value} in 2 voxels, expected only 0 \(background\), 1"):
        spinal_gm.load(tmp_path)


def test_masks_without_a_tissue(tmp_path: Path) -> None:
    _case(tmp_path, "site1-sc01", raters=1)
    _image(tmp_path, "site1-sc02")
    _write(tmp_path / "site1-sc02-mask-r1.nii.gz", _mask((0, 2, 0, 2)))
    assert "no gray matter (1) in site1-sc02-mask-r1.nii.gz" in spinal_gm.load(tmp_path).recognised
    _write(tmp_path / "site1-sc01-mask-r1.nii.gz", _mask((0, 2, 2, 0)))
    with pytest.raises(InputError, match=r"none of the 2 masks holds gray matter \(1\)"):
        spinal_gm.load(tmp_path)


def test_missing_and_double_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no file of the challenge"):
        spinal_gm.load(tmp_path)
    _case(tmp_path, "site1-sc01")
    _image(tmp_path, "site2-sc10")
    with pytest.raises(InputError, match="site2-sc10 of the training part have no mask"):
        spinal_gm.load(tmp_path)
    (tmp_path / "site2-sc10-image.nii.gz").unlink()
    _write(tmp_path / "site2-sc11-mask-r3.nii.gz", _mask())
    with pytest.raises(InputError, match="masks of site2-sc11 have no image"):
        spinal_gm.load(tmp_path)
    (tmp_path / "site2-sc11-mask-r3.nii.gz").unlink()
    _write(tmp_path / "site1-sc01-mask-r3.nii", _mask())
    with pytest.raises(InputError, match=r"site1-sc01-mask-r3\.nii\.gz: .*mask-r3\.nii is the same"):
        spinal_gm.load(tmp_path)


def test_a_case_in_two_folders_is_refused(tmp_path: Path) -> None:
    _case(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / OFFICIAL_TRAINING)
    with pytest.raises(InputError, match="is the same scan or mask by its name"):
        spinal_gm.load(tmp_path)


def test_nothing_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _case(tmp_path / "raw")
    options = ReadOptions(cache=ArrayCache(tmp_path / "cache"))
    first = spinal_gm.load(tmp_path / "raw", options)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("medquant.data.nifti.read_nifti", refuse)
    monkeypatch.setattr("medquant.data.nifti.read_nifti_mask", refuse)
    assert spinal_gm.load(tmp_path / "raw", options).content_sha256 == first.content_sha256
    assert spinal_gm.load(tmp_path / "raw", ReadOptions(raters="each", cache=options.cache)).content_sha256 != first.content_sha256


def test_what_is_not_the_challenge_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "site1-sub01-image.nii.gz").touch()
    (tmp_path / "site1-sc01-image.nii.gz.txt").touch()
    assert spinal_gm.recognise(tmp_path) is None
    assert spinal_gm.recognise(tmp_path / "none") is None
