"""Twenty values of a patient, planted wherever a header, a tag or a freely chosen name can hold one, and the search for them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import tifffile
from nibabel.nifti1 import Nifti1Extension, Nifti1Header
from PIL import Image

from medquant.data.prepare.phantoms import PhantomKind, PhantomLayout, PhantomRequest, prepare_phantom

PLANTED = {
    "PatientName": "Quarkstein^Ottilie",
    "PatientID": "QX-5520931",
    "PatientBirthDate": "19270218",
    "PatientBirthTime": "040506",
    "OtherPatientIDs": "ALT/77120",
    "PatientAddress": "Am Krautacker 9",
    "PatientComments": "duldet kein Selleriesalz",
    "InstitutionName": "Klinik Hintertupfing",
    "InstitutionalDepartmentName": "Abteilung Wegerich",
    "ReferringPhysicianName": "Rettich^Balduin",
    "OperatorsName": "Zimt^Rosalinde",
    "AccessionNumber": "ACCQ419927",
    "StudyDate": "20170631",
    "StudyID": "SQ88213",
    "StudyDescription": "Kontrolle nach Resektion",
    "ProtocolName": "Protokoll Quarkst",
    "DeviceSerialNumber": "SN-QK-40417",
    "StudyInstanceUID": "1.2.826.0.1.88.20170631.1",
    "SeriesInstanceUID": "1.2.826.0.1.88.20170631.2",
    "SOPInstanceUID": "1.2.826.0.1.88.20170631.3",
}
"""Keyword of DICOM → value; the same values go into the other kinds of files."""

SECRETS = tuple(sorted({*PLANTED.values(), "Quarkstein", "Ottilie", "Selleriesalz", "1.2.826.0.1.88."} - {"040506"}))
"""What is looked for. A time of six digits turns up by chance in any large file; it stands in an extension beside the others."""

FREE_NAME = "Quarkstein_Ottilie_19270218"
EVERYTHING = "; ".join(f"{key}={value}" for key, value in PLANTED.items())


# --- planting ---------------------------------------------------------------------------------------------------------


def phantom(kind: PhantomKind, folder: Path, layout: PhantomLayout = "official", **options: int | float) -> Path:
    prepare_phantom(PhantomRequest(kind=kind, layout=layout, **options), folder, lambda _: None)  # type: ignore[arg-type]
    return folder


def pancreas(folder: Path) -> Path:
    """Three cases as the collection's archive has them; folders and slices named after the patient."""
    phantom("pancreas_ct", folder, subjects=3, slices=12, size=64)
    for number, study in enumerate(sorted(folder.glob("Pancreas-CT/*/*"))):
        for series in list(study.iterdir()):
            for place, path in enumerate(sorted(series.iterdir())):
                _plant_dicom(path, f"{number}.{place}")
                path.rename(path.with_name(f"{FREE_NAME}.1.2.826.0.1.88.{number}.{place}.dcm"))
            series.rename(series.with_name(f"{FREE_NAME}-1.2.826.0.1.88.{number}"))
        study.rename(study.with_name(f"11-24-2015-{FREE_NAME}-20170631"))
    _plant_around(folder)
    return folder


def spinal(folder: Path) -> Path:
    """Three subjects of the gray matter challenge, with headers and extensions by nibabel."""
    phantom("spinal_gm", folder, sites=1, subjects=3, raters=2, slices=2, size=80)
    _plant_around(folder)
    for text in folder.rglob("*.txt"):
        text.write_text(EVERYTHING)
    return folder


def nnunet(folder: Path) -> Path:
    """A dataset folder whose table of contents tells of the patient in the fields nobody reads."""
    phantom("spinal_gm", folder, "nnunet", sites=1, subjects=3, raters=1, slices=2, size=80)
    contents = json.loads((folder / "dataset.json").read_text())
    contents |= {
        "description": EVERYTHING,
        "authors": [PLANTED["OperatorsName"]],
        "name": PLANTED["StudyDescription"],
        FREE_NAME: EVERYTHING,
    }
    contents["licence"] = contents["reference"] = PLANTED["InstitutionName"]
    (folder / "dataset.json").write_text(json.dumps(contents))
    _plant_around(folder)
    return folder


def membranes(folder: Path) -> Path:
    """The EM stacks, with tags by tifffile."""
    phantom("isbi_em", folder, slices=8, size=64)
    for path in folder.glob("*.tif"):
        pages = tifffile.imread(path)
        tags = [
            (315, "s", 0, PLANTED["PatientName"], True),
            (316, "s", 0, PLANTED["DeviceSerialNumber"], True),
            (33432, "s", 0, EVERYTHING, True),
        ]
        tifffile.imwrite(path, pages, photometric="minisblack", description=EVERYTHING, extratags=tags, software=FREE_NAME, metadata=None)
    _plant_around(folder)
    return folder


def _plant_dicom(path: Path, place: str) -> None:
    found = pydicom.dcmread(path)
    for keyword, value in PLANTED.items():
        setattr(found, keyword, value)
    for keyword, value in (("StudyInstanceUID", "s"), ("SeriesInstanceUID", "t")):
        setattr(found, keyword, f"1.2.826.0.1.88.{ord(value)}.{place.partition('.')[0]}")
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.88.5.{place}"
    found.FrameOfReferenceUID = f"1.2.826.0.1.88.6.{place.partition('.')[0]}"
    found.SeriesDescription = FREE_NAME
    found.preamble = EVERYTHING.encode()[:128].ljust(128, b"\0")
    block = found.private_block(0x0029, "Quarkstein private", create=True)
    block.add_new(0x10, "LT", EVERYTHING)
    found.save_as(path, enforce_file_format=True)


def _plant_around(folder: Path) -> None:
    """Fill every NIfTI header, and lay notes named after the patient into every folder."""
    for path in folder.rglob("*.nii.gz"):
        image = nib.load(path)
        header = image.header
        assert isinstance(header, Nifti1Header)
        header["descrip"] = f"{PLANTED['PatientName']} {PLANTED['PatientBirthDate']} {PLANTED['StudyID']}".encode()
        header["aux_file"] = PLANTED["InstitutionName"].encode()
        header["intent_name"] = PLANTED["AccessionNumber"].encode()
        header["db_name"] = PLANTED["PatientID"].encode()
        header.extensions.append(Nifti1Extension("comment", EVERYTHING.encode()))
        header.extensions.append(Nifti1Extension("afni", f"<x>{EVERYTHING}</x>".encode()))
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, header), path)
    for place in [folder, *(entry for entry in folder.rglob("*") if entry.is_dir())]:
        # Not beside slices: there, any file may be a damaged one.
        if "PANCREAS_" not in str(place.relative_to(folder)):
            (place / f"{FREE_NAME}.txt").write_text(EVERYTHING)
            (place / f"Befund {FREE_NAME}.pdf").write_text(EVERYTHING)


# --- searching --------------------------------------------------------------------------------------------------------


def secrets_in(content: bytes) -> set[str]:
    """The planted values some bytes hold, in any case, as UTF-8 or UTF-16."""
    lowered = content.lower()
    return {secret for secret in SECRETS for code in ("utf-8", "utf-16-le", "utf-16-be") if secret.lower().encode(code) in lowered}


def secrets_below(folder: Path) -> dict[str, set[str]]:
    """File (by its place) → planted values in its content or its name, compressed parts included."""
    found = {}
    for path in sorted(folder.rglob("*")):
        secrets = secrets_in(str(path.relative_to(folder)).encode())
        if path.is_file():
            secrets |= {secret for content in _contents(path) for secret in secrets_in(content)}
        if secrets:
            found[str(path.relative_to(folder))] = secrets
    return found


def _contents(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if data[:8] == b"MEDQUANT" and data[8] >= 3:
        yield zlib.decompress(data[20 : 20 + int.from_bytes(data[12:20], "little")])
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        with Image.open(path) as image:
            image.load()
            yield repr(image.info).encode()
            yield repr(dict(image.getexif())).encode()
    if data[:4] in (b"II*\0", b"MM\0*"):
        with tifffile.TiffFile(path) as tiff:
            yield repr([[tag.value for tag in page.tags.values()] for page in tiff.pages]).encode()  # type: ignore[union-attr]
    # Whatever else may be packed with zlib.
    place = -1
    for _ in range(50):
        place = data.find(b"\x78\x9c", place + 1)
        if place < 0:
            return
        try:
            yield zlib.decompressobj().decompress(data[place:], 2**20)
        except zlib.error:
            continue
