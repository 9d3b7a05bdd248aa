"""What a file or folder is, as plain JSON values, or why it is refused.

Nothing that may identify a patient is repeated: no header text, no names of files in a folder, no dates, no identifiers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.datasets import DATASETS
from medquant.data.label_values import label_counts
from medquant.data.opening import describe_folder, ending, open_dataset
from medquant.data.png import read_png
from medquant.data.probing import dicom_summary, is_dicom
from medquant.data.stored import ArrayCache
from medquant.data.tiff import read_tiff_stack
from medquant.data.volume import Case, Dataset
from medquant.errors import InputError, MedquantError

_FEW_VALUES = 16
# Enough to see that an image has many values, before all of them are sorted.
_SAMPLED_VALUES = 20_000


def inspect_path(path: Path) -> dict[str, object]:
    """Describe a TIFF stack, PNG, NIfTI, DICOM file or series, or a dataset folder, through the readers that training uses.

    Returns:
        ``path``, ``kind`` and, as they apply, ``shape`` (i, j, slice ..), ``dtype``, ``spacing_mm``, ``orientation``, ``affine``,
        ``minimum``, ``maximum``, ``mean``, ``labels`` (value → count, where few whole values occur), ``dataset``; for DICOM also
        ``modality``, ``slices``, ``series_count`` and what else lies there. A file or folder that medquant will not read has
        ``refused``, the reason, and whatever could be found out nevertheless.

    Raises:
        InputError: there is nothing at ``path``.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    kind, describe = _kind_of(path)
    report: dict[str, object] = {"path": str(path), "kind": kind}
    try:
        report.update(describe(path))
    except MedquantError as error:
        report["refused"] = " ".join(error.lines)
    return report


def _kind_of(path: Path) -> tuple[str, Callable[[Path], dict[str, object]]]:
    if path.is_dir():
        if any(reader.recognise(path) is not None for reader in DATASETS):
            return "dataset folder", _describe_dataset
        if is_dicom(path):
            return "DICOM folder", _describe_dicom
        return "folder", _describe_unknown_folder
    by_ending = {
        ".nii": ("NIfTI image", _describe_nifti),
        ".nii.gz": ("NIfTI image", _describe_nifti),
        ".tif": ("TIFF stack", _describe_tiff),
        ".tiff": ("TIFF stack", _describe_tiff),
        ".png": ("PNG image", _describe_png),
    }
    if is_dicom(path):
        return "DICOM file", _describe_dicom
    return by_ending.get(ending(path), ("unknown file", _describe_unknown_file))


def _describe_tiff(path: Path) -> dict[str, object]:
    volume = read_tiff_stack(path)
    return {**_describe_values(volume.array), "spacing_mm": None, "orientation": None, "note": "a TIFF says nothing about spacing"}


def _describe_png(path: Path) -> dict[str, object]:
    return {**_describe_values(read_png(path).array), "spacing_mm": None, "orientation": None, "note": "a PNG says nothing about spacing"}


def _describe_nifti(path: Path) -> dict[str, object]:
    from nibabel.orientations import aff2axcodes

    from medquant.data.nifti import read_nifti
    from medquant.data.nifti_check import read_nifti_fully

    refused: str | None = None
    try:
        read_nifti(path)
    except MedquantError as error:
        # Said at the end, beside whatever the file tells nevertheless.
        refused = " ".join(error.lines)
    contents = read_nifti_fully(path)
    report = _describe_values(contents.values)
    report["dtype"] = contents.stored_type
    report["spacing_mm"] = [round(length, 6) if math.isfinite(length) else None for length in contents.spacing]
    is_sound = bool(np.isfinite(contents.affine).all()) and abs(float(np.linalg.det(contents.affine[:3, :3]))) > 0
    report["orientation"] = "".join(str(code) for code in aff2axcodes(contents.affine)) if is_sound else None
    if is_sound:
        report["affine"] = [[float(value) for value in row] for row in contents.affine]
    if not contents.has_geometry:
        report["note"] = "the header names no orientation (qform and sform codes are 0)"
    return report if refused is None else {**report, "refused": refused}


def _describe_dataset(path: Path) -> dict[str, object]:
    dataset = open_dataset(path)
    return {"dataset": _describe_loaded(dataset), "contents": describe_folder(path)}


def _describe_loaded(dataset: Dataset) -> dict[str, object]:
    cases = dataset.cases
    has_geometry = all(case.image.has_geometry for case in cases)
    counts: Counter[int] = Counter()
    cache = ArrayCache(ArrayCache.default_folder())
    for case in cases:
        if case.mask is not None:
            counts.update(label_counts(case.mask, cache))
    total = max(1, counts.total())
    ranges = [_range(case) for case in cases]
    return {
        "name": dataset.info.name,
        "recognised": dataset.recognised,
        "cases": len(cases),
        "labelled_cases": sum(case.mask is not None for case in cases),
        "subjects": len({case.subject for case in cases}),
        "sites": sorted({case.site for case in cases if case.site}),
        "shapes": sorted({case.image.shape for case in cases}),
        "spacing_mm": sorted({case.image.spacing_mm for case in cases}) if has_geometry else None,
        "minimum": min(low for low, _ in ranges),
        "maximum": max(high for _, high in ranges),
        "classes": {name: round(counts[number] / total, 4) for number, name in dataset.info.classes.items()},
        "content_sha256": dataset.content_sha256,
    }


def _range(case: Case) -> tuple[float, float]:
    """Smallest and largest value, found slice by slice: the voxels may lie in a file."""
    pages = [case.image.array[:, :, k] for k in range(case.image.shape[2])]
    return min(float(np.min(page)) for page in pages), max(float(np.max(page)) for page in pages)


def _describe_unknown_folder(path: Path) -> dict[str, object]:
    contents = describe_folder(path)
    try:
        open_dataset(path)
    except MedquantError as error:
        return {"contents": contents, "refused": " ".join(error.lines)}
    return {"contents": contents}


def _describe_dicom(path: Path) -> dict[str, object]:
    from medquant.data.dicom.series import read_dicom_files, read_dicom_series

    report = dicom_summary(path)
    if path.is_dir():
        report["contents"] = describe_folder(path)
    if "refused" not in report:
        # The headers are sound; only the pixels can tell the rest.
        kind = str(report["kind"])
        try:
            volume = read_dicom_series(path, name=kind) if path.is_dir() else read_dicom_files([path], name=kind)
            report.update(_describe_values(volume.array))
        except MedquantError as error:
            report["refused"] = " ".join(error.lines)
    return report


def _describe_unknown_file(path: Path) -> dict[str, object]:
    return {"refused": f"{path}: found a file of unknown kind, expected .nii, .nii.gz, .tif, .png, or a dataset folder; convert it first"}


def _describe_values(values: NDArray[np.generic]) -> dict[str, object]:
    report: dict[str, object] = {"shape": list(values.shape), "dtype": values.dtype.name}
    numbers = values.ravel(order="K")
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        numbers = numbers[np.isfinite(numbers)]
    if numbers.size:
        report["minimum"], report["maximum"] = float(np.min(numbers)), float(np.max(numbers))
        report["mean"] = float(numbers.mean(dtype=np.float64))
        labels = _few_values(numbers)
        if labels is not None:
            report["labels"] = labels
    return report


def _few_values(numbers: NDArray[np.generic]) -> dict[str, int] | None:
    """Value → count where few values occur and all of them are whole, as in a mask."""
    if len(np.unique(numbers[:: max(1, numbers.size // _SAMPLED_VALUES)])) > _FEW_VALUES:
        return None
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(distinct) > _FEW_VALUES or not bool((distinct == np.round(distinct)).all()):
        return None
    return {str(int(value)): int(count) for value, count in zip(distinct, counts, strict=True)}
