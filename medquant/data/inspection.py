"""What a file or folder is, as plain JSON values, or why it is refused.

Nothing that may identify a patient is repeated: no header text, no names of files in a folder, no dates, no identifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.datasets import DATASETS
from medquant.data.opening import describe_folder, ending, open_dataset
from medquant.data.png import read_png
from medquant.data.tiff import read_tiff_stack
from medquant.data.volume import Dataset
from medquant.errors import InputError, MedquantError

_FEW_VALUES = 16
_DICOM_NOT_READ = "DICOM is recognised but not read yet; convert the series to NIfTI (for example with dcm2niix)"
# A DICOM folder is known by its first files; looking into thousands would only cost time.
_PROBED_FILES = 16


def inspect_path(path: Path) -> dict[str, object]:
    """Describe a TIFF stack, PNG, NIfTI, DICOM file or folder.

    Returns:
        ``path``, ``kind`` and, as they apply, ``shape`` (i, j, slice ..), ``dtype``, ``spacing_mm``, ``orientation``, ``affine``,
        ``minimum``, ``maximum``, ``mean``, ``labels`` (value → count, where few whole values occur), ``dataset``. A file or
        folder that medquant will not read has ``refused``, the reason, and whatever could be found out nevertheless.

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
        report["refused"] = str(error)
    return report


def _kind_of(path: Path) -> tuple[str, Callable[[Path], dict[str, object]]]:
    if path.is_dir():
        if any(reader.recognise(path) is not None for reader in DATASETS):
            return "dataset folder", _describe_dataset
        if any(_is_dicom(entry) for entry in sorted(path.iterdir())[:_PROBED_FILES] if entry.is_file()):
            return "DICOM folder", _describe_dicom
        return "folder", _describe_unknown_folder
    by_ending = {
        ".nii": ("NIfTI image", _describe_nifti),
        ".nii.gz": ("NIfTI image", _describe_nifti),
        ".tif": ("TIFF stack", _describe_tiff),
        ".tiff": ("TIFF stack", _describe_tiff),
        ".png": ("PNG image", _describe_png),
    }
    if _is_dicom(path):
        return "DICOM file", _describe_dicom
    return by_ending.get(ending(path), ("unknown file", _describe_unknown_file))


def _describe_tiff(path: Path) -> dict[str, object]:
    volume = read_tiff_stack(path)
    return {**_describe_values(volume.array), "spacing_mm": None, "orientation": None, "note": "a TIFF says nothing about spacing"}


def _describe_png(path: Path) -> dict[str, object]:
    return {**_describe_values(read_png(path).array), "spacing_mm": None, "orientation": None, "note": "a PNG says nothing about spacing"}


def _describe_nifti(path: Path) -> dict[str, object]:
    import nibabel as nib

    from medquant.data.nifti_check import read_nifti_fully

    contents = read_nifti_fully(path)
    report = _describe_values(contents.values)
    report["dtype"] = contents.stored_type
    report["spacing_mm"] = [round(length, 6) for length in contents.spacing]
    refusals = [str(report["refused"])] if "refused" in report else []
    if np.isfinite(contents.affine).all() and abs(np.linalg.det(contents.affine[:3, :3])) > 0:
        report["orientation"] = "".join(str(code) for code in nib.aff2axcodes(contents.affine))
        report["affine"] = [[float(value) for value in row] for row in contents.affine]
    else:
        report["orientation"] = None
        refusals.append("the affine is not finite and invertible, so the place of the voxels is unknown; repair the header first")
    if not contents.has_geometry:
        report["note"] = "the header names no orientation (qform and sform codes are 0)"
    if contents.values.ndim != 3 and any(length > 1 for length in contents.values.shape[3:]):
        refusals.append(f"{contents.values.ndim} axes of lengths {contents.values.shape}, expected 3; extract one volume first")
    if refusals:
        report["refused"] = "; ".join(f"{path}: {reason}" for reason in refusals)
    return report


def _describe_dataset(path: Path) -> dict[str, object]:
    dataset = open_dataset(path)
    return {"dataset": _describe_loaded(dataset), "contents": describe_folder(path)}


def _describe_loaded(dataset: Dataset) -> dict[str, object]:
    cases = dataset.cases
    has_geometry = all(case.image.has_geometry for case in cases)
    counts = np.zeros(256, dtype=np.int64)
    for case in cases:
        if case.mask is not None:
            counts += np.bincount(case.mask.array.ravel(), minlength=256)
    total = max(1, int(counts.sum()))
    return {
        "name": dataset.info.name,
        "recognised": dataset.recognised,
        "cases": len(cases),
        "labelled_cases": sum(case.mask is not None for case in cases),
        "subjects": len({case.subject for case in cases}),
        "sites": sorted({case.site for case in cases if case.site}),
        "shapes": sorted({case.image.shape for case in cases}),
        "spacing_mm": sorted({case.image.spacing_mm for case in cases}) if has_geometry else None,
        "minimum": min(float(case.image.array.min()) for case in cases),
        "maximum": max(float(case.image.array.max()) for case in cases),
        "classes": {name: round(int(counts[number]) / total, 4) for number, name in dataset.info.classes.items()},
        "content_sha256": dataset.content_sha256,
    }


def _describe_unknown_folder(path: Path) -> dict[str, object]:
    contents = describe_folder(path)
    try:
        open_dataset(path)
    except MedquantError as error:
        return {"contents": contents, "refused": str(error)}
    return {"contents": contents}


def _describe_dicom(path: Path) -> dict[str, object]:
    return {"refused": f"{path}: {_DICOM_NOT_READ}", **({"contents": describe_folder(path)} if path.is_dir() else {})}


def _describe_unknown_file(path: Path) -> dict[str, object]:
    return {"refused": f"{path}: found a file of unknown kind, expected .nii, .nii.gz, .tif, .png, or a dataset folder; convert it first"}


def _describe_values(values: NDArray[np.generic]) -> dict[str, object]:
    report: dict[str, object] = {"shape": list(values.shape), "dtype": values.dtype.name}
    numbers = values.ravel(order="K")
    finite = np.isfinite(numbers)
    if not finite.all():
        report["refused"] = f"found {int(np.count_nonzero(~finite))} NaN or Inf voxels, expected finite numbers; repair the image first"
        numbers = numbers[finite]
    if numbers.size:
        report["minimum"], report["maximum"] = float(numbers.min()), float(numbers.max())
        report["mean"] = float(numbers.mean(dtype=np.float64))
        distinct, counts = np.unique(numbers, return_counts=True)
        if len(distinct) <= _FEW_VALUES and bool((distinct == np.round(distinct)).all()):
            report["labels"] = {str(int(value)): int(count) for value, count in zip(distinct, counts, strict=True)}
    return report


def _is_dicom(path: Path) -> bool:
    # DICOM part 10, section 7.1: 128 bytes for anyone's use, then the four letters.
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
