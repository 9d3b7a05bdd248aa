"""One scan to one mask. Expected: the masks of ``evaluate_cases`` on the same data; nibabel and highdicom read what was written."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from small_models import RANGE, ct_values, model_file, oblique, unet

from medquant.data import atomic
from medquant.data.dicom import write_dicom_series
from medquant.data.nifti import write_nifti
from medquant.data.normalise import Normalisation
from medquant.data.opening import open_dataset
from medquant.data.prepare.phantoms import PhantomRequest, prepare_phantom
from medquant.data.prepared_grid import GridRule
from medquant.data.stored import ArrayCache
from medquant.data.tiff import write_tiff_stack
from medquant.data.volume import Dataset, Volume
from medquant.deploy.packed import load_model
from medquant.errors import GeometryError, InputError, UsageError
from medquant.evaluate.evaluation import evaluate_cases
from medquant.predict import one_scan as one_scan_module
from medquant.predict.many_scans import PredictRequest, predict
from medquant.predict.model_case import open_model
from medquant.predict.one_scan import Predicted, PredictOptions


def run(model: Path, scan: Path, out: Path, **options: object) -> tuple[Predicted, list[str]]:
    said: list[str] = []
    chosen = {name: options.pop(name) for name in ("max_memory_bytes", "allow_other_scans", "preview") if name in options}
    engine = str(options.pop("engine", "reference"))
    report = predict(PredictRequest(model, scan, out, engine, options=PredictOptions(**chosen), **options), said.append)  # type: ignore[arg-type]
    (result,) = report.results
    assert result.predicted is not None
    return result.predicted, said


def evaluated(model: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Masks of ``evaluate_cases``, which scores them."""
    opened = open_model(load_model(model), "reference")
    cases = [opened.prepare(case, ArrayCache(None)) for case in dataset.cases]
    return dict(evaluate_cases(cases, dataset.info, opened.predictor).masks)


def scan_file(path: Path, shape: tuple[int, int, int] = (45, 38, 7), affine: np.ndarray | None = None, seed: int = 0) -> Path:
    write_nifti(path, Volume(ct_values(shape, seed), oblique() if affine is None else affine))
    return path


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


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


# --- memory -----------------------------------------------------------------------------------------------------------


def test_little_memory_gives_the_same_mask_and_very_little_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_scan_module, "_SMALL_THINGS_BYTES", 0)
    model = model_file(tmp_path / "m.mq", unet(5, width=8))
    scan_file(tmp_path / "a.nii.gz", (150, 140, 3))
    # 3.6 MB for weights, slices and mask; 12.3 MB for the network on a slice, 1.1 MB on its smallest exact tile, 0.6 MB on any.
    masks = {}
    for allowed in (None, 10_000_000, 4_400_000):
        _, said = run(model, tmp_path / "a.nii.gz", tmp_path / f"{allowed}.nii.gz", max_memory_bytes=allowed)
        masks[allowed] = stored(tmp_path / f"{allowed}.nii.gz")
        narrow = any("the network saw less around each voxel than it looks at; the mask may differ" in line for line in said)
        assert narrow == (allowed == 4_400_000)
    np.testing.assert_array_equal(masks[10_000_000], masks[None])
    with pytest.raises(UsageError, match="MB of --max-memory are left for it; allow more"):
        run(model, tmp_path / "a.nii.gz", tmp_path / "none.nii.gz", max_memory_bytes=3_700_000)
    assert not list(tmp_path.glob("*none*"))


def test_nothing_stays_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    model = model_file(tmp_path / "m.mq", grid=GridRule("axial", (1.1, 1.1)))
    scan_file(tmp_path / "a.nii.gz")
    run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-900])
    with pytest.raises(InputError, match=r"a\.nii\.gz: cut short or damaged"):
        run(model, tmp_path / "a.nii.gz", tmp_path / "broken.nii.gz")
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "broken.nii.gz").exists()


# --- scans that do not fit --------------------------------------------------------------------------------------------


SCAN = {"modality": "CT", "spacing_mm": [[0.7, 0.7, 1.0], [0.9, 1.0, 3.0]], "values": [[-1024, 3071]]}


@pytest.mark.parametrize(
    ("spacing", "fits"),
    [
        ((0.8, 0.9, 2.5), True),
        ((0.36, 0.5, 0.55), True),
        ((1.79, 1.99, 5.9), True),
        ((0.34, 0.9, 2.5), False),
        ((0.8, 2.1, 2.5), False),
        ((0.8, 0.9, 6.1), False),
        ((0.8, 0.9, 0.4), False),
    ],
)
def test_voxels_far_from_those_of_the_training_are_refused(spacing: tuple[float, float, float], fits: bool, tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", scan=SCAN)
    scan_file(tmp_path / "a.nii.gz", affine=oblique(spacing))
    if fits:
        assert run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")[1] == []
        return
    with pytest.raises(GeometryError, match=r"a\.nii\.gz: found voxels of .* mm, the model was trained on \(0\.7 to 0\.9\)×\(0\.7 to 1\)×"):
        run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")
    _, said = run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz", allow_other_scans=True)
    assert any("found voxels of" in line and line.endswith("; allowed") for line in said)


def test_spacing_is_compared_along_the_axes_of_the_body(tmp_path: Path) -> None:
    # Stored (head, right, front): permuted, the same voxels fit.
    model = model_file(tmp_path / "m.mq", scan=SCAN)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 2.5, 0.8, 0.9, 1
    scan_file(tmp_path / "a.nii.gz", (7, 45, 38), affine)
    assert run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")[1] == []
    with pytest.raises(GeometryError):
        run(model_file(tmp_path / "s.mq", scan=SCAN, grid=GridRule("stored")), tmp_path / "a.nii.gz", tmp_path / "out2.nii.gz")


def test_other_kinds_of_scans_are_refused(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", scan=SCAN)
    volume = Volume(ct_values((30, 26, 8)), oblique())
    write_dicom_series(tmp_path / "mr", volume, description="made up", modality="MR")
    write_tiff_stack(tmp_path / "a.tif", volume.array.astype(np.int16))
    write_nifti(tmp_path / "dark.nii.gz", Volume(np.full((30, 26, 8), -900, np.int16), oblique()))
    write_nifti(tmp_path / "small.nii.gz", Volume(ct_values((3, 26, 8)), oblique()))
    nib.save(nib.Nifti1Image(np.zeros((30, 26, 8, 5), np.int16) + volume.array[..., None], oblique()), tmp_path / "four.nii")
    holed = volume.array.astype(np.float32)
    holed[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(holed, oblique()), tmp_path / "holed.nii.gz")
    cases: list[tuple[str, type[Exception], str, bool]] = [
        ("mr", InputError, "found MR, the model was trained on CT", True),
        ("a.tif", GeometryError, "says nothing about its spacing", True),
        ("dark.nii.gz", InputError, "found values from -900 to -900, the model looks at -200 to 300", True),
        ("small.nii.gz", InputError, "slices of 3×26 pixels on the model's grid, expected at least 4×4", False),
        ("four.nii", InputError, "found 5 channels, the model takes 1 channel", False),
        ("holed.nii.gz", InputError, "found 1 NaN of 6240 voxels, expected finite numbers", False),
    ]
    for name, error, words, can_be_allowed in cases:
        with pytest.raises(error, match=words):
            run(model, tmp_path / name, tmp_path / "out.nii.gz")
        assert not (tmp_path / "out.nii.gz").exists()
        if can_be_allowed:
            run(model, tmp_path / name, tmp_path / f"{name}-out.nii.gz", allow_other_scans=True)
        else:
            with pytest.raises(error, match=words):
                run(model, tmp_path / name, tmp_path / "out.nii.gz", allow_other_scans=True)


def test_missing_channels_are_named(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", unet(channels=3))
    for number in (0, 1):
        scan_file(tmp_path / f"case_000{number}.nii.gz")
    with pytest.raises(InputError, match=r"case_0000\.nii\.gz: the model takes 3 channels, but case_0002\.nii\.gz is not there"):
        run(model, tmp_path / "case_0000.nii.gz", tmp_path / "out.nii.gz")


def test_channels_elsewhere_in_the_world_are_refused(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq", unet(channels=2))
    scan_file(tmp_path / "case_0000.nii.gz")
    scan_file(tmp_path / "case_0001.nii.gz", affine=oblique() + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3))
    with pytest.raises(GeometryError, match=r"case_0001\.nii\.gz"):
        run(model, tmp_path / "case_0000.nii.gz", tmp_path / "out.nii.gz")


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq")
    scan = scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "there.nii.gz").write_bytes(b"someone's work")
    (tmp_path / "folder").mkdir()
    cases = [
        ("there.nii.gz", "exists; give --overwrite"),
        ("a.nii.gz", "is the scan itself"),
        ("folder", "is a folder, expected a file name"),
        ("out.dcm", "a DICOM segmentation refers to the slices of a DICOM series"),
        ("out.png", "expected an ending that says what to write"),
        ("nowhere/out.nii.gz", "does not exist; make it first"),
    ]
    for name, words in cases:
        with pytest.raises(UsageError, match=words):
            run(model, scan, tmp_path / name)
    with pytest.raises(UsageError, match="is the scan itself"):
        run(model, scan, tmp_path / "a.nii.gz", overwrite=True)
    with pytest.raises(UsageError, match="its ending means nifti, but --format tiff was given"):
        run(model, scan, tmp_path / "out.nii.gz", mask_format="tiff")
    with pytest.raises(UsageError, match="unknown format 'nrrd'"):
        run(model, scan, tmp_path / "out.nii.gz", mask_format="nrrd")
    with pytest.raises(UsageError, match="--resume goes with a folder"):
        run(model, scan, tmp_path / "out.nii.gz", resume=True)
    assert (tmp_path / "there.nii.gz").read_bytes() == b"someone's work"
    run(model, scan, tmp_path / "there.nii.gz", overwrite=True)
    assert stored(tmp_path / "there.nii.gz").shape == (45, 38, 7)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_file(tmp_path / "m.mq")
    scan = scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.nii.gz").write_bytes(b"before")
    fsync = os.fsync

    def full(descriptor: int) -> None:
        # The scratch folder has room, the folder of the mask has none.
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(UsageError, match=r"m\.nii\.gz: cannot be written \(No space left on device\)"):
        run(model, scan, tmp_path / "out" / "m.nii.gz", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.nii.gz"]
    assert (tmp_path / "out" / "m.nii.gz").read_bytes() == b"before"

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", no_room)
    with pytest.raises(UsageError, match="set TMPDIR to a folder with more room"):
        run(model, scan, tmp_path / "out" / "n.nii.gz")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.nii.gz"]
