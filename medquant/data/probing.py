"""What a DICOM file or folder is, as plain JSON values, or why it is refused; nothing of a patient is repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medquant.data.dicom.files import DicomFile, has_dicom_magic
from medquant.data.dicom.quiet import quiet_dicom
from medquant.data.dicom.series import FoundSeries, check_series, describe_series, find_series, open_files
from medquant.errors import InputError, MedquantError


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is a DICOM file, or a folder with one among its files.

    Only the 132 bytes at the start of each file are looked at; a folder is searched until the first hit.
    """
    if not path.is_dir():
        return has_dicom_magic(path)
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return False
    return any(entry.is_file() and has_dicom_magic(entry) for entry in entries)


def dicom_summary(path: Path, *, series: int | None = None) -> dict[str, object]:
    """Describe a DICOM file or folder by its headers; pixels are not read.

    Returns:
        ``kind``, ``series_count``, ``ignored_files``, ``other_objects`` (standard name → count); with one series, or the one
        chosen by ``series`` (from 1), also ``modality``, ``slices``, and where it would be read ``shape`` (i, j, k),
        ``spacing_mm``, ``orientation`` (letters towards which the axes grow), ``affine``, ``has_geometry``; with several,
        ``series`` lists them. ``refused`` holds the reason where there is one.

    Raises:
        InputError: there is nothing at ``path``.
    """
    if not path.exists():
        raise InputError("DICOM: found nothing, expected a file or folder; check the path")
    is_folder = path.is_dir()
    report: dict[str, object] = {"kind": "DICOM folder" if is_folder else "DICOM file"}
    name = str(report["kind"])
    with quiet_dicom():
        try:
            found = find_series(path, name=name) if is_folder else open_files([path], name=name)
            report |= {"series_count": len(found.series), "ignored_files": found.ignored, "other_objects": found.other_kinds}
            report |= _describe(found, series, name)
        except MedquantError as error:
            report["refused"] = " ".join(error.lines)
    return report


def _describe(found: FoundSeries, series: int | None, name: str) -> dict[str, object]:
    report: dict[str, object] = {}
    if len(found.series) > 1:
        report["series"] = [describe_series(files) for files in found.series]
    try:
        chosen = found.choose(series, name)
        report |= {"modality": chosen[0].modality, "slices": len(chosen)}
        report |= _describe_geometry(chosen, name)
    except MedquantError as error:
        report["refused"] = " ".join(error.lines)
    return report


def _describe_geometry(files: tuple[DicomFile, ...], name: str) -> dict[str, object]:
    from nibabel.orientations import aff2axcodes

    stack = check_series(files, name)
    pixels = stack.slices[0].pixels
    spacing = np.linalg.norm(stack.affine[:3, :3], axis=0)
    return {
        "shape": [pixels.columns, pixels.rows, len(stack.slices)],
        "spacing_mm": [round(float(length), 6) for length in spacing],
        "orientation": "".join(str(code) for code in aff2axcodes(stack.affine)),
        "affine": [[float(value) for value in row] for row in stack.affine],
        "has_geometry": stack.has_geometry,
    }
