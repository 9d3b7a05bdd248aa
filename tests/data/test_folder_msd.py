"""The Decathlon's layout. Expected: small files written by nibabel, in several orientations, and what was put into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.data.ct_window import foreground_window, is_ct
from medquant.data.opening import open_dataset
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache
from medquant.data.volume import Dataset
from medquant.errors import GeometryError, InputError

CODES = ("LPS", "RAS", "ASR", "SRP")


def _affine(codes: str, spacing: tuple[float, float, float] = (0.8, 0.9, 3.0)) -> NDArray[np.float64]:
    """An affine whose stored axes run towards ``codes``; each array axis keeps its spacing."""
    affine = np.eye(4)
    affine[:3, :3] = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), (9, 9, 9))[:3, :3] @ np.diag(spacing)
    affine[:3, 3] = (5.0, -7.0, 40.0)
    return affine


def _save(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def _voxels(number: int, channels: int = 1) -> NDArray[np.int16]:
    shape = (20, 18, 6) if channels == 1 else (20, 18, 6, channels)
    return np.random.default_rng(number).integers(-500, 900, shape, dtype=np.int16)


def _mask(number: int) -> NDArray[np.uint8]:
    mask = np.zeros((20, 18, 6), dtype=np.uint8)
    mask[3:9, 4:8, 1:3] = 1
    mask[9 + number, 4:8, 1:3] = 2
    return mask


def _dataset(root: Path, cases: int = 4, channels: int = 1, **changes: Any) -> Path:
    """A folder as the Decathlon's archives unpack, macOS leftovers included."""
    for number in range(cases):
        affine = _affine(CODES[number % len(CODES)])
        _save(root / "imagesTr" / f"heart_{number:03d}.nii.gz", _voxels(number, channels), affine)
        _save(root / "labelsTr" / f"heart_{number:03d}.nii.gz", _mask(number), affine)
    (root / "imagesTr" / "._heart_000.nii.gz").write_bytes(b"Mac OS X")
    listed = [{"image": f"./imagesTr/heart_{n:03d}.nii.gz", "label": f"./labelsTr/heart_{n:03d}.nii.gz"} for n in range(cases)]
    contents = {
        "name": "Heart",
        "description": "DOE^JOHN",
        "tensorImageSize": "3D" if channels == 1 else "4D",
        "modality": {str(number): name for number, name in enumerate(("MRI", "T1w", "T2w")[:channels])},
        "labels": {"0": "background", "1": "left atrium", "2": "wall"},
        "numTraining": cases,
        "numTest": 1,
        "training": listed,
        "test": ["./imagesTs/heart_009.nii.gz"],
    }
    contents.update(changes)
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in contents.items() if value is not None}))
    return root


def _open(root: Path, cache: Path | None = None) -> Dataset:
    return open_dataset(root, options=ReadOptions(cache=ArrayCache(cache)))


def test_reading_from_end_to_end(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "Task02_Heart")
    dataset = _open(root, tmp_path / "cache")
    assert dataset.info.name == "folder"
    assert dataset.info.classes == {0: "background", 1: "left atrium", 2: "wall"}
    assert dataset.info.scored == ("left atrium", "wall")
    assert dataset.info.channels == ("MRI",)
    assert dataset.info.regions == {}
    assert [case.id for case in dataset.cases] == [f"heart_{number:03d}" for number in range(4)]
    for number, case in enumerate(dataset.cases):
        np.testing.assert_array_equal(case.image.array, _voxels(number))
        np.testing.assert_allclose(case.image.affine, _affine(CODES[number]), atol=1e-5)
        assert case.mask is not None
        np.testing.assert_array_equal(case.mask.array, _mask(number))
        assert (case.subject, case.site, case.raters, case.further_channels) == (case.id, "", (), ())
    said = dataset.recognised
    assert said.startswith("Medical Segmentation Decathlon folder: 4 labelled cases, each taken for a subject of its own")
    assert "DOE" not in said
    assert _open(root, tmp_path / "cache").content_sha256 == dataset.content_sha256
    assert _open(root).content_sha256 == dataset.content_sha256


def test_recipe_of_an_mr(tmp_path: Path) -> None:
    recipe = _open(_dataset(tmp_path)).info.recipe
    assert recipe["data.normalisation"] == "zscore_volume"
    assert recipe["data.patch_size"] == [32, 32]  # 20×18 pixels at most, but never below 32
    assert recipe["data.augmentation"] == "mr"


def test_patch_size_is_the_median_slice_in_steps_of_16(tmp_path: Path) -> None:
    for number, shape in enumerate([(70, 300, 4), (75, 310, 4), (40, 20, 4)]):
        for part, kind in (("imagesTr", np.int16), ("labelsTr", np.uint8)):
            _save(tmp_path / part / f"a{number}.nii.gz", np.ones(shape, dtype=kind), np.diag([1.0, 1.0, 5.0, 1.0]))
    listed = [{"image": f"imagesTr/a{number}.nii.gz", "label": f"labelsTr/a{number}.nii.gz"} for number in range(3)]
    contents = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ"}, "training": listed, "numTraining": 3}
    (tmp_path / "dataset.json").write_text(json.dumps(contents))
    # Medians 70 and 300: 4 · 16 = 64, and 300 is above the limit of 256.
    assert _open(tmp_path).info.recipe["data.patch_size"] == [64, 256]


def test_window_of_a_ct(tmp_path: Path) -> None:
    for number in range(2):
        image = np.full((10, 10, 10), -1000, dtype=np.int16)
        mask = np.zeros((10, 10, 10), dtype=np.uint8)
        # 500 labelled voxels a case with the values 0 to 499 and 500 to 999.
        mask[:5], image[:5] = 1, np.arange(500).reshape(5, 10, 10) + 500 * number
        _save(tmp_path / "imagesTr" / f"a{number}.nii.gz", image, np.eye(4))
        _save(tmp_path / "labelsTr" / f"a{number}.nii.gz", mask, np.eye(4))
    listed = [{"image": f"imagesTr/a{number}.nii.gz", "label": f"labelsTr/a{number}.nii.gz"} for number in range(2)]
    contents = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}, "training": listed, "numTraining": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(contents))
    dataset = _open(tmp_path, tmp_path / "cache")
    assert dataset.info.recipe["data.normalisation"] == "range"
    assert is_ct(dataset.info)
    # 0.5 % of 1000 values lie at or below 4, 99.5 % at or below 994; outwards to tens.
    assert foreground_window(dataset.cases, ArrayCache(tmp_path / "cache")) == (0.0, 1000.0)
    # Of the first case alone, as where it is the only one that is trained on: 2 and 497.
    assert foreground_window(dataset.cases[:1], ArrayCache(tmp_path / "cache")) == (0.0, 500.0)
    for number in range(2):
        _save(tmp_path / "labelsTr" / f"a{number}.nii.gz", np.zeros((10, 10, 10), dtype=np.uint8), np.eye(4))
    unlabelled = _open(tmp_path)
    assert foreground_window(unlabelled.cases, ArrayCache(None)) == (-200.0, 300.0)
    assert "no mask holds organ" in unlabelled.recognised


def test_channels_in_the_fourth_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medquant.data import nifti

    root, calls = _dataset(tmp_path / "raw", cases=2, channels=3), []
    read = nifti.read_nifti_channels
    monkeypatch.setattr(nifti, "read_nifti_channels", lambda path: (calls.append(path), read(path))[1])
    for _ in range(2):
        dataset = _open(root, tmp_path / "cache")
        assert dataset.info.channels == ("MRI", "T1w", "T2w")
        for number, case in enumerate(dataset.cases):
            assert len(case.channels) == 3
            for channel, volume in enumerate(case.channels):
                np.testing.assert_array_equal(volume.array, _voxels(number, 3)[..., channel])
    assert len(calls) == 2  # once a file, and never again


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"heart_000\.nii\.gz: found 2 channels, expected 3"):
        _open(_dataset(tmp_path / "few", channels=2, modality={"0": "a", "1": "b", "2": "c"}))
    with pytest.raises(InputError, match=r"heart_000\.nii\.gz: found 4 axes"):
        _open(_dataset(tmp_path / "many", channels=2, modality={"0": "a"}))


def test_newer_keys(tmp_path: Path) -> None:
    dataset = _open(_dataset(tmp_path, modality=None, channel_names={"0": "T2"}, labels={"background": 0, "atrium": 1, "wall": 2}))
    assert dataset.info.channels == ("T2",)
    assert dataset.info.classes == {0: "background", 1: "atrium", 2: "wall"}


def test_mask_along_other_axes_and_elsewhere(tmp_path: Path) -> None:
    root = _dataset(tmp_path, cases=1)
    label = root / "labelsTr" / "heart_000.nii.gz"
    nib.save(nib.as_closest_canonical(nib.load(label)), label)  # stored LPS, so two axes turn round
    dataset = _open(root)
    assert dataset.cases[0].mask is not None
    np.testing.assert_array_equal(dataset.cases[0].mask.array, _mask(0))
    assert "1 file stored along other axes" in dataset.recognised
    _save(label, _mask(0), _affine("RAS"))
    with pytest.raises(GeometryError, match=r"labelsTr/heart_000\.nii\.gz .* does not lie on the grid of .*imagesTr/heart_000\.nii\.gz"):
        _open(root)


def test_values_without_a_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labelsTr/heart_000\.nii\.gz: found the values 2 in 8 voxels, expected only 0 to 1"):
        _open(_dataset(tmp_path, labels={"0": "background", "1": "left atrium"}))


def test_the_list_is_believed_and_differences_are_said(tmp_path: Path) -> None:
    root = _dataset(tmp_path, cases=3, numTraining=20)
    contents = json.loads((root / "dataset.json").read_text())
    del contents["training"][1]
    (root / "dataset.json").write_text(json.dumps(contents))
    dataset = _open(root)
    assert [case.id for case in dataset.cases] == ["heart_000", "heart_002"]
    assert "numTraining says 20, its list has 2; the list is believed" in dataset.recognised
    assert "1 further files in imagesTr are not listed" in dataset.recognised


def test_missing_and_double_files(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "a", cases=3)
    (root / "labelsTr" / "heart_001.nii.gz").unlink()
    (root / "imagesTr" / "heart_002.nii.gz").unlink()
    with pytest.raises(
        InputError, match=r"2 of the listed cases lack a file, first \./labelsTr/heart_001\.nii\.gz, \./imagesTr/heart_002\.nii\.gz"
    ):
        _open(root)
    pair = {"image": "imagesTr/heart_000.nii.gz", "label": "labelsTr/heart_000.nii.gz"}
    with pytest.raises(InputError, match="the case heart_000 or its label is listed twice"):
        _open(_dataset(tmp_path / "b", cases=2, training=[pair, pair]))


def test_files_of_nnunet_1_are_named_as_such(tmp_path: Path) -> None:
    root = _dataset(tmp_path, cases=2)
    for file in sorted((root / "imagesTr").glob("heart_*.nii.gz")):
        file.rename(file.with_name(file.name.replace(".nii.gz", "_0000.nii.gz")))
    with pytest.raises(InputError, match="as nnU-Net 1 did; convert the folder with nnUNetv2_convert_old_nnUNet_dataset"):
        _open(root)
