"""Every fault of a series is refused with its own words, and the slice is named; what a folder may hold besides is told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_builder import edit_file, plain_names, random_series, turned_axes, write
from dicom_faults import FAULTS, Ground

from medquant.data.dicom import read_dicom_files, read_dicom_series
from medquant.data.dicom.files import slice_labels
from medquant.errors import GeometryError, InputError, MedquantError


def refuse_spoiled(folder: Path, fault: str, seed: int) -> None:
    rng = np.random.default_rng([seed, sorted(FAULTS).index(fault)])
    count = int(rng.integers(5, 12))
    series = random_series(rng, count=count, axes=turned_axes(rng), spacing=(0.7, 0.9, float(rng.choice([0.5, 1.0, 2.5, 5.0]))))
    # Shuffled: the order of names says nothing about the order in space.
    names = [str(name) for name in rng.permutation(plain_names(count))]
    paths = write(folder, series, names)
    volume = read_dicom_series(folder)
    np.testing.assert_array_equal(volume.array, series.planes.transpose(2, 1, 0) - 1024)
    spoiled = FAULTS[fault](Ground(folder, series, paths, rng))
    with pytest.raises(MedquantError) as caught:
        read_dicom_series(folder)
    message = str(caught.value)
    assert isinstance(caught.value, spoiled.kind), message
    assert spoiled.words in message
    assert message.count("\n") <= 1
    assert str(folder) not in message
    called = [path.name in message for path in spoiled.named]
    assert all(called) if spoiled.all_named or not called else any(called), message


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(2))
def test_a_fault_is_refused_and_its_slice_named(tmp_path: Path, fault: str, seed: int) -> None:
    refuse_spoiled(tmp_path / "scan", fault, seed)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_twenty_variations_of_each_fault_are_refused(tmp_path: Path, fault: str) -> None:
    for seed in range(20):
        refuse_spoiled(tmp_path / f"scan{seed}", fault, 100 + seed)


def test_cut_anywhere_is_refused(tmp_path: Path) -> None:
    # Every byte count of one slice file, the whole file apart: none may be taken for a slice, or left out in silence.
    series = random_series(np.random.default_rng(1), count=3)
    paths = write(tmp_path, series)
    content = paths[2].read_bytes()
    for length in range(len(content)):
        paths[2].write_bytes(content[:length])
        with pytest.raises(InputError, match="1-003"):
            read_dicom_series(tmp_path)


def test_names_that_could_be_a_persons_are_not_repeated() -> None:
    def labels(*names: str) -> list[str]:
        return slice_labels([Path("folder") / name for name in names])

    assert labels("1-001.dcm", "1-002.dcm") == ["file 1-001.dcm", "file 1-002.dcm"]
    assert labels("IM0001", "IM0002") == ["file IM0001", "file IM0002"]
    assert labels("000000.dcm", "000001.dcm") == ["file 000000.dcm", "file 000001.dcm"]
    places = ["file 1 of 2 (in name order)", "file 2 of 2 (in name order)"]
    assert labels("CT.1.3.12.2.1107", "CT.1.3.12.2.1108") == places
    assert labels("doe_john_1.dcm", "doe_john_2.dcm") == places
    assert labels("123456.dcm", "654321.dcm") == places  # far apart: two patients' numbers
    assert labels("19560312.dcm", "19560313.dcm") == places  # a date
    assert labels("123456.dcm") == ["the file"]


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    first = random_series(rng, count=4, uid="1.2.3.1")
    second = random_series(rng, count=3, rows=9, uid="1.2.3.2")
    write(tmp_path, second, ["a1.dcm", "a2.dcm", "a3.dcm"])
    write(tmp_path, first)
    with pytest.raises(InputError, match=r"found 2 series, expected one \(1: CT, 4 slices of 5×6; 2: CT, 3 slices of 5×9\)"):
        read_dicom_series(tmp_path)
    np.testing.assert_array_equal(read_dicom_series(tmp_path, series=1).array, first.planes.transpose(2, 1, 0) - 1024)
    np.testing.assert_array_equal(read_dicom_series(tmp_path, series=2).array, second.planes.transpose(2, 1, 0) - 1024)
    with pytest.raises(InputError, match="found no series 3, expected 1 to 2"):
        read_dicom_series(tmp_path, series=3)


def test_other_files_beside_the_slices_are_left_out(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(3))
    write(tmp_path, series)
    for name, content in {"notes.txt": b"seen", "LICENSE": b"text\n", ".DS_Store": b"\0\1", "DICOMDIR": b"\0", "x.nii.gz": b"\1"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "sub").mkdir()
    assert read_dicom_series(tmp_path).shape == (5, 6, 8)
    for name, content in {"0": b"", "scan": b"\0" * 200, "1-099.dcm": b"text\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="lacks the DICOM preamble"):
            read_dicom_series(tmp_path)
        (tmp_path / name).unlink()


def test_folders_without_a_series_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no DICOM slices \(0 other files\)"):
        read_dicom_series(tmp_path)
    with pytest.raises(InputError, match="found nothing"):
        read_dicom_series(tmp_path / "absent")
    with pytest.raises(InputError, match="the file cannot be read"):
        read_dicom_files([tmp_path / "absent"])


def test_a_volume_beyond_the_limit_is_refused_before_it_is_made(tmp_path: Path) -> None:
    write(tmp_path, random_series(np.random.default_rng(4)))
    assert read_dicom_series(tmp_path, max_decoded_bytes=480).array.nbytes == 480
    with pytest.raises(InputError, match="8 slices of 5×6 need"):
        read_dicom_series(tmp_path, max_decoded_bytes=479)


def test_two_slices_make_a_stack_and_a_step_of_zero_does_not(tmp_path: Path) -> None:
    series = random_series(np.random.default_rng(5), count=2)
    write(tmp_path, series)
    np.testing.assert_allclose(read_dicom_series(tmp_path).affine, series.affine(), atol=1e-6)
    write(tmp_path, random_series(np.random.default_rng(5), count=2, uid=series.uid, spacing=(0.7, 0.9, 0.0)))
    with pytest.raises(GeometryError):
        read_dicom_series(tmp_path)


@pytest.mark.parametrize(
    ("field", "representation", "value", "words"),
    [
        ("RescaleSlope", "LO", "0", "a rescale slope of 0"),
        ("RescaleIntercept", "LO", "low", "RescaleIntercept that is not 1 finite number"),
        ("RescaleSlope", "LO", "nan", "RescaleSlope that is not 1 finite number"),
        ("Rows", "US", 0, "5×0 pixels"),
        ("BitsStored", "US", 40, "40 bits stored"),
        ("BitsAllocated", "US", 32, "of 32"),
        ("Columns", "US", None, "no Columns"),
    ],
)
def test_a_wrong_number_in_a_header_is_refused(tmp_path: Path, field: str, representation: str, value: object, words: str) -> None:
    paths = write(tmp_path, random_series(np.random.default_rng(6), count=3))
    edit_file(paths[1], lambda dataset: dataset.add_new(field, representation, value))
    with pytest.raises(InputError, match=rf"file 1-002\.dcm .*{words}"):
        read_dicom_series(tmp_path)
