"""Compressed slices: every decoder against the plain picture, and streams that lie about themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_builder import Series, edit_file, save, write
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from medquant.data.dicom import read_dicom_files, read_dicom_series
from medquant.errors import InputError


def smooth_planes(kind: str, bits: int) -> NDArray[np.generic]:
    """Slices that use the whole range of ``bits``, the lowest and highest number included."""
    low = -(2 ** (bits - 1)) if kind == "int16" else 0
    column, row, place = np.meshgrid(np.arange(40), np.arange(36), np.arange(3), indexing="ij")
    wave = np.sin(column / 3) + np.cos(row / 4 + place)
    planes = np.rint((wave - wave.min()) / np.ptp(wave) * (2**bits - 1) + low)
    return planes.transpose(2, 1, 0).astype(kind)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=["rle", "jpeg2000", "jpeg-ls"])
@pytest.mark.parametrize(("kind", "bits"), [("uint16", 12), ("uint16", 16), ("int16", 16), ("int16", 12), ("int16", 13)])
def test_lossless_encodings_give_the_plain_picture(tmp_path: Path, syntax: pydicom.uid.UID, kind: str, bits: int) -> None:
    planes = smooth_planes(kind, bits)

    def edit(_: int, dataset: FileDataset) -> None:
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        if syntax == JPEGLSLossless and kind == "int16" and bits < 16:
            # The encoder wants the bits above the sample clear.
            dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") & (2**bits - 1)).astype("<u2").tobytes()
        try:
            dataset.compress(syntax)
        except (ValueError, RuntimeError) as error:
            pytest.skip(f"pydicom has no encoder for this: {error}")

    write(tmp_path, Series(planes, intercept="0"), edit=edit)
    np.testing.assert_array_equal(read_dicom_series(tmp_path).array, planes.transpose(2, 1, 0))


def test_decoders_agree_on_a_clinical_series(shared_data: Path) -> None:
    # Three independent decoders of JPEG 2000; gdcm and Pillow are only compared where they are installed.
    folder = shared_data / "pancreas_ct" / "totalseg_dicom" / "CT"
    volume = read_dicom_series(folder)
    ordered = sorted(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]))
    decoder = pydicom.pixels.get_decoder(JPEG2000Lossless)
    compared = 0
    for place in (0, 7, 19):
        dataset = pydicom.dcmread(ordered[place])
        for plugin in decoder.available_plugins:
            plane, _ = decoder.as_array(dataset, decoding_plugin=plugin, raw=True)
            np.testing.assert_array_equal(volume.array[:, :, place].T, plane.astype(int) - 1024)
            compared += 1
    assert compared >= 3


def test_jpeg_lossless_is_read_where_a_decoder_is_installed(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "odd_inputs" / "dicom" / "MR_small.dcm"
    path = tmp_path / "lossless.dcm"
    gdcm = pytest.importorskip("gdcm", reason="needs python-gdcm to make the file")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    np.testing.assert_array_equal(read_dicom_files([path]).array, read_dicom_files([source]).array)


def spoil_frame(path: Path, change: bytes, place: int) -> None:
    def edit(dataset: FileDataset) -> None:
        frame = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        frame[place : place + len(change)] = change
        dataset.PixelData = encapsulate([bytes(frame)])

    edit_file(path, edit)


@pytest.mark.parametrize(
    ("syntax", "place", "change"),
    [
        (JPEG2000Lossless, 8, b"\x00\x00\xff\xff\x00\x00\xff\xff"),  # Xsiz, Ysiz of the SIZ segment
        (JPEG2000Lossless, 0, b"\xff\x4e"),
        (JPEGLSLossless, 0, b"\xff\xd7"),
    ],
)
def test_a_stream_that_announces_another_picture_is_refused_before_decoding(
    tmp_path: Path, syntax: pydicom.uid.UID, place: int, change: bytes
) -> None:
    paths = write(tmp_path, Series(smooth_planes("uint16", 12)), edit=lambda _, dataset: dataset.compress(syntax))
    spoil_frame(paths[1], change, place)
    with pytest.raises(InputError, match=r"file 1-002\.dcm holds a compressed picture with .*, expected 40×36 of 1"):
        read_dicom_series(tmp_path)


@pytest.mark.parametrize(
    ("syntax", "words"),
    [(JPEG2000Lossless, "without its end marker"), (JPEGLSLossless, "without its end marker"), (RLELossless, "cannot be decoded")],
)
@pytest.mark.parametrize("cut", [2, 40])
def test_a_frame_cut_within_whole_fragments_is_refused(tmp_path: Path, syntax: pydicom.uid.UID, words: str, cut: int) -> None:
    paths = write(tmp_path, Series(smooth_planes("uint16", 12)), edit=lambda _, dataset: dataset.compress(syntax))

    def edit(dataset: FileDataset) -> None:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1)).rstrip(b"\0")
        dataset.PixelData = encapsulate([frame[:-cut]])

    edit_file(paths[2], edit)
    with pytest.raises(InputError, match=rf"file 1-003\.dcm .*{words}"):
        read_dicom_series(tmp_path)


def test_compressed_pixels_far_larger_than_the_picture_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, Series(smooth_planes("uint16", 12)), edit=lambda _, dataset: dataset.compress(RLELossless))
    edit_file(paths[0], lambda dataset: setattr(dataset, "PixelData", encapsulate([b"\0" * 80_000])))
    with pytest.raises(InputError, match="far more than the picture needs"):
        read_dicom_series(tmp_path)


def test_big_endian_and_implicit_series(tmp_path: Path) -> None:
    series = Series(smooth_planes("int16", 16), intercept="0")
    for syntax in (pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian):
        folder = tmp_path / syntax.name
        folder.mkdir()
        for k in range(3):
            dataset = series.dataset(k)
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset["PixelData"].VR = "OW"
            if not syntax.is_little_endian:
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
            little, implicit = syntax.is_little_endian, syntax.is_implicit_VR
            pydicom.dcmwrite(folder / f"{k}.dcm", dataset, little_endian=little, implicit_vr=implicit, enforce_file_format=True)
        np.testing.assert_array_equal(read_dicom_series(tmp_path / syntax.name).array, series.planes.transpose(2, 1, 0))


def test_saving_leaves_pydicom_as_it_was(tmp_path: Path) -> None:
    before = pydicom.config.settings.writing_validation_mode
    save(Series(smooth_planes("int16", 16)).dataset(0), tmp_path / "x.dcm")
    assert pydicom.config.settings.writing_validation_mode == before
