"""The abdomen phantom in the layouts of Pancreas-CT: a DICOM series a case, and the labels in an archive of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medquant.data.datasets.pancreas_files import NUMBERS, WITHDRAWN
from medquant.data.datasets.phantom_ct import AbdomenGrid, make_abdomen
from medquant.data.dicom.writer import SeriesIdentity, numbered_name, write_dicom_series
from medquant.data.nifti import write_nifti
from medquant.data.volume import Case, Volume

LABEL_FOLDER = "TCIA_pancreas_labels-02-05-2017"
MOST_CASES = NUMBERS - len(WITHDRAWN)

LabelFault = Literal["none", "mirrored", "origin"]
"""What is wrong with the label headers: nothing; the array runs front to back while the header says otherwise; no origin."""


def case_numbers(count: int) -> tuple[int, ...]:
    """The first ``count`` case numbers of the collection, leaving out the withdrawn ones.

    >>> case_numbers(26)[-3:]
    (24, 26, 27)
    """
    return tuple(number for number in range(1, NUMBERS + 1) if number not in WITHDRAWN)[:count]


@dataclass(frozen=True)
class PancreasPhantom:
    """What to generate.

    Args:
        grid: where the voxels lie.
        numbers: case numbers.
        seed: non-negative.
        label_fault: what is wrong with the labels.
    """

    grid: AbdomenGrid
    numbers: tuple[int, ...]
    seed: int = 0
    label_fault: LabelFault = "none"

    def cases(self) -> Iterator[Case]:
        """One scan at a time."""
        for number in self.numbers:
            yield make_abdomen(self.seed, number, self.grid)

    def write(self, folder: Path, layout: str) -> int:
        """Write scans and labels; returns the number of labelled scans.

        As in the collection, the labels of withdrawn cases are among the others (as far as the numbers go), and the layout
        ``older`` has empty folders for them.
        """
        labels = folder / LABEL_FOLDER
        labels.mkdir()
        leftover = [number for number in sorted(WITHDRAWN) if number < max(self.numbers)]
        for number in [*self.numbers, *leftover]:
            # One case after the other: a full-size scan is 100 MB.
            case = make_abdomen(self.seed, number, self.grid)
            series = self._series_folder(folder, layout, number)
            if number in self.numbers:
                write_dicom_series(
                    series,
                    case.image,
                    description="Pancreas",
                    identity=SeriesIdentity(subject=case.id, seed=str(self.seed)),
                    file_name=numbered_name if layout == "official" else lambda place: f"{place - 1:06d}.dcm",
                )
            elif layout == "older":
                series.parents[1].mkdir(parents=True)
            if case.mask is not None:
                write_nifti(labels / f"label{number:04d}.nii.gz", self._label(case.mask))
        return len(self.numbers)

    def _series_folder(self, folder: Path, layout: str, number: int) -> Path:
        name = f"PANCREAS_{number:04d}"
        if layout == "official":
            return folder / "Pancreas-CT" / name / f"11-24-2015-PANCREAS{number:04d}-Pancreas-{number:05d}" / f"Pancreas-{number:05d}"
        who = SeriesIdentity(subject=name, seed=str(self.seed))
        return folder / "DOI" / name / who.uid("study") / who.uid("Pancreas", "CT", "series")

    def _label(self, mask: Volume) -> Volume:
        if self.label_fault == "mirrored":
            return replace(mask, array=np.ascontiguousarray(mask.array[:, ::-1]))
        if self.label_fault == "origin":
            affine = mask.affine.copy()
            affine[:3, 3] = 0.0
            return replace(mask, affine=affine)
        return mask
