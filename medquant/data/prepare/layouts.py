"""Dataset folders as other programs expect them: nnU-Net raw (version 2) and the Medical Segmentation Decathlon.

Images keep their grid and affine; nothing is resampled or turned. Masks hold the dataset's own class numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import medquant
from medquant.data.atomic import write_text
from medquant.data.content import volume_sha256
from medquant.data.nifti import WRITTEN_TYPES, write_nifti
from medquant.data.volume import Case, DatasetInfo, Volume
from medquant.errors import InputError

FolderLayout = Literal["nnunet", "msd"]
FOLDER_LAYOUTS: tuple[FolderLayout, ...] = ("nnunet", "msd")

PROVENANCE_FILE = "provenance.json"

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Licence:
    """Terms of a dataset, repeated in ``dataset.json`` so that they travel with the files."""

    name: str
    reference: str


def write_dataset_folder(
    folder: Path, info: DatasetInfo, cases: Iterable[Case], layout: FolderLayout, licence: Licence, recognised: str, notify: Notify
) -> int:
    """Write labelled cases, one at a time, then ``provenance.json`` and, last, ``dataset.json``.

    Args:
        folder: exists and is empty.
        info: what the classes and channels are called.
        cases: in order; each is let go of before the next is asked for.
        layout: ``nnunet`` or ``msd``.
        licence: terms.
        recognised: what the data was taken for.
        notify: told the id of each case before it is written.

    Returns:
        Number of cases.

    Raises:
        InputError: there is no labelled case, or (``msd``) a case of several channels.
        UsageError: a file cannot be written.
    """
    images, labels = folder / "imagesTr", folder / "labelsTr"
    images.mkdir()
    labels.mkdir()
    written: list[dict[str, object]] = []
    for case in cases:
        if case.mask is None:
            continue
        notify(case.id)
        if layout == "msd" and len(case.channels) > 1:
            raise InputError(f"{case.id}: found {len(case.channels)} channels, expected one for the msd layout; use the layout nnunet")
        for number, channel in enumerate(case.channels):
            ending = f"_{number:04d}" if layout == "nnunet" else ""
            write_nifti(images / f"{case.id}{ending}.nii.gz", _writable(channel))
        write_nifti(labels / f"{case.id}.nii.gz", case.mask)
        written.append(_facts(case, case.mask))
    if not written:
        raise InputError(f"{info.name}: found no case with a mask, expected at least one; add the masks")
    _write_json(folder / PROVENANCE_FILE, _provenance(info, layout, recognised, written))
    describe = _nnunet_contents if layout == "nnunet" else _msd_contents
    _write_json(folder / "dataset.json", describe(info, licence, written))
    return len(written)


def _writable(volume: Volume) -> Volume:
    """The volume in a type that NIfTI readers share. Whole numbers stay exact; those of a float image need no float file."""
    array = volume.array
    if array.dtype.kind == "f":
        fitting = next((kind for kind in (np.uint8, np.int16) if _holds(kind, array)), np.float32)
        return Volume(array=array.astype(fitting), affine=volume.affine, has_geometry=volume.has_geometry)
    if array.dtype.name in WRITTEN_TYPES:
        return volume
    return Volume(array=array.astype(np.int32), affine=volume.affine, has_geometry=volume.has_geometry)


def _holds(kind: type[np.integer[Any]], array: NDArray[np.generic]) -> bool:
    limits = np.iinfo(kind)
    low, high = float(np.min(array)), float(np.max(array))
    return limits.min <= low and high <= limits.max and bool((array == np.trunc(array)).all())


def _facts(case: Case, mask: Volume) -> dict[str, object]:
    return {
        "id": case.id,
        "subject": case.subject,
        "site": case.site,
        "shape": list(case.image.shape),
        "image_sha256": [volume_sha256(channel) for channel in case.channels],
        "mask_sha256": volume_sha256(mask),
    }


def _class_names(info: DatasetInfo) -> dict[int, str]:
    """Class number → name, 0 being called background: nnU-Net asks for it, whatever the dataset's own name is."""
    return {0: "background"} | {number: name for number, name in sorted(info.classes.items()) if number != 0}


def _nnunet_contents(info: DatasetInfo, licence: Licence, written: list[dict[str, object]]) -> Mapping[str, object]:
    """Keys of nnU-Net's dataset format, version 2."""
    return {
        "channel_names": {str(number): name for number, name in enumerate(info.channels)},
        "labels": {name: number for number, name in _class_names(info).items()},
        "numTraining": len(written),
        "file_ending": ".nii.gz",
        "name": info.name,
        "description": _description(info),
        "reference": licence.reference,
        "licence": licence.name,
    }


def _msd_contents(info: DatasetInfo, licence: Licence, written: list[dict[str, object]]) -> Mapping[str, object]:
    """Keys of the Decathlon's ``dataset.json``."""
    return {
        "name": info.name,
        "description": _description(info),
        "reference": licence.reference,
        "licence": licence.name,
        "release": f"written by medquant {medquant.__version__}",
        "tensorImageSize": "3D",
        "modality": {str(number): name for number, name in enumerate(info.channels)},
        "labels": {str(number): name for number, name in _class_names(info).items()},
        "numTraining": len(written),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{case['id']}.nii.gz", "label": f"./labelsTr/{case['id']}.nii.gz"} for case in written],
        "test": [],
    }


def _description(info: DatasetInfo) -> str:
    own = info.classes.get(0, "background")
    return f"{info.name}, labelled cases" + ("" if own == "background" else f"; class 0 is {own}")


def _provenance(info: DatasetInfo, layout: str, recognised: str, written: list[dict[str, object]]) -> Mapping[str, object]:
    subjects: dict[str, list[object]] = {}
    for case in written:
        subjects.setdefault(str(case["subject"]), []).append(case["id"])
    return {
        "schema": 1,
        "medquant": medquant.__version__,
        "dataset": info.name,
        "layout": layout,
        "recognised": recognised,
        "citation": info.citation,
        "note": "the digests are of voxels as read; cases of one subject belong in one part of a split",
        "cases": written,
        "subjects": subjects,
    }


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
