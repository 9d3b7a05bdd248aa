"""What is to be predicted: which files of a path are a scan, and what each scan's mask is called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medquant.data.opening import ending
from medquant.data.probing import is_dicom
from medquant.errors import InputError

ScanKind = Literal["nifti", "dicom", "tiff", "png"]

_KINDS: dict[str, ScanKind] = {".nii": "nifti", ".nii.gz": "nifti", ".tif": "tiff", ".tiff": "tiff", ".png": "png"}
_DICOM_ENDINGS = (".dcm", ".dicom", ".dic", ".ima")
# The names nnU-Net gives the channels of a case.
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>[0-9]{4})")


@dataclass(frozen=True)
class Scan:
    """One scan of a path.

    Args:
        name: of its file or folder, without ending and channel number: what its mask is called.
        kind: how it is stored.
        paths: the files, one a channel; or one file with all channels; or the folder of a DICOM series.
        label: what messages call it.
    """

    name: str
    kind: ScanKind
    paths: tuple[Path, ...]
    label: str


@dataclass(frozen=True)
class Scans:
    """What a path holds.

    Args:
        scans: in the order of their names.
        is_folder: whether it is a folder of scans, so that the masks go into a folder too.
        ignored: files and folders in it that are no scan.
    """

    scans: tuple[Scan, ...]
    is_folder: bool
    ignored: int = 0


def find_scans(path: Path, channels: int) -> Scans:
    """The scans of a file or folder.

    A file of a known ending is a scan; so is a folder that holds DICOM files. In any other folder, every file of a known ending
    and every folder with DICOM files is one. Where the model takes several channels, ``case_0000`` and its fellows are one scan.

    Args:
        path: what the user named.
        channels: how many the model takes.

    Raises:
        InputError: there is nothing, nothing that is read, or a channel without its fellows.
    """
    if path.is_dir():
        return Scans((Scan(path.name, "dicom", (path,), "the DICOM folder"),), False) if is_dicom(path) else _in_folder(path, channels)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    kind = _KINDS.get(ending(path))
    if kind is None and is_dicom(path):
        raise InputError(f"{path}: is one DICOM file, expected the folder of its series; give {path.parent} if that holds nothing else")
    if kind is None:
        raise InputError(f"{path}: expected .nii, .nii.gz, .tif, .tiff, .png, a DICOM folder, or a folder of these; convert it first")
    return Scans((_file_scan(path, kind, channels),), False)


def _in_folder(folder: Path, channels: int) -> Scans:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    scans: list[Scan] = []
    ignored = 0
    for entry in entries:
        kind = None if entry.is_dir() else _KINDS.get(ending(entry))
        if kind is not None:
            match = _CHANNEL.fullmatch(_stem(entry)) if channels > 1 else None
            # The first channel stands for all; a case without it is reported by its first file.
            if match is None or match["number"] == "0000" or not _fellow(entry, match["case"], 0).exists():
                scans.append(_file_scan(entry, kind, channels, must_be_whole=False))
        elif entry.is_dir() and _holds_dicom(entry):
            scans.append(Scan(entry.name, "dicom", (entry,), entry.name))
        else:
            ignored += 1
    if not scans:
        raise InputError(
            f"{folder}: found no scan among {len(entries)} files and folders, expected .nii, .nii.gz, .tif, .png, or DICOM folders"
        )
    return Scans(tuple(scans), True, ignored)


def _file_scan(path: Path, kind: ScanKind, channels: int, must_be_whole: bool = True) -> Scan:
    match = _CHANNEL.fullmatch(_stem(path)) if channels > 1 else None
    if match is None:
        return Scan(_stem(path), kind, (path,), str(path))
    paths = tuple(_fellow(path, match["case"], number) for number in range(channels))
    missing = [number for number, each in enumerate(paths) if not each.is_file()]
    if missing and must_be_whole:
        raise InputError(f"{path}: the model takes {channels} channels, but {paths[missing[0]].name} is not there; add it")
    return Scan(match["case"], kind, paths, str(path))


def _fellow(path: Path, case: str, number: int) -> Path:
    return path.with_name(f"{case}_{number:04d}{path.name[len(_stem(path)) :]}")


def _stem(path: Path) -> str:
    return path.name[: -len(ending(path))]


def _holds_dicom(folder: Path) -> bool:
    """Whether a folder is meant to be a series: also one whose files are all damaged, which must not be passed over in silence."""
    if is_dicom(folder):
        return True
    try:
        return any(entry.suffix.lower() in _DICOM_ENDINGS for entry in folder.iterdir())
    except OSError:
        # Reported when it is read.
        return True
