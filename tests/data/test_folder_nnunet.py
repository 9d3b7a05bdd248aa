"""nnU-Net's layout. Expected: small files written by nibabel, Pillow and tifffile, and the format's own description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from medquant.data.datasets.folder_labels import read_labels
from medquant.data.opening import open_dataset
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache
from medquant.data.volume import Dataset
from medquant.errors import GeometryError, InputError

AFFINES = [np.diag([1.0, 1.0, 4.0, 1.0]), np.diag([-1.0, -1.0, 4.0, 1.0]), np.diag([1.0, -1.0, -4.0, 1.0])]
LABELS = {"background": 0, "PZ": 1, "TZ": 2}


def _pixels(seed: int, shape: tuple[int, ...] = (12, 10, 4), high: int = 200) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def _write(path: Path, array: NDArray[np.uint8], number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(array, AFFINES[number % 3]), path)
    elif path.name.endswith(".png"):
        Image.fromarray(array[:, :, 0].T).save(path)
    else:
        tifffile.imwrite(path, array.transpose(2, 1, 0), photometric="minisblack")


def _dataset(root: Path, cases: int = 3, channels: int = 2, ending: str = ".nii.gz", **changes: Any) -> Path:
    shape = (12, 10, 1) if ending == ".png" else (12, 10, 4)
    for number in range(cases):
        for channel in range(channels):
            _write(root / "imagesTr" / f"prostate_{number:02d}_{channel:04d}{ending}", _pixels(10 * number + channel, shape), number)
        _write(root / "labelsTr" / f"prostate_{number:02d}{ending}", _pixels(number, shape, high=3), number)
    contents: dict[str, object] = {
        "channel_names": {str(channel): name for channel, name in enumerate(("T2", "ADC", "DWI")[:channels])},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ending,
        "overwrite_image_reader_writer": "os.system",
    }
    contents.update(changes)
    (root / "dataset.json").write_text(json.dumps(contents))
    return root


def _open(root: Path, cache: Path | None = None) -> Dataset:
    return open_dataset(root, options=ReadOptions(cache=ArrayCache(cache)))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".tif", ".tiff", ".png"])
def test_reading_from_end_to_end(tmp_path: Path, ending: str) -> None:
    root = _dataset(tmp_path / "Dataset005_Prostate", ending=ending)
    for name in ("t_0000", "t_0001", "u_0000", "u_0001"):
        _write(root / "imagesTs" / f"{name}{ending}", _pixels(1, (12, 10, 1)), 0)
    (root / "imagesTr" / f"._prostate_00_0000{ending}").write_bytes(b"Mac OS X")
    dataset = _open(root, tmp_path / "cache")
    assert dataset.info.name == "folder"
    assert dataset.info.classes == {0: "background", 1: "PZ", 2: "TZ"}
    assert dataset.info.scored == ("PZ", "TZ")
    assert dataset.info.channels == ("T2", "ADC")
    assert [case.id for case in dataset.cases] == ["prostate_00", "prostate_01", "prostate_02"]
    shape = (12, 10, 1) if ending == ".png" else (12, 10, 4)
    for number, case in enumerate(dataset.cases):
        assert case.mask is not None
        np.testing.assert_array_equal(case.mask.array, _pixels(number, shape, high=3))
        assert case.mask.dtype == np.uint8
        for channel, volume in enumerate(case.channels):
            np.testing.assert_array_equal(volume.array, _pixels(10 * number + channel, shape))
        if ".nii" in ending:
            np.testing.assert_allclose(case.image.affine, AFFINES[number])
        assert case.image.has_geometry == (".nii" in ending)
    assert dataset.recognised.startswith("nnU-Net folder: 3 labelled cases")
    assert "not used: 2 cases without labels in imagesTs" in dataset.recognised


def test_tiff_masks_of_floats_must_be_whole(tmp_path: Path) -> None:
    root = _dataset(tmp_path, cases=1, channels=1, ending=".tif")
    label = root / "labelsTr" / "prostate_00.tif"
    tifffile.imwrite(label, _pixels(0, (12, 10, 4), high=3).transpose(2, 1, 0).astype(np.float32), photometric="minisblack")
    mask = _open(root).cases[0].mask
    assert mask is not None
    np.testing.assert_array_equal(mask.array, _pixels(0, (12, 10, 4), high=3))
    tifffile.imwrite(label, np.full((4, 10, 12), 0.5, dtype=np.float32), photometric="minisblack")
    with pytest.raises(InputError, match=r"prostate_00\.tif: found values that are no whole numbers from 0 to 255"):
        _open(root)


def test_colour_is_refused_by_the_reader(tmp_path: Path) -> None:
    root = _dataset(tmp_path, cases=1, channels=1, ending=".png")
    Image.new("RGB", (12, 10)).save(root / "imagesTr" / "prostate_00_0000.png")
    with pytest.raises(InputError, match="found pixels of mode RGB, expected gray"):
        _open(root)


def test_files_may_be_listed(tmp_path: Path) -> None:
    root = _dataset(tmp_path, channels=1)
    (root / "imagesTr").rename(root / "scans")
    listed = {
        f"case {n}": {"images": [f"scans/prostate_{n:02d}_0000.nii.gz"], "label": f"labelsTr/prostate_{n:02d}.nii.gz"} for n in (2, 0)
    }
    contents = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**contents, "dataset": listed}))
    dataset = _open(root)
    assert [case.id for case in dataset.cases] == ["case 2", "case 0"]
    np.testing.assert_array_equal(dataset.cases[0].image.array, _pixels(20))
    assert "numTraining says 3, its list has 2" in dataset.recognised
    listed["case 0"]["images"] *= 2
    (root / "dataset.json").write_text(json.dumps({**contents, "dataset": listed}))
    with pytest.raises(InputError, match="the case case 0 must list 1 images and a label"):
        _open(root)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("labelsTr/prostate_01.nii.gz", "the cases prostate_01 have images in imagesTr but no label"),
        ("imagesTr/prostate_01_*.nii.gz", "the cases prostate_01 have a label in labelsTr but no image"),
        ("imagesTr/prostate_01_0001.nii.gz", "the cases prostate_01 do not have the 2 channels 0000 to 0001"),
        ("*/prostate_01*.nii.gz", "found 2 cases in imagesTr, but numTraining in dataset.json says 3"),
        ("*/*.nii.gz", "found 0 cases in imagesTr"),
    ],
)
def test_incomplete_folders_are_refused(tmp_path: Path, remove: str, message: str) -> None:
    root = _dataset(tmp_path)
    for file in list(root.glob(remove)):
        file.unlink()
    with pytest.raises(InputError, match=message):
        _open(root)


def test_odd_names_and_endings_are_refused(tmp_path: Path) -> None:
    root = _dataset(tmp_path)
    _write(root / "imagesTr" / "stray.nii.gz", _pixels(1), 0)
    with pytest.raises(InputError, match=r"stray\.nii\.gz: has no channel number, expected a name like CASE_0000\.nii\.gz"):
        _open(root)
    with pytest.raises(InputError, match="found a file_ending that is not read"):
        _open(_dataset(tmp_path / "b", file_ending=".mha"))


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    root = _dataset(tmp_path)
    nib.save(nib.Nifti1Image(_pixels(1), np.diag([1.0, 1.0, 5.0, 1.0])), root / "imagesTr" / "prostate_00_0001.nii.gz")
    with pytest.raises(GeometryError, match=r"prostate_00_0001\.nii\.gz .* does not lie on the grid of .*prostate_00_0000\.nii\.gz"):
        _open(root)
    _write(root / "imagesTr" / "prostate_00_0001.nii.gz", _pixels(1, (12, 10, 3)), 0)
    with pytest.raises(GeometryError, match=r"shape \(12, 10, 3\)"):
        _open(root)


def test_regions(tmp_path: Path) -> None:
    labels = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    dataset = _open(_dataset(tmp_path, labels=labels, regions_class_order=[1, 2, 3]))
    assert dataset.info.classes == {0: "background", 1: "label_1", 2: "label_2", 3: "enhancing"}
    assert dataset.info.scored == ("whole tumor", "core", "enhancing")
    assert dataset.info.regions == {"whole tumor": (1, 2, 3), "core": (2, 3)}
    assert "no mask holds enhancing" in dataset.recognised


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"background": 0, "a": 1, "ignore": 2}, None, "'ignore' label"),
        ({"background": 0, "a": 1, "b": 3}, None, "found the label numbers 0, 1, 3, expected 0, 1 and on without gaps"),
        ({"a": 1, "b": 2}, None, "the number 0 must be background"),
        ({"background": 0}, None, "found the label numbers 0, expected"),
        ({"background": 0, "a": 1, "b": 1}, None, "two names of labels have the same number"),
        ({"0": "background", "1": "a", "2": "a"}, None, "two numbers of labels have the same name"),
        ({"0": "background", "a": 1}, None, "mix number → name and name → number"),
        ({"0": "background", "-1": "a"}, None, "must be numbered '0' to '255'"),
        ({"0": "background", "²": "a"}, None, "must be numbered '0' to '255'"),
        ({"0": "background", "256": "a"}, None, "must be numbered '0' to '255'"),
        ({"background": 0, "a": [1, 1]}, None, "the label 'a' must have one number, or a list of different numbers"),
        ({"background": 0, "a": []}, None, "the label 'a' must have one number"),
        ({"background": 0, "a": 256}, None, "the label 'a' must have one number"),
        ({"background": 0, "a": [0, 1]}, None, "0 must be background and part of no region"),
        ({"background": 0, "label_2": 1, "a": [1, 2]}, None, "a label is called label_N"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1], "regions_class_order must hold one label number for each of the 2 labels"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1, 5], "regions_class_order must hold"),
        ({"background": 0, "a\nb": 1}, None, "a label name is empty, longer than 64 characters or has unusual ones"),
    ],
)
def test_labels_that_make_no_sense_are_refused(labels: dict[str, Any], order: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(Path("folder"), labels, order)
