"""Masks on disk: NIfTI in the scan's own geometry, DICOM segmentations of the scan's series, TIFF pages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

import medquant
from medquant.data.volume import LabelArray, Volume
from medquant.deploy.packed import PackedModel
from medquant.errors import UsageError, shortened, unknown_name
from medquant.predict.scans import Scan, ScanKind

MaskFormat = Literal["nifti", "dicom-seg", "tiff"]
FORMATS: tuple[MaskFormat, ...] = get_args(MaskFormat)

_ENDINGS: dict[MaskFormat, tuple[str, ...]] = {"nifti": (".nii.gz", ".nii"), "dicom-seg": (".dcm",), "tiff": (".tif", ".tiff")}
_USUAL: dict[ScanKind, MaskFormat] = {"nifti": "nifti", "dicom": "dicom-seg", "tiff": "tiff", "png": "tiff"}


def checked_format(name: str | None) -> MaskFormat | None:
    """The format of this name.

    Raises:
        UsageError: there is none.
    """
    if name is None:
        return None
    found = next((each for each in FORMATS if each == name), None)
    if found is None:
        raise UsageError(unknown_name("format", name, FORMATS))
    return found


def is_mask_name(path: Path) -> bool:
    """Whether a file name ends like that of a mask."""
    return any(path.name.lower().endswith(end) for ends in _ENDINGS.values() for end in ends)


def format_of_file(path: Path, asked: MaskFormat | None) -> MaskFormat:
    """The format a file name's ending stands for.

    Raises:
        UsageError: it stands for none, or for another one than asked for.
    """
    found = next((each for each, ends in _ENDINGS.items() if path.name.lower().endswith(ends)), None)
    if found is None:
        listed = ", ".join(end for ends in _ENDINGS.values() for end in ends)
        ended = f"found the ending {shortened(path.suffix)}" if path.suffix else "found no ending"
        raise UsageError(f"{path}: {ended}, expected one that says what to write: {listed}; for example {path.stem or 'mask'}.nii.gz")
    if asked not in (None, found):
        raise UsageError(f"{path}: its ending means {found}, but --format {asked} was given; leave one of the two out")
    return found


def format_of_scan(scan: Scan, asked: MaskFormat | None) -> MaskFormat:
    """The format of a scan's mask in a folder: what was asked for, or that of the scan."""
    return asked or _USUAL[scan.kind]


def file_name(scan: Scan, mask_format: MaskFormat) -> str:
    """What a scan's mask is called in a folder."""
    return scan.name + _ENDINGS[mask_format][0]


def check_writable_as(scan: Scan, mask_format: MaskFormat) -> None:
    """Refuse formats a scan's mask cannot have.

    Raises:
        UsageError: a DICOM segmentation of something that is no DICOM series.
    """
    if mask_format == "dicom-seg" and scan.kind != "dicom":
        raise UsageError(f"{scan.label}: a DICOM segmentation refers to the slices of a DICOM series, which this scan is not; write NIfTI")


def class_numbers(packed: PackedModel) -> NDArray[np.uint8]:
    """For each decision of the network, the class number that stands for it in a mask."""
    positive = packed.metadata.positive_class
    return np.arange(256, dtype=np.uint8) if positive is None else np.array([0, positive], dtype=np.uint8)


def written_classes(packed: PackedModel) -> dict[int, str]:
    """Class number → name of all that a mask of the model can hold."""
    return dict(packed.metadata.classes)


def write_mask(path: Path, mask_format: MaskFormat, mask: LabelArray, image: Volume, scan: Scan, packed: PackedModel) -> None:
    """Write a mask in one step; nothing of the scan but its geometry goes into NIfTI and TIFF.

    Args:
        path: the file, replaced if it exists.
        mask_format: how.
        mask: class numbers on the grid of the scan's file, (I, J, K).
        image: the scan's first channel, for its geometry.
        scan: where it came from.
        packed: the model, for its classes.

    Raises:
        UsageError: the file cannot be written.
        InputError, GeometryError: the series changed while it was predicted.
    """
    placed = Volume(mask, image.affine, image.has_geometry)
    if mask_format == "nifti":
        from medquant.data.nifti import write_nifti

        write_nifti(path, placed, description=f"medquant {medquant.__version__}")
    elif mask_format == "tiff":
        from medquant.data.tiff import write_tiff_stack

        write_tiff_stack(path, mask)
    else:
        from medquant.data.dicom import write_segmentation

        version = f"{medquant.__version__} model {packed.sha256[:16]}"
        classes = written_classes(packed)
        write_segmentation(path, placed, scan.paths[0], classes, algorithm="medquant", algorithm_version=version, name=scan.label)
