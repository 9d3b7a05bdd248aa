"""The files of a Pancreas-CT download: which scan and which label belong to which case number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medquant.errors import InputError

NUMBERS = 82
"""Cases are numbered from 1 to this."""

WITHDRAWN = frozenset({25, 70})
"""Cases the collection has taken back; their labels are still in the label archive, and some downloads have empty folders."""

LAYOUT = "PANCREAS_0001/*/*/1-001.dcm (in the folder, in Pancreas-CT/ or in DOI/) with TCIA_pancreas_labels-02-05-2017/label0001.nii.gz"

_PATIENT = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)
_LABEL = re.compile(r"label(\d{4})\.nii(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: slices sorted by path, and the label."""

    number: int
    slices: tuple[Path, ...]
    label: Path

    @property
    def name(self) -> str:
        """``PANCREAS_0001``: a number of the collection, not of a patient."""
        return f"PANCREAS_{self.number:04d}"


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        cases: scans with a label, by number.
        without_label: numbers of scans that have none.
        without_scan: numbers of labels that have none.
        withdrawn: numbers left out although there is a scan or a label, because the collection took the case back.
    """

    cases: tuple[CaseFiles, ...]
    without_label: tuple[int, ...]
    without_scan: tuple[int, ...]
    withdrawn: tuple[int, ...]


def patient_folders(path: Path) -> list[tuple[int, Path]]:
    """Number and folder of each case, empty ones included, in the places where downloads put them."""
    roots = [path, path / "Pancreas-CT", path / "DOI", *(each / "Pancreas-CT" for each in _folders(path, "manifest-"))]
    found = []
    for root in roots:
        for entry in _folders(root, "pancreas_"):
            match = _PATIENT.fullmatch(entry.name)
            if match:
                found.append((int(match[1]), entry))
    return found


def label_files(path: Path) -> list[tuple[int, Path]]:
    """Number and file of each label: in the folder, beside the scans, or in a folder ``TCIA_pancreas_labels*`` there."""
    beside = {folder.parent for _, folder in patient_folders(path)}
    roots = dict.fromkeys([path, path / "Pancreas-CT", path / "DOI", *sorted(beside)])
    archives = [archive for root in roots for archive in _folders(root, "tcia_pancreas_labels")]
    # Some programs unpack an archive into a folder of its own name.
    archives += [inner for archive in archives for inner in _folders(archive, "tcia_pancreas_labels")]
    found = []
    for folder in dict.fromkeys([*roots, *archives]):
        for entry in _entries(folder):
            match = _LABEL.fullmatch(entry.name)
            if match and entry.is_file():
                found.append((int(match[1]), entry))
    return found


def find_cases(path: Path) -> Found:
    """Pair scans and labels by number.

    Raises:
        InputError: a number occurs twice among the scans or among the labels, or no scan has a label.
    """
    slices = _scans(path)
    labels = _only(label_files(path), "label files", path)
    withdrawn = sorted(number for number in slices.keys() | labels.keys() if number in WITHDRAWN)
    for number in withdrawn:
        slices.pop(number, None)
        labels.pop(number, None)
    cases = tuple(CaseFiles(number, slices[number], labels[number]) for number in sorted(slices.keys() & labels.keys()))
    if not cases:
        raise InputError(
            f"{path}: found {len(slices)} scans and {len(labels)} labels, none of one number, expected {LAYOUT}; download scans and labels"
        )
    return Found(cases, tuple(sorted(slices.keys() - labels.keys())), tuple(sorted(labels.keys() - slices.keys())), tuple(withdrawn))


def list_numbers(numbers: Iterable[int], most: int = 8) -> str:
    """Numbers for a sentence: the first few, then how many more.

    >>> list_numbers([3, 4, 5], most=2)
    '3, 4 and 1 more'
    """
    listed = [str(number) for number in numbers]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _scans(path: Path) -> dict[int, tuple[Path, ...]]:
    """Slices of each case that has any, wherever below its folder they lie."""
    filled = [(number, folder, _files_below(folder)) for number, folder in patient_folders(path)]
    folders = _only([(number, folder) for number, folder, files in filled if files], "folders with slices", path)
    return {number: files for number, folder, files in filled if files and folders[number] == folder}


def _only(found: list[tuple[int, Path]], what: str, path: Path) -> dict[int, Path]:
    by_number: dict[int, Path] = {}
    for number, entry in found:
        if number in by_number:
            raise InputError(f"{path}: found two {what} of number {number}, expected one; keep one download of each case")
        by_number[number] = entry
    return by_number


def _files_below(folder: Path) -> tuple[Path, ...]:
    # Links that lead nowhere are kept: each stands for a slice, and the reader will say that it misses.
    return tuple(sorted(entry for entry in folder.rglob("*") if not entry.name.startswith(".") and not entry.is_dir()))


def _folders(path: Path, start: str) -> list[Path]:
    return [entry for entry in _entries(path) if entry.name.lower().startswith(start) and entry.is_dir()]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir()) if path.is_dir() else []
    except OSError:
        # What cannot be listed holds nothing that could be recognised.
        return []
