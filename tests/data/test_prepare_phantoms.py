"""Phantoms in the official layouts. Expected: places stated by the generators, found again with nibabel, pydicom, SimpleITK and Pillow."""

from __future__ import annotations

import hashlib
import itertools
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from scipy.ndimage import gaussian_filter

from medquant.data.datasets.phantom import make_case
from medquant.data.datasets.phantom_anatomy import Grid
from medquant.data.datasets.phantom_ct import MARKER_HU, MARKER_MM, PADDING_HU, AbdomenGrid, make_abdomen
from medquant.data.datasets.phantom_em import MARKER_PLACE, MARKER_VALUE, make_em_stack
from medquant.data.datasets.phantom_scanner import MARKER_OFFSET_MM
from medquant.data.opening import open_dataset
from medquant.data.prepare.pancreas_phantom import LABEL_FOLDER
from medquant.data.prepare.phantoms import KINDS, PhantomKind, PhantomLayout, PhantomRequest, prepare_phantom
from medquant.data.prepare.spinal_phantom import FOLDERS, SITE_STYLES, SpinalPhantom
from medquant.errors import ConfigError, MedquantError, UsageError

SMALL: dict[PhantomKind, dict[str, int]] = {
    "spinal_gm": {"subjects": 1, "sites": 2, "slices": 2, "raters": 2},
    "isbi_em": {"size": 48, "slices": 2},
    "pancreas_ct": {"subjects": 1, "size": 48, "slices": 12},
}


def _write(kind: PhantomKind, out: Path, layout: PhantomLayout = "official", seed: int = 0, **options: object) -> Path:
    prepare_phantom(PhantomRequest(kind, layout, seed, **{**SMALL[kind], **options}), out, lambda what: None)  # type: ignore[arg-type]
    return out


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("layout", ["official", "nnunet", "msd"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_request_same_bytes_and_other_seed_others(tmp_path: Path, kind: PhantomKind, layout: PhantomLayout) -> None:
    first, second = (_digests(_write(kind, tmp_path / name, layout)) for name in ("a", "b"))
    assert first == second
    assert _digests(_write(kind, tmp_path / "c", layout, seed=1)) != first
    assert open_dataset(tmp_path / "a").cases


# ------------------------------------------------------------------------------------------------------------- Pancreas-CT


@pytest.mark.parametrize("layout", ["official", "older"])
def test_abdomen_marker_seen_by_simpleitk(tmp_path: Path, layout: PhantomLayout) -> None:
    folder = _write("pancreas_ct", tmp_path / "p", layout, size=128, slices=60)
    files = sorted(path for path in folder.rglob("*.dcm"))
    assert files[0].name == ("1-001.dcm" if layout == "official" else "000000.dcm")
    assert files[0].relative_to(folder).parts[:2] == ("Pancreas-CT" if layout == "official" else "DOI", "PANCREAS_0001")
    assert len(files) == 60
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files[0].parent)))
    image = reader.Execute()
    bright = np.argwhere(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0) > MARKER_HU).mean(axis=0)
    x, y, z = image.TransformContinuousIndexToPhysicalPoint(bright.tolist())
    # SimpleITK counts to the left and to the back. Voxels of 3.2×3.2×2 mm.
    assert np.abs(np.array([-x, -y, z]) - MARKER_MM).max() < 0.8
    label = nib.load(folder / LABEL_FOLDER / "label0001.nii.gz")
    corner = image.TransformIndexToPhysicalPoint((0, 0, 0))
    # SimpleITK may sort the slices the other way round: the label's first slice is its first or its last.
    last = image.TransformIndexToPhysicalPoint((0, 0, 59))
    found = label.affine[:3, 3] * (-1, -1, 1)
    assert min(np.abs(found - corner).max(), np.abs(found - last).max()) < 1e-3


def test_abdomen_rows_run_from_back_to_front(tmp_path: Path) -> None:
    folder = _write("pancreas_ct", tmp_path / "p", size=128)
    first, second = (pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))[:2])
    assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, -1, 0]
    assert second.ImagePositionPatient[2] < first.ImagePositionPatient[2]
    assert first.Modality == "CT"
    assert first.pixel_array[0, 0] == PADDING_HU
    # The table, 120 mm behind the middle of the scan (row 26 of 128), and air at the same distance in front.
    assert (first.pixel_array[24:27, 60:68] > -600).any()
    assert not (first.pixel_array[101:104, 60:68] > -600).any()


def test_abdomen_organs() -> None:
    grid = AbdomenGrid.of_size(128, 60)
    for number in range(1, 7):
        case = make_abdomen(0, number, grid)
        assert case.mask is not None
        inside = case.image.array[case.mask.array == 1]
        volume_ml = len(inside) * np.prod(case.image.spacing_mm) / 1000
        # A pancreas has 40 to 120 ml; limits of enhancement as in the specification of the collection.
        assert 35 < volume_ml < 120
        assert 60 < inside.mean() < 130
        # Longer than wide, mostly left of the middle, not to be found by a threshold.
        x, y, _z = (case.image.affine[:3, :3] @ np.argwhere(case.mask.array).T + case.image.affine[:3, 3:]).round(1)
        assert np.ptp(x) > 1.8 * np.ptp(y)
        assert x.min() < -50 < 30 < x.max()
        similar = np.count_nonzero(np.abs(case.image.array - inside.mean()) < inside.std())
        assert similar > 5 * len(inside)
        assert case.image.array.max() > MARKER_HU > case.image.array[case.mask.array == 1].max()


def test_abdomen_grid_limits() -> None:
    assert AbdomenGrid.of_size(512, 200) == AbdomenGrid(512, 200, 0.8, 1.0)
    for size, slices, spacing in ((0, 5, None), (64, 0, None), (64, 5, 1.0), (64, 5, 100.0), (64, 5, float("nan"))):
        with pytest.raises(ConfigError):
            AbdomenGrid.of_size(size, slices, spacing)


@pytest.mark.slow
def test_full_size_scan_is_quick() -> None:
    start = time.process_time()
    case = make_abdomen(0, 1, AbdomenGrid.of_size(512, 200))
    assert time.process_time() - start < 3.0
    assert case.image.shape == (512, 512, 200)


# --------------------------------------------------------------------------------------------------------------- spinal GM


@pytest.mark.parametrize("layout", ["official", "older"])
def test_cord_files_and_places(tmp_path: Path, layout: PhantomLayout) -> None:
    folder = _write("spinal_gm", tmp_path / "s", layout, sites=4, slices=3, raters=4)
    training, test = (folder / name for name in FOLDERS[layout])
    expected = {f"site{site}-sc01-{end}" for site in range(1, 5) for end in ("image.nii.gz", "levels.txt")} | {"license.txt"}
    assert {path.name for path in test.iterdir()} == {name.replace("sc01", "sc11") for name in expected}
    expected |= {f"site{site}-sc01-mask-r{rater}.nii.gz" for site in range(1, 5) for rater in range(1, 5)}
    assert {path.name for path in training.iterdir()} == expected
    for site, style in enumerate(SITE_STYLES, start=1):
        image = nib.load(training / f"site{site}-sc01-image.nii.gz")
        assert "".join(nib.aff2axcodes(image.affine)) == style.orientation
        np.testing.assert_allclose(image.header.get_zooms(), (0.5 * style.scale, 0.5 * style.scale, style.slice_mm), rtol=1e-6)
        made = make_case(Grid(round(96 / style.scale), 0.5 * style.scale), 3, 0, site, 1, slice_mm=style.slice_mm)
        # The value at a place in millimetres is the generator's, whatever way the file is stored.
        stored = np.asarray(image.dataobj)
        indices = np.argwhere(np.ones(stored.shape, dtype=bool))[::97]
        places = nib.affines.apply_affine(image.affine, indices)
        own = np.rint(nib.affines.apply_affine(np.linalg.inv(made.image.affine), places)).astype(int)
        np.testing.assert_allclose(stored[tuple(indices.T)], made.image.array[tuple(own.T)], atol=0.5 if style.stored == "int16" else 1e-4)


def test_cord_marker_is_on_the_right(tmp_path: Path) -> None:
    dataset = open_dataset(_write("spinal_gm", tmp_path / "s", sites=4, slices=6))
    for case in dataset.cases:
        assert case.mask is not None
        # Slices lie across the cord, whatever way the file is stored.
        assert int(np.abs(case.image.affine[2, :3]).argmax()) == 2
        surplus = []
        for k in range(6):
            page = gaussian_filter(case.image.array[:, :, k].astype(float), 0.4 / np.array(case.image.spacing_mm[:2]))
            middle = np.argwhere(case.mask.array[:, :, k] > 0).mean(axis=0)
            places = (np.moveaxis(np.indices(page.shape), 0, -1) - middle) @ case.image.affine[:2, :2].T
            right, left = (np.linalg.norm(places - (side, MARKER_OFFSET_MM[1]), axis=-1) for side in (13.5, -13.5))
            # Relative to its surroundings, because the shading makes one side brighter. Turned cords move it by up to 2.2 mm.
            surplus.append(page[right < 2.5].max() / np.median(page[right < 6]) - page[left < 2.5].max() / np.median(page[left < 6]))
        assert np.mean(surplus) > 0.3, surplus


def test_raters_differ_and_agree() -> None:
    case = SpinalPhantom(subjects=1, sites=1).case(1, 1)
    assert case.mask is not None
    masks = [rater.array for rater in case.raters]
    assert len(masks) == 4
    for first, second in itertools.combinations(masks, 2):
        # Their hands wander apart: neither outline of the cord lies within the other.
        assert (((first > 0) & (second == 0)).any(), ((first == 0) & (second > 0)).any()) == (True, True)
        for number in (1, 2):
            both = np.count_nonzero((first == number) & (second == number))
            dice = 2 * both / (np.count_nonzero(first == number) + np.count_nonzero(second == number))
            assert 0.8 < dice < 0.995
    votes = np.stack([np.count_nonzero([mask == number for mask in masks], axis=0) for number in range(3)])
    np.testing.assert_array_equal(case.mask.array, votes.argmax(axis=0))


def test_further_raters_change_nothing_else() -> None:
    grid = Grid(96, 0.5)
    alone, many = make_case(grid, 2, 0, 1, 1), make_case(grid, 2, 0, 1, 1, further_raters=3)
    assert alone.mask is not None
    np.testing.assert_array_equal(alone.image.array, many.image.array)
    np.testing.assert_array_equal(alone.mask.array, many.raters[0].array)
    assert alone.raters == ()


# --------------------------------------------------------------------------------------------------------------------- EM


def test_em_files_polarity_and_marker(tmp_path: Path) -> None:
    folder = _write("isbi_em", tmp_path / "e", size=256, slices=3)
    assert sorted(path.name for path in folder.iterdir()) == ["test-volume.tif", "train-labels.tif", "train-volume.tif"]
    with Image.open(folder / "train-volume.tif") as images, Image.open(folder / "train-labels.tif") as labels:
        assert (images.n_frames, images.size, images.mode) == (3, (256, 256), "L")
        for page in range(3):
            images.seek(page)
            labels.seek(page)
            pixels, drawn = np.asarray(images).astype(float), np.asarray(labels)
            assert set(np.unique(drawn)) == {0, 255}
            # The real stack: 78.0 % white; membranes are dark.
            assert 0.7 < (drawn == 255).mean() < 0.87
            assert pixels[drawn == 0].mean() + 30 < pixels[drawn == 255].mean()
            row, column = np.argwhere(pixels <= MARKER_VALUE).mean(axis=0)
            assert np.hypot(column - MARKER_PLACE[0] * 256, row - MARKER_PLACE[1] * 256) < 0.6
            assert (drawn[pixels <= MARKER_VALUE] == 255).all()
    case = open_dataset(folder).cases[1]
    column, row, _ = np.argwhere(case.image.array <= MARKER_VALUE).mean(axis=0)
    assert np.hypot(column - MARKER_PLACE[0] * 256, row - MARKER_PLACE[1] * 256) < 0.6


def test_em_slices_differ_and_organelles_mislead() -> None:
    image, labels = make_em_stack(0, 0, 256, 4)
    for k in range(3):
        correlation = np.corrcoef(labels[:, :, k].ravel(), labels[:, :, k + 1].ravel())[0, 1]
        # Real neighbours: 0.05 to 0.34 on pixels.
        assert -0.05 < correlation < 0.4
    best = max(np.mean((image > level) == (labels == 255)) for level in range(60, 200, 5))
    assert best < 0.97
    assert not np.array_equal(image, make_em_stack(0, 1, 256, 4)[0])
    with pytest.raises(ConfigError):
        make_em_stack(0, 0, 16, 1)


# --------------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    "request_",
    [
        PhantomRequest("isbi_em", subjects=2),
        PhantomRequest("isbi_em", layout="older"),
        PhantomRequest("pancreas_ct", raters=2),
        PhantomRequest("pancreas_ct", subjects=81),
        PhantomRequest("pancreas_ct", subjects=0),
        PhantomRequest("pancreas_ct", layout="msd", label_fault="mirrored"),
        PhantomRequest("spinal_gm", subjects=11),
        PhantomRequest("spinal_gm", label_fault="mirrored"),
        PhantomRequest("spinal_gm", seed=-1),
        PhantomRequest("spinal_gm", size=10),
        PhantomRequest("isbi_em", size=8),
    ],
)
def test_requests_that_cannot_be_met_leave_nothing(tmp_path: Path, request_: PhantomRequest) -> None:
    with pytest.raises(MedquantError):
        prepare_phantom(request_, tmp_path / "out", lambda what: None)
    assert list(tmp_path.iterdir()) == []


def test_message_names_the_option() -> None:
    with pytest.raises(UsageError, match="phantom isbi_em: has no subjects; it takes slices, size and seed"):
        PhantomRequest("isbi_em", subjects=2).check()
