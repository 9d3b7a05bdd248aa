"""The Pancreas-CT reader. Expected: the data's README, nibabel and pydicom for real files; the generator's own masks for made ones."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medquant.data.datasets import pancreas_ct
from medquant.data.datasets.pancreas_files import find_cases
from medquant.data.datasets.pancreas_label import place_label
from medquant.data.datasets.phantom_ct import MARKER_HU, MARKER_MM, AbdomenGrid, make_abdomen
from medquant.data.nifti import write_nifti
from medquant.data.opening import open_dataset
from medquant.data.prepare.pancreas_phantom import LABEL_FOLDER, LabelFault, PancreasPhantom, case_numbers
from medquant.data.prepare.spinal_phantom import oriented
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache, StoredVolume
from medquant.data.volume import Case, Dataset, Volume
from medquant.errors import GeometryError, InputError

GRID = AbdomenGrid.of_size(64, 30)
ORIENTATIONS = ["".join(codes) for axes in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*axes)]


def _download(folder: Path, *numbers: int, layout: str = "official", fault: LabelFault = "none") -> Path:
    folder.mkdir(exist_ok=True)
    PancreasPhantom(GRID, numbers, label_fault=fault).write(folder, layout)
    return folder


def _label(folder: Path, number: int) -> Path:
    return folder / LABEL_FOLDER / f"label{number:04d}.nii.gz"


def _made(number: int) -> Case:
    return make_abdomen(0, number, GRID)


def _mask(case: Case) -> Volume:
    assert case.mask is not None
    return case.mask


def _check(dataset: Dataset, *numbers: int) -> None:
    """The cases are those of the generator, voxel by voxel at the same places (its slices run the way the reader sorts them)."""
    assert [case.id for case in dataset.cases] == [f"PANCREAS_{number:04d}" for number in numbers]
    for case, number in zip(dataset.cases, numbers, strict=True):
        made = _made(number)
        np.testing.assert_array_equal(case.image.array, made.image.array)
        np.testing.assert_array_equal(_mask(case).array, _mask(made).array)
        np.testing.assert_allclose(case.image.affine, made.image.affine, atol=1e-4)
        np.testing.assert_array_equal(_mask(case).affine, case.image.affine)
        assert (case.subject, case.site, case.image.dtype, _mask(case).dtype) == (case.id, "", np.int16, np.uint8)


# ------------------------------------------------------------------------------------------------------------- real files


def test_the_real_excerpt(shared_data: Path) -> None:
    folder = shared_data / "pancreas_ct" / "Pancreas-CT"
    dataset = open_dataset(folder)
    assert dataset.info.name == "pancreas_ct"
    assert [case.id for case in dataset.cases] == ["PANCREAS_0001", "PANCREAS_0002"]
    for number, (case, mean) in enumerate(zip(dataset.cases, (104, 92), strict=True), start=1):
        # Means from the README; the label array lies on the pixels as label.transpose(1, 0, 2).
        label = np.asarray(nib.load(folder / LABEL_FOLDER / f"label000{number}.nii.gz").dataobj)
        slices = sorted((folder / case.id).rglob("*.dcm"))
        pixels = np.stack([pydicom.dcmread(path).pixel_array for path in slices], axis=2)
        np.testing.assert_array_equal(case.image.array.transpose(1, 0, 2), pixels)
        np.testing.assert_array_equal(_mask(case).array, label)
        assert round(float(case.image.array[_mask(case).array == 1].mean())) == mean
    assert "CHECK" not in dataset.recognised
    assert "92 to 104 HU" in dataset.recognised
    assert open_dataset(shared_data / "pancreas_ct").content_sha256 == dataset.content_sha256


def test_real_labels_mirrored_on_purpose(shared_data: Path) -> None:
    first, second = open_dataset(shared_data / "pancreas_ct" / "Pancreas-CT").cases
    mirrored = [replace(Volume(_mask(case).array, _mask(case).affine), array=_mask(case).array[:, ::-1]) for case in (first, second)]
    # Mirrored, the means are 94 and 90 HU: no limit on the mean alone would notice.
    placed = place_label(first.image, mirrored[0], "A")
    assert (placed.trust, round(placed.fit.mean_hu)) == ("mirrored", 104)
    np.testing.assert_array_equal(placed.order.apply(mirrored[0].array), _mask(first).array)
    with pytest.raises(GeometryError, match=r"B: under the label lies, by the affines, mean 90 HU, 91 % .*mirrored .* mean 92 HU, 99 %"):
        place_label(second.image, mirrored[1], "B")


# ---------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", ["official", "older"])
def test_both_layouts_with_the_gap_at_25(tmp_path: Path, layout: str) -> None:
    dataset = open_dataset(_download(tmp_path, 24, 26, layout=layout))
    _check(dataset, 24, 26)
    # The label of 25 is left over; the older layout has an empty folder, too.
    assert _label(tmp_path, 25).is_file()
    assert (tmp_path / "DOI" / "PANCREAS_0025").is_dir() == (layout == "older")
    assert "the collection took them back: 25" in dataset.recognised
    assert "NOT USED" not in dataset.recognised


def test_marker_lies_at_its_place_on_the_right(tmp_path: Path) -> None:
    for layout in ("official", "older"):
        case = open_dataset(_download(tmp_path / layout, 3, layout=layout)).cases[0]
        bright = np.argwhere(case.image.array > MARKER_HU)
        place = case.image.affine[:3, :3] @ bright.mean(axis=0) + case.image.affine[:3, 3]
        # Half a voxel: 3.2 and 2 mm.
        assert (np.abs(place - MARKER_MM) <= np.array([3.2, 3.2, 2.0])).all()
        assert place[0] > 0


def test_places_of_scans_and_labels(tmp_path: Path) -> None:
    whole = _download(tmp_path / "whole", 1)
    # As the retriever of the archive writes it.
    retriever = tmp_path / "manifest"
    shutil.copytree(whole / "Pancreas-CT", retriever / "manifest-1599750808610" / "Pancreas-CT")
    shutil.copytree(whole / LABEL_FOLDER, retriever / LABEL_FOLDER / LABEL_FOLDER)
    # Cases and labels directly in the folder, among files of other programs.
    flat = tmp_path / "flat"
    shutil.copytree(whole / "Pancreas-CT", flat)
    shutil.copy(_label(whole, 1), flat)
    (flat / "._label0001.nii.gz").write_bytes(b"resource fork")
    (flat / "PANCREAS_0001" / ".DS_Store").touch()
    for folder in (whole, retriever, flat):
        assert pancreas_ct.recognise(folder) == "it holds 1 folders PANCREAS_nnnn and 1 label files"
        _check(open_dataset(folder), 1)
    assert pancreas_ct.recognise(tmp_path) is None


def test_pairs_by_number_and_names_what_is_left(tmp_path: Path) -> None:
    folder = _download(tmp_path, 2, 3, 5)
    _label(folder, 2).unlink()
    shutil.rmtree(folder / "Pancreas-CT" / "PANCREAS_0005")
    # By position in the list the label of 3 would now go with scan 2.
    dataset = open_dataset(folder)
    _check(dataset, 3)
    assert "NOT USED for want of a label: scans 2" in dataset.recognised
    assert "NOT USED for want of a scan: labels 5" in dataset.recognised
    _label(folder, 3).unlink()
    with pytest.raises(InputError, match="found 2 scans and 1 labels, none of one number"):
        open_dataset(folder)


def test_a_number_twice(tmp_path: Path) -> None:
    folder = _download(tmp_path, 1)
    shutil.copytree(folder / "Pancreas-CT", folder / "DOI")
    with pytest.raises(InputError, match="two folders with slices of number 1"):
        find_cases(folder)
    # An empty folder beside the filled one is what some downloads leave.
    shutil.rmtree(folder / "DOI")
    (folder / "DOI" / "PANCREAS_0001").mkdir(parents=True)
    assert len(find_cases(folder).cases) == 1
    shutil.copy(_label(folder, 1), folder)
    with pytest.raises(InputError, match="two label files of number 1"):
        find_cases(folder)


def test_damaged_scan_names_the_case(tmp_path: Path) -> None:
    folder = _download(tmp_path, 1)
    slices = sorted((folder / "Pancreas-CT").rglob("*.dcm"))
    slices[10].unlink()
    with pytest.raises(GeometryError, match=r"PANCREAS_0001: .*missing"):
        open_dataset(folder)


def test_case_numbers_leave_the_gaps() -> None:
    numbers = case_numbers(80)
    assert (len(numbers), numbers[0], numbers[-1]) == (80, 1, 82)
    assert {25, 70}.isdisjoint(numbers)


# -------------------------------------------------------------------------------------------------------------- placement


@pytest.mark.parametrize("codes", ["LAI", "RAS", "LPS", "SRA", "PIR"])
def test_label_of_other_axis_order(codes: str) -> None:
    case = _made(1)
    label = oriented(_mask(case), codes)
    placed = place_label(case.image, label, "A")
    assert placed.trust == "affine"
    np.testing.assert_array_equal(placed.order.apply(label.array), _mask(case).array)


@pytest.mark.parametrize("codes", ["LAI", "RAS", "IPL"])
def test_label_of_other_axis_order_and_origin(codes: str) -> None:
    case = _made(1)
    label = oriented(_mask(case), codes)
    moved = label.affine.copy()
    moved[:3, 3] += (40.0, -30.0, 500.0)
    placed = place_label(case.image, replace(label, affine=moved), "A")
    assert placed.trust == "directions"
    np.testing.assert_array_equal(placed.order.apply(label.array), _mask(case).array)


@pytest.mark.slow
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_label_of_every_axis_order(codes: str) -> None:
    assert len(ORIENTATIONS) == 48
    for number in (1, 2):
        test_case = _made(number)
        label = oriented(_mask(test_case), codes)
        np.testing.assert_array_equal(place_label(test_case.image, label, "A").order.apply(label.array), _mask(test_case).array)


@pytest.mark.parametrize(
    ("fault", "said"), [("mirrored", "the label lies wrong by its header"), ("origin", "the label's origin is not that of the scan")]
)
def test_label_faults_are_undone_aloud(tmp_path: Path, fault: LabelFault, said: str) -> None:
    dataset = open_dataset(_download(tmp_path, 1, 2, fault=fault))
    _check(dataset, 1, 2)
    assert f"CHECK PANCREAS_0001, PANCREAS_0002: {said}" in dataset.recognised


def test_label_without_transform_goes_by_index(tmp_path: Path) -> None:
    folder = _download(tmp_path, 1)
    write_nifti(_label(folder, 1), replace(_mask(_made(1)), has_geometry=False))
    dataset = open_dataset(folder)
    _check(dataset, 1)
    assert "CHECK PANCREAS_0001" in dataset.recognised


def test_label_that_fits_nowhere(tmp_path: Path) -> None:
    folder = _download(tmp_path, 1)
    mask = _mask(_made(1))
    in_air = np.zeros_like(mask.array)
    in_air[25:40, 2:5, 10:20] = 1
    write_nifti(_label(folder, 1), replace(mask, array=in_air))
    with pytest.raises(GeometryError, match=r"PANCREAS_0001: .*mean -\d+ HU, 0 % soft tissue; .*expected 60 to 130 HU.*\n.*viewer"):
        open_dataset(folder)


@pytest.mark.parametrize("part", [np.s_[:-1], np.s_[:, :-1], np.s_[:, :, :-1]])
def test_label_of_another_shape(tmp_path: Path, part: tuple[slice, ...]) -> None:
    folder = _download(tmp_path, 1)
    mask = _mask(_made(1))
    write_nifti(_label(folder, 1), replace(mask, array=mask.array[part]))
    with pytest.raises(GeometryError, match="the label of PANCREAS_0001"):
        open_dataset(folder)


def test_label_values(tmp_path: Path) -> None:
    folder = _download(tmp_path, 1)
    mask = _mask(_made(1))
    write_nifti(_label(folder, 1), replace(mask, array=np.zeros_like(mask.array)))
    with pytest.raises(InputError, match="the label of PANCREAS_0001 is empty"):
        open_dataset(folder)
    changed = mask.array.copy()
    changed[0, 0, 0] = 2
    write_nifti(_label(folder, 1), replace(mask, array=changed))
    with pytest.raises(InputError, match=r"label0001\.nii\.gz: found the values 2 in 1 voxels, expected only 0 .* and 1"):
        open_dataset(folder)


# ------------------------------------------------------------------------------------------------------------------ cache


def test_second_opening_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _download(tmp_path / "raw", 1, 2, fault="mirrored")
    options = ReadOptions(cache=ArrayCache(tmp_path / "cache"))
    first = open_dataset(folder, options=options)
    assert all(isinstance(volume, StoredVolume) for case in first.cases for volume in (case.image, _mask(case)))
    for name in ("read_dicom_series", "read_dicom_files", "read_nifti_mask", "place_label"):
        monkeypatch.setattr(pancreas_ct, name, None)
    second = open_dataset(folder, options=options)
    assert (second.content_sha256, second.recognised) == (first.content_sha256, first.recognised)
    monkeypatch.undo()
    # Another label file is not taken for the old one.
    write_nifti(_label(folder, 1), _mask(_made(1)))
    third = open_dataset(folder, options=options)
    assert "CHECK PANCREAS_0002: " in third.recognised
    _check(third, 1, 2)


def test_without_cache_the_same(tmp_path: Path) -> None:
    folder = _download(tmp_path, 1)
    dataset = open_dataset(folder, options=ReadOptions())
    _check(dataset, 1)
    assert dataset.content_sha256 == open_dataset(folder).content_sha256
