"""One scan to one mask. Expected: the masks of ``evaluate_cases`` on the same data; nibabel and highdicom read what was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from scan_runs import run, scan_file, stored
from small_models import RANGE, ct_values, model_file, oblique, unet

from medquant.data.dicom import write_dicom_series
from medquant.data.nifti import write_nifti
from medquant.data.normalise import Normalisation
from medquant.data.opening import open_dataset
from medquant.data.prepare.phantoms import PhantomRequest, prepare_phantom
from medquant.data.prepared_grid import GridRule
from medquant.data.stored import ArrayCache
from medquant.data.volume import Dataset, Volume
from medquant.deploy.packed import load_model
from medquant.evaluate.evaluation import evaluate_cases
from medquant.predict.model_case import open_model


def evaluated(model: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Masks of ``evaluate_cases``, which scores them."""
    opened = open_model(load_model(model), "reference")
    cases = [opened.prepare(case, ArrayCache(None)) for case in dataset.cases]
    return dict(evaluate_cases(cases, dataset.info, opened.predictor).masks)


# --- the masks of evaluate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [GridRule("axial"), GridRule("axial", (5.1, 6.3)), GridRule("coronal"), GridRule("stored", (7.0, 7.0))])
def test_nifti_gets_the_mask_that_is_scored(rule: GridRule, tmp_path: Path) -> None:
    prepare_phantom(PhantomRequest("pancreas_ct", "nnunet", subjects=1, slices=6, size=96), tmp_path / "data", lambda _: None)
    model = model_file(tmp_path / "m.mq", grid=rule)
    ((case, mask),) = evaluated(model, open_dataset(tmp_path / "data")).items()
    predicted, _ = run(model, tmp_path / "data" / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(stored(tmp_path / "out.nii.gz"), mask)
    assert 0 < np.count_nonzero(mask) < mask.size
    assert predicted.voxels == {0: mask.size - np.count_nonzero(mask), 1: np.count_nonzero(mask)}
    source = nib.load(tmp_path / "data" / "imagesTr" / f"{case}_0000.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, source.affine)


@pytest.mark.parametrize("rule", [GridRule("axial"), GridRule("axial", (5.1, 6.3))])
def test_dicom_gets_the_mask_that_is_scored(rule: GridRule, tmp_path: Path) -> None:
    prepare_phantom(PhantomRequest("pancreas_ct", "official", subjects=1, slices=6, size=96), tmp_path / "data", lambda _: None)
    model = model_file(tmp_path / "m.mq", grid=rule)
    (mask,) = evaluated(model, open_dataset(tmp_path / "data")).values()
    folder = next(path.parent for path in (tmp_path / "data").rglob("*.dcm"))
    run(model, folder, tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(stored(tmp_path / "out.nii.gz"), mask)
    run(model, folder, tmp_path / "out.dcm")
    segmentation = hd.seg.segread(tmp_path / "out.dcm")
    assert [str(item.SegmentLabel) for item in segmentation.SegmentSequence] == ["organ 1"]
    sources = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in folder.glob("*.dcm")}
    assert {str(uid) for _, _, uid in segmentation.get_source_image_uids()} <= sources
    found = segmentation.get_volume(combine_segments=True).array
    assert np.count_nonzero(found) == np.count_nonzero(mask)
    identification = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert identification.AlgorithmName == "medquant"
    assert load_model(model).sha256[:16] in identification.AlgorithmVersion


def test_tiff_and_png_get_the_mask_that_is_scored(tmp_path: Path) -> None:
    prepare_phantom(PhantomRequest("isbi_em", "official", slices=4, size=64), tmp_path / "data", lambda _: None)
    model = model_file(tmp_path / "m.mq", normalisation=Normalisation("zscore_slice"), grid=GridRule("stored"))
    masks = list(evaluated(model, open_dataset(tmp_path / "data")).values())
    run(model, tmp_path / "data" / "train-volume.tif", tmp_path / "out.tif")
    pages = tifffile.imread(tmp_path / "out.tif")
    np.testing.assert_array_equal(pages, np.concatenate(masks, axis=2).transpose(2, 1, 0))
    Image.fromarray(tifffile.imread(tmp_path / "data" / "train-volume.tif")[2]).save(tmp_path / "page.png")
    run(model, tmp_path / "page.png", tmp_path / "page.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "page.tif"), pages[2])
    # A TIFF has no place in the world, and neither has its mask: both codes are 0.
    predicted, _ = run(model, tmp_path / "data" / "train-volume.tif", tmp_path / "out.nii.gz")
    assert (int(nib.load(tmp_path / "out.nii.gz").header["sform_code"]), predicted.voxel_ml) == (0, None)


@pytest.mark.parametrize("normalisation", [RANGE, Normalisation("zscore_slice"), Normalisation("zscore_volume")])
@pytest.mark.parametrize("network", [unet(3, channels=2), unet(2, channels=2, axes=3, width=2, levels=1)], ids=["2D", "3D"])
def test_several_channels_and_every_normalisation(normalisation: Normalisation, network: object, tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", network, normalisation, GridRule("axial", (1.1, 1.3)))  # type: ignore[arg-type]
    for number in (0, 1):
        scan_file(tmp_path / f"case_000{number}.nii.gz", seed=number)
    four = np.stack([ct_values((45, 38, 7), number) for number in (0, 1)], axis=3)
    nib.save(nib.Nifti1Image(four, oblique()), tmp_path / "four.nii")
    masks = []
    for name in ("case_0000.nii.gz", "case_0001.nii.gz", "four.nii"):
        run(model, tmp_path / name, tmp_path / f"out-{name}")
        masks.append(stored(tmp_path / f"out-{name}"))
    opened = open_model(load_model(model), "reference")
    from medquant.data.nifti import read_nifti
    from medquant.data.volume import Case
    from medquant.predict.windows import predict_case

    volumes = [read_nifti(tmp_path / f"case_000{number}.nii.gz") for number in (0, 1)]
    case = Case("c", "c", "", volumes[0], None, "c", (volumes[1],))
    expected = predict_case(opened.prepare(case, ArrayCache(None)), opened.predictor)
    for mask in masks:
        np.testing.assert_array_equal(mask, expected)
    assert len(np.unique(expected)) > 1


def test_the_coarse_region_is_used_and_an_empty_one_is_said_aloud(tmp_path: Path) -> None:
    coarse = model_file(tmp_path / "coarse.mq", unet(seed=5), grid=GridRule("axial", (3.0, 3.0)))
    region = {"kind": "coarse", "margin_mm": 2.0, "minimum": [8, 8]}
    model = model_file(tmp_path / "m.mq", coarse=coarse, region=region)
    scan_file(tmp_path / "a.nii.gz")
    run(model, tmp_path / "a.nii.gz", tmp_path / "a-out.nii.gz")
    opened = open_model(load_model(model), "reference")
    from medquant.data.nifti import read_nifti
    from medquant.data.volume import Case
    from medquant.predict.windows import predict_case

    case = Case("c", "c", "", read_nifti(tmp_path / "a.nii.gz"), None, "c")
    np.testing.assert_array_equal(stored(tmp_path / "a-out.nii.gz"), predict_case(opened.prepare(case, ArrayCache(None)), opened.predictor))
    # The first class of the head never wins: a network that finds nothing.
    silent = unet(seed=5)
    head = silent.nodes[-1]
    nothing = replace(silent, nodes=(*silent.nodes[:-1], replace(head, bias=np.full(1, -100_000))))  # type: ignore[call-arg]
    empty = model_file(tmp_path / "coarse2.mq", nothing, grid=GridRule("axial", (3.0, 3.0)))
    model = model_file(tmp_path / "m2.mq", nothing, coarse=empty, region=region)
    predicted, said = run(model, tmp_path / "a.nii.gz", tmp_path / "b-out.nii.gz")
    assert predicted.voxels == {0: 45 * 38 * 7}
    assert any("a.nii.gz: the mask is EMPTY, nothing was found of organ 1" in line for line in said)
    assert any("the network that looks for the region found nothing; the whole scan was searched" in line for line in said)
    assert all(line.startswith("warning: ") for line in said)


def test_one_output_is_written_as_the_class_it_stands_for(tmp_path: Path) -> None:
    scan_file(tmp_path / "a.nii.gz")
    masks = []
    for positive, names in ((1, {0: "none", 1: "one"}), (7, {0: "none", 7: "seven"})):
        model = model_file(tmp_path / f"{positive}.mq", classes=names, scored=(names[positive],), positive_class=positive)
        predicted, _ = run(model, tmp_path / "a.nii.gz", tmp_path / f"{positive}.nii.gz")
        masks.append(stored(tmp_path / f"{positive}.nii.gz"))
        ((name, each),) = [(name, each) for name, each in predicted.to_json()["classes"].items() if name != "none"]  # type: ignore[attr-defined]
        assert (name, each["number"]) == (names[positive], positive)
        assert each["voxels"] == np.count_nonzero(masks[-1])
        assert each["ml"] == pytest.approx(each["voxels"] * 0.8 * 0.9 * 2.5 / 1000)
    np.testing.assert_array_equal(masks[1], 7 * masks[0])


# --- DICOM and NIfTI of one scan --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [(-1, -1, 1), (1, 1, 1), (-1, 1, -1)])
@pytest.mark.parametrize("rule", [GridRule("axial"), GridRule("axial", (1.1, 1.0)), GridRule("sagittal")])
def test_dicom_and_nifti_of_one_scan_get_one_mask_in_the_world(flips: tuple[int, int, int], rule: GridRule, tmp_path: Path) -> None:
    volume = Volume(ct_values((30, 26, 8)), oblique(flips=flips))
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_dicom_series(tmp_path / "series", volume, description="made up")
    model = model_file(tmp_path / "m.mq", unet(4), grid=rule)
    for scan, name in ((tmp_path / "a.nii.gz", "nifti.nii.gz"), (tmp_path / "series", "dicom.nii.gz")):
        run(model, scan, tmp_path / name)
    one, other = nib.load(tmp_path / "nifti.nii.gz"), nib.load(tmp_path / "dicom.nii.gz")
    check_one_world(one, other)


def check_one_world(one: nib.Nifti1Image, other: nib.Nifti1Image) -> None:
    """Every voxel of the one lies on a voxel of the other, of the same class."""
    mask = np.asarray(one.dataobj)
    places = np.stack(np.meshgrid(*(np.arange(length) for length in mask.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    world = places @ one.affine[:3, :3].T + one.affine[:3, 3]
    there = (world - other.affine[:3, 3]) @ np.linalg.inv(other.affine[:3, :3]).T
    assert np.abs(there - np.rint(there)).max() < 1e-3
    index = np.rint(there).astype(int)
    np.testing.assert_array_equal(np.asarray(other.dataobj)[tuple(index.T)].reshape(mask.shape), mask)
    assert len(np.unique(mask)) > 1


def test_a_clinical_series_predicted_from_dicom_and_from_nifti(shared_data: Path, tmp_path: Path) -> None:
    from medquant.data.dicom import read_dicom_series

    series = shared_data / "pancreas_ct" / "totalseg_dicom" / "CT"
    write_nifti(tmp_path / "scan.nii.gz", read_dicom_series(series))
    model = model_file(tmp_path / "m.mq", unet(3), grid=GridRule("axial", (1.5, 1.5)))
    run(model, series, tmp_path / "dicom.nii.gz", engine="auto")
    run(model, tmp_path / "scan.nii.gz", tmp_path / "nifti.nii.gz", engine="auto")
    check_one_world(nib.load(tmp_path / "dicom.nii.gz"), nib.load(tmp_path / "nifti.nii.gz"))
    run(model, series, tmp_path / "dicom.dcm", engine="auto")
    segmentation = hd.seg.segread(tmp_path / "dicom.dcm")
    assert np.count_nonzero(segmentation.get_volume(combine_segments=True).array) == np.count_nonzero(stored(tmp_path / "dicom.nii.gz"))
