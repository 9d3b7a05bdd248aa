"""NIH Pancreas-CT (TCIA): 80 abdominal scans in portal venous phase, the pancreas outlined slice by slice.

Scans are DICOM series, labels are NIfTI files in another archive; :mod:`medquant.data.datasets.pancreas_files` pairs them by
number, :mod:`medquant.data.datasets.pancreas_label` lays a label on its scan.
"""

from __future__ import annotations

import functools
from pathlib import Path

from medquant.data.content import content_sha256, volume_sha256
from medquant.data.datasets.pancreas_files import LAYOUT, NUMBERS, CaseFiles, Found, find_cases, label_files, list_numbers, patient_folders
from medquant.data.datasets.pancreas_label import Placement, place_label
from medquant.data.dicom.series import read_dicom_files, read_dicom_series
from medquant.data.label_values import check_labels
from medquant.data.nifti import read_nifti_mask
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Dataset, DatasetInfo, Volume

__all__ = ["INFO", "LAYOUT", "load", "recognise"]

INFO = DatasetInfo(
    name="pancreas_ct",
    modality="CT",
    classes={0: "background", 1: "pancreas"},
    scored=("pancreas",),
    recipe={
        "model.channels": 16,
        "model.depth": 5,
        "train.epochs": 40,
        "train.steps_per_epoch": 50,
        "data.patch_size": [192, 192],
        "data.batch_size": 4,
        "data.normalisation": "range",
        "data.window": [-100, 240],
        "data.region": "coarse",
        "data.augmentation": "ct",
    },
    citation="Roth et al. 2016, Data From Pancreas-CT, TCIA, doi 10.7937/K9/TCIA.2016.tNB1kqBU; Roth et al. 2015, LNCS 9349:556-564; "
    "Clark et al. 2013, J Digit Imaging 26:1045-1057",
    channels=("CT",),
    numbered=NUMBERS,
)

_SAID = {
    "directions": "the label's origin is not that of the scan, so its directions were used, which the Hounsfield units confirm",
    "mirrored": "the label lies wrong by its header and was mirrored front to back, where it lies on the organ",
}


def recognise(path: Path) -> str | None:
    """Say why the folder is taken for the collection, or None. Scans or labels alone are enough, so that what misses is named."""
    folders, labels = len(patient_folders(path)), len(label_files(path))
    if folders:
        return f"it holds {folders} folders PANCREAS_nnnn and {labels} label files"
    return f"it holds {labels} files labelnnnn.nii.gz" if labels else None


def load(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Read the scans that have a label, in order of number, one at a time.

    Images are int16 Hounsfield units with axes column, row, slice; masks hold 0 and 1. Labels are put into the scan's axis
    order by their affine, and what lies under them is checked; where a label had to be placed otherwise, ``recognised`` says so.

    Raises:
        InputError: no scan has a label, a number occurs twice, a file is damaged, a label holds another value, or is empty.
        GeometryError: the slices of a scan form no complete stack, or a label cannot be laid on its scan.
    """
    cache = (options or ReadOptions()).cache
    found = find_cases(path)
    cases, placements = [], {}
    for files in found.cases:
        case, placements[files.name] = _read_case(files, cache)
        cases.append(case)
    recognised = f"NIH Pancreas-CT ({recognise(path)}): {_describe(found, placements)}"
    return Dataset(info=INFO, cases=tuple(cases), path=str(path), recognised=recognised, content_sha256=content_sha256(cases))


def _read_case(files: CaseFiles, cache: ArrayCache) -> tuple[Case, Placement]:
    image = cache.volume(files.slices, "dicom 1", lambda: _read_scan(files))

    @functools.cache
    def label() -> Volume:
        found = read_nifti_mask(files.label)
        check_labels(found, (0, 1), "0 (background) and 1 (pancreas)", str(files.label), ArrayCache(None))
        return found

    # Whatever the placement depends on, so that it is found once for all.
    digest = "" if cache.folder is None else cache.files_digest([files.label])
    key = f"pancreas 1 {digest} on {volume_sha256(image)} {image.affine.tolist()}" if digest else ""
    placement = Placement.from_json(cache.note(f"placement {key}", lambda: place_label(image, label(), files.name).to_json()))

    def laid() -> Volume:
        return Volume(placement.order.apply(label().array), image.affine, image.has_geometry)

    mask = cache.keep(f"mask {key}", laid)
    case = Case(id=files.name, subject=files.name, site="", image=image, mask=mask, source=files.name)
    return case, placement


def _read_scan(files: CaseFiles) -> Volume:
    folders = {file.parent for file in files.slices}
    if len(folders) == 1:
        return read_dicom_series(folders.pop(), name=files.name)
    # Slices spread over folders are one series in parts, or several series; the reader tells which.
    return read_dicom_files(files.slices, name=files.name)


def _describe(found: Found, placements: dict[str, Placement]) -> str:
    numbers = list_numbers((files.number for files in found.cases), most=3)
    notes = [f"{len(found.cases)} scans with label, numbers {numbers}; 1 = pancreas, values in Hounsfield units"]
    if found.withdrawn:
        notes.append(f"left out, because the collection took them back: {list_numbers(found.withdrawn)}")
    if found.without_label:
        notes.append(f"NOT USED for want of a label: scans {list_numbers(found.without_label)}")
    if found.without_scan:
        notes.append(f"NOT USED for want of a scan: labels {list_numbers(found.without_scan)}")
    for trust, text in _SAID.items():
        names = [name for name, placement in placements.items() if placement.trust == trust]
        if names:
            notes.append(f"CHECK {', '.join(names)}: {text}")
    means = [placement.fit.mean_hu for placement in placements.values()]
    notes.append(f"mean under the labels {min(means):.0f} to {max(means):.0f} HU")
    return "; ".join(notes) + "."
