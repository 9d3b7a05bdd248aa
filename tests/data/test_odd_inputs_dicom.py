"""Every unusual or defective DICOM file among the real data: read as another library reads it, or refused with its own words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from medquant.data.dicom import read_dicom_files, read_dicom_series, read_segmentation
from medquant.data.probing import dicom_summary, is_dicom
from medquant.errors import GeometryError, InputError

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Read:
    """``voxel``: index (column, row) and its value, taken from pydicom by hand when the table was made."""

    shape: tuple[int, int]
    voxel: tuple[int, int, int]


MR = Read((64, 64), (10, 20, 228))
SEG, SC = "1 × Segmentation Storage", "1 × Secondary Capture Image Storage"
NO_PREAMBLE = "lacks the DICOM preamble"

TABLE: dict[str, Read | str] = {
    "CT_small.dcm": Read((128, 128), (64, 32, 254)),
    "J2K_pixelrep_mismatch.dcm": Read((512, 512), (256, 128, 18)),
    "JPEG2000.dcm": SC,
    "MR_small.dcm": MR,
    "MR_small_RLE.dcm": MR,
    "MR_small_bigendian.dcm": MR,
    "MR_small_implicit.dcm": MR,
    "MR_small_jp2klossless.dcm": MR,
    "MR_small_jpeg_ls_lossless.dcm": MR,
    "MR_truncated.dcm": "ends after 8130 of 8192 bytes of pixels",
    "SC_rgb_rle_2frame.dcm": SC,
    "ct_3slice/01.dcm": Read((512, 512), (256, 300, -73)),
    "ct_3slice/02.dcm": Read((512, 512), (256, 300, -80)),
    "ct_3slice/03.dcm": Read((512, 512), (256, 300, -106)),
    "ct_3slice/liver.dcm": SEG,
    "ct_3slice/liver_seg.nrrd": NO_PREAMBLE,
    "image_dfl.dcm": "stored deflated",
    "liver_1frame.dcm": SEG,
    "meta_missing_tsyntax.dcm": "names no transfer syntax",
    "no_meta.dcm": NO_PREAMBLE,
    "rtdose.dcm": "1 × RT Dose Storage",
    "rtstruct.dcm": NO_PREAMBLE,
    "tiny_ct_seg/seg_image_ct_binary.dcm": SEG,
    "tiny_ct_seg/seg_image_ct_binary_fractional.dcm": SEG,
    "tiny_ct_seg/seg_image_ct_binary_overlap.dcm": SEG,
    "tiny_ct_series/17106": Read((16, 16), (3, 7, -941)),
    "tiny_ct_series/17136": Read((16, 16), (3, 7, 970)),
    "tiny_ct_series/17166": Read((16, 16), (3, 7, 1420)),
    "tiny_ct_series/17196": Read((16, 16), (3, 7, 761)),
}


@pytest.fixture
def odd(shared_data: Path) -> Path:
    return shared_data / "odd_inputs" / "dicom"


def test_the_table_holds_every_file(odd: Path) -> None:
    assert sorted(TABLE) == sorted(str(path.relative_to(odd)) for path in odd.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", TABLE)
def test_file_is_read_right_or_refused(odd: Path, name: str) -> None:
    expected, path = TABLE[name], odd / name
    summary = dicom_summary(path)
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            read_dicom_files([path])
        assert expected in str(caught.value)
        # Damage in the pixels alone shows only when they are read.
        assert "refused" in summary or name == "MR_truncated.dcm"
        return
    assert is_dicom(path)
    volume = read_dicom_files([path])
    assert volume.shape == (*expected.shape, 1)
    assert volume.array.dtype == np.int16
    column, row, value = expected.voxel
    assert volume.array[column, row, 0] == value
    # All voxels and the geometry against SimpleITK's reader, which has decoders of its own.
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    cosines = np.array(header.ImageOrientationPatient, dtype=float)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    np.testing.assert_allclose(lps[:3, 0], cosines[:3] * header.PixelSpacing[1], atol=2e-5)
    np.testing.assert_allclose(lps[:3, 1], cosines[3:] * header.PixelSpacing[0], atol=2e-5)
    np.testing.assert_allclose(lps[:3, 3], image.GetOrigin(), atol=1e-9)
    assert volume.spacing_mm[2] == pytest.approx(header.SliceThickness)
    assert summary["shape"] == [*expected.shape, 1]
    assert summary["modality"] == header.Modality


def test_folders(odd: Path) -> None:
    volume = read_dicom_series(odd / "ct_3slice")  # beside a segmentation and a NRRD
    image = SimpleITK.ReadImage([str(odd / "ct_3slice" / f"0{number}.dcm") for number in (3, 2, 1)])
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [*(np.array(image.GetOrigin()) * [-1, -1, 1]), 1])
    with pytest.raises(GeometryError, match=r"slices 1 and 2 of 4 .* are 202.50 mm apart, expected 1.25"):
        read_dicom_series(odd / "tiny_ct_series")
    # The slices above the hole are regular.
    assert read_dicom_files([odd / "tiny_ct_series" / name for name in ("17136", "17166", "17196")]).spacing_mm[2] == pytest.approx(1.25)
    with pytest.raises(InputError, match="no CT or MR slices but 3 × Segmentation Storage"):
        read_dicom_series(odd / "tiny_ct_seg")
    with pytest.raises(InputError, match="lacks the DICOM preamble"):
        read_dicom_series(odd)


def test_segmentations(odd: Path) -> None:
    mask, labels = read_segmentation(odd / "ct_3slice" / "liver.dcm")
    drawn = SimpleITK.ReadImage(str(odd / "ct_3slice" / "liver_seg.nrrd"))
    np.testing.assert_array_equal(mask.array > 0, SimpleITK.GetArrayFromImage(drawn).transpose(2, 1, 0) > 0)
    np.testing.assert_allclose(mask.affine, read_dicom_series(odd / "ct_3slice").affine, atol=1e-6)
    assert labels == {1: "Liver"}
    with pytest.raises(InputError, match="fractional"):
        read_segmentation(odd / "tiny_ct_seg" / "seg_image_ct_binary_fractional.dcm")
    with pytest.raises(InputError, match="overlap"):
        read_segmentation(odd / "tiny_ct_seg" / "seg_image_ct_binary_overlap.dcm")


def test_nothing_is_warned_about(odd: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, expected in TABLE.items():
            if isinstance(expected, Read):
                read_dicom_files([odd / name])
