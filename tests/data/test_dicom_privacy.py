"""Twenty planted values of a patient, in headers and names, searched for in everything that reading may say."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_builder import edit_file, random_series, save, write
from dicom_faults import FAULTS, Ground
from pydicom.dataset import FileDataset

from medquant.data.dicom import read_dicom_files, read_dicom_series, read_segmentation, write_segmentation
from medquant.data.dicom.quiet import quiet_dicom
from medquant.data.dicom.series import check_series, find_series
from medquant.data.probing import dicom_summary
from medquant.data.volume import Volume
from medquant.errors import MedquantError

PLANTED = {
    "PatientName": "Zwiebelfisch^Adelheid",
    "PatientID": "PID9071344",
    "PatientBirthDate": "19310407",
    "OtherPatientIDs": "OTHER5582",
    "PatientAddress": "Hinterhofgasse 12",
    "PatientComments": "allergic to Quittenmus",
    "InstitutionName": "Klinikum Nirgendheim",
    "InstitutionalDepartmentName": "Station Krokus",
    "ReferringPhysicianName": "Knoblauch^Egon",
    "OperatorsName": "Pfeffer^Ida",
    "AccessionNumber": "ACC730021",
    "StudyDate": "20190823",
    "StudyTime": "131415",
    "StudyID": "STUDY4471",
    "StudyDescription": "Verlauf nach Whipple",
    "SeriesDescription": "Abdomen Zwiebelf",
    "StudyInstanceUID": "1.2.826.0.1.99.111222333",
    "SeriesInstanceUID": "1.2.826.0.1.99.444555666",
    "FrameOfReferenceUID": "1.2.826.0.1.99.777888999",
}
IN_NAMES = "DOE_JANE_778123"
# The twentieth stands in file and folder names; the identifier of each object is looked for by its root.
SECRETS = [*PLANTED.values(), IN_NAMES, "1.2.826.0.1.99.", "Zwiebelfisch", "Adelheid", "Quittenmus"]
COPIED = ("PatientName", "PatientID", "PatientBirthDate", "ReferringPhysicianName", "AccessionNumber", "StudyDate", "StudyTime", "StudyID")


def plant(k: int, dataset: FileDataset) -> None:
    for keyword, value in PLANTED.items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.99.5.{k}"


def planted_ground(folder: Path, seed: int) -> Ground:
    rng = np.random.default_rng(seed)
    series = random_series(rng, count=6)
    names = [f"{IN_NAMES}.1.2.826.0.1.99.5.{k}" for k in range(6)]
    return Ground(folder, series, write(folder, series, names, plant), rng)


def assert_no_secret(text: str) -> None:
    assert [secret for secret in SECRETS if secret in text] == []


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """Texts to search; when the test ends, what was printed, also by libraries below Python, is searched with them."""
    texts: list[str] = []
    caplog.set_level(logging.DEBUG)
    yield texts
    assert_no_secret("\n".join([*texts, *capfd.readouterr()]))


def everything_said(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """All that reading, finding and describing ``folder`` says: errors with their tracebacks, values' texts, warnings, log records."""
    texts = []
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for action in (
            lambda: read_dicom_series(folder),
            lambda: read_dicom_files(sorted(folder.iterdir())),
            lambda: find_series(folder),
            lambda: dicom_summary(folder),
            lambda: [dicom_summary(path) for path in sorted(folder.iterdir())],
            lambda: [check_series(files, "x") for files in find_series(folder).series],
        ):
            try:
                texts.append(repr(action()))
            except MedquantError as error:
                texts += [str(error), repr(error)]
                # The frames hold no values; the chain of exceptions must not either.
                texts += traceback.format_exception_only(error)
                texts += ["" if error.__suppress_context__ or error.__context__ is None else repr(error.__context__)]
    texts += [str(warning.message) for warning in warned]
    texts += [record.getMessage() for record in caplog.records]
    return "\n".join(texts)


def test_a_good_series_says_nothing_of_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture, said: list[str]) -> None:
    planted_ground(tmp_path / IN_NAMES, 0)
    text = everything_said(tmp_path / IN_NAMES, caplog)
    assert "'modality': 'CT'" in text  # it did speak
    said.append(text)


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_says_anything_of_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture, said: list[str], fault: str) -> None:
    ground = planted_ground(tmp_path / IN_NAMES, 1)
    if fault == "doubled":
        # The fault itself would give the copy a plain name.
        (ground.folder / f"{IN_NAMES}.copy.2").write_bytes(ground.paths[2].read_bytes())
    else:
        FAULTS[fault](ground)
    text = everything_said(ground.folder, caplog)
    assert "DICOM" in text
    said.append(text)


@pytest.mark.parametrize(
    "keyword",
    [
        *("PixelSpacing", "ImagePositionPatient", "RescaleSlope", "Modality", "PhotometricInterpretation", "SOPClassUID"),
        *("SliceThickness", "NumberOfFrames", "SpecificCharacterSet", "SeriesInstanceUID"),
    ],
)
def test_a_patients_name_in_a_field_that_is_read_is_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: list[str], keyword: str
) -> None:
    ground = planted_ground(tmp_path / IN_NAMES, 2)
    path = ground.paths[3]

    def edit(dataset: FileDataset) -> None:
        # As text whatever the field is: a reader that goes by the standard will try to make a number of it.
        dataset.add_new(keyword, "LO", PLANTED["PatientName"])

    edit_file(path, edit)
    said.append(everything_said(ground.folder, caplog))


def test_pydicom_does_warn_with_values_where_it_is_not_kept_quiet(tmp_path: Path) -> None:
    # Shows that the tests above look at something: without the block, the library quotes the header.
    path = planted_ground(tmp_path, 3).paths[0]
    edit_file(path, lambda dataset: dataset.add_new("StudyInstanceUID", "LO", "Zwiebelfisch"))
    path.write_bytes(path.read_bytes().replace(b"LO\x0c\0Zwiebelfisch", b"UI\x0c\0Zwiebelfisch"))
    with pytest.warns(UserWarning, match="Zwiebelfisch"):
        str(pydicom.dcmread(path).StudyInstanceUID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_dicom():
            str(pydicom.dcmread(path).StudyInstanceUID)


def test_warnings_and_levels_are_as_before_after_the_block() -> None:
    logger = logging.getLogger("pydicom")
    level, filters = logger.level, list(warnings.filters)
    inside = []

    def fail() -> None:
        with quiet_dicom():
            inside.append(logging.getLogger("pydicom.anything").isEnabledFor(logging.CRITICAL))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert inside == [False]
    assert (logger.level, warnings.filters) == (level, filters)


def test_a_segmentation_carries_what_the_standard_asks_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: list[str]
) -> None:
    ground = planted_ground(tmp_path / IN_NAMES, 4)
    scan = read_dicom_series(ground.folder)
    mask = Volume((scan.array > 0).astype(np.uint8), scan.affine)
    path = tmp_path / "mask.dcm"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        write_segmentation(path, mask, ground.folder, {1: "pancreas"}, algorithm="test", algorithm_version="1")
        said.append(repr(read_segmentation(path)))
        said.append(repr(dicom_summary(path)))
    said += [str(warning.message) for warning in warned] + [record.getMessage() for record in caplog.records]
    found = pydicom.dcmread(path)
    assert [str(found[keyword].value) for keyword in COPIED] == [PLANTED[keyword] for keyword in COPIED]
    assert found.StudyInstanceUID == PLANTED["StudyInstanceUID"]
    content = path.read_bytes()
    elsewhere = set(PLANTED) - set(COPIED) - {"StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"}
    assert [keyword for keyword in elsewhere if PLANTED[keyword].encode() in content] == []
    # Values that break the standard's form are left out, and the error of the library does not come through.
    edit_file(ground.paths[0], lambda dataset: dataset.add_new("PatientSex", "CS", "Zwiebelfisch"))
    edit_file(ground.paths[0], lambda dataset: dataset.add_new("StudyDate", "LO", "Adelheid"))
    try:
        write_segmentation(path, mask, ground.folder, {1: "pancreas"}, algorithm="test", algorithm_version="1")
    except MedquantError as error:
        said.append(str(error))


def test_written_phantoms_hold_no_date_or_time(tmp_path: Path) -> None:
    from medquant.data.dicom import write_dicom_series

    write_dicom_series(tmp_path / "s", Volume(np.zeros((3, 4, 2), dtype=np.int16), np.eye(4)), description="x")
    found = pydicom.dcmread(tmp_path / "s" / "1-001.dcm")
    assert {element.keyword for element in found if element.VR in ("DA", "TM", "DT") and element.value} == set()
    save(found, tmp_path / "again.dcm")
    assert (tmp_path / "again.dcm").stat().st_size > 0
