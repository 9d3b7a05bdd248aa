"""The spinal cord phantom in the layout of the gray matter challenge: four sites, four raters, each site in a way of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medquant.data.atomic import write_text
from medquant.data.datasets.phantom import make_case, neck_grid
from medquant.data.datasets.phantom_anatomy import Grid
from medquant.data.nifti import write_nifti
from medquant.data.raters import majority
from medquant.data.volume import Case, Volume

FOLDERS = {
    "official": ("training-data-gm-sc-challenge-ismrm16-v20160302b", "test-data-gm-sc-challenge-ismrm16-v20160401"),
    "older": ("train", "test"),
}
"""Names of the training and test folder: those of the archives, and those many people give them."""

_FIRST_TEST_NUMBER = 11
_LICENCE_TEXT = "Generated images of no person, made by medquant in the layout of the spinal cord gray matter challenge. CC0 1.0.\n"


@dataclass(frozen=True)
class SiteStyle:
    """How a site stores its scans.

    Args:
        scale: in-plane spacing relative to the phantom's.
        slice_mm: distance of slices.
        orientation: direction of the array axes, as in ``nibabel.aff2axcodes``.
        stored: number type.
    """

    scale: float
    slice_mm: float
    orientation: str
    stored: str


SITE_STYLES = (
    SiteStyle(1.0, 5.0, "LAS", "float32"),
    SiteStyle(1.0, 7.5, "LAS", "int16"),
    SiteStyle(1.0, 2.5, "RPI", "int16"),
    SiteStyle(0.625, 5.0, "RAS", "int16"),
)
"""Styles of sites 1 to 4; further sites repeat them."""


@dataclass(frozen=True)
class SpinalPhantom:
    """What to generate.

    Args:
        seed: non-negative.
        sites: number of sites.
        subjects: labelled subjects a site, at most 10; as many again are written without masks.
        raters: masks of a subject, at most 4.
        slices: slices of a scan.
        size: columns and rows, at the phantom's spacing.
        spacing_mm: the phantom's in-plane spacing.
    """

    seed: int = 0
    sites: int = 4
    subjects: int = 5
    raters: int = 4
    slices: int = 6
    size: int = 96
    spacing_mm: float = 0.5

    def case(self, site: int, number: int) -> Case:
        """Subject ``number`` (as in the file names) of a site, on the site's grid and in its orientation, with all raters."""
        style = SITE_STYLES[(site - 1) % len(SITE_STYLES)]
        # Checked at the phantom's own spacing: a site's grid covers the same field, up to rounding.
        neck_grid(self.size, self.spacing_mm)
        grid = Grid(size=round(self.size / style.scale), spacing_mm=self.spacing_mm * style.scale)
        made = make_case(grid, self.slices, self.seed, site, number, slice_mm=style.slice_mm, further_raters=self.raters - 1)
        image = oriented(made.image, style.orientation)
        stored = np.rint(image.array).astype(np.int16) if style.stored == "int16" else image.array
        drawn = made.raters or ((made.mask,) if made.mask is not None else ())
        raters = tuple(oriented(mask, style.orientation) for mask in drawn)
        vote = majority([np.asarray(mask.array, dtype=np.uint8) for mask in raters], classes=3)
        name = f"site{site}-sc{number:02d}"
        return replace(
            made,
            id=name,
            subject=name,
            image=replace(image, array=stored),
            mask=replace(raters[0], array=vote),
            raters=raters,
            source=f"phantom {name} (seed {self.seed})",
        )

    def cases(self) -> Iterator[Case]:
        """Labelled subjects, by site and number."""
        for site in range(1, self.sites + 1):
            for number in range(1, self.subjects + 1):
                yield self.case(site, number)

    def write(self, folder: Path, layout: str) -> int:
        """Write the challenge's files; returns the number of labelled subjects."""
        training, test = (folder / name for name in FOLDERS[layout])
        for each in (training, test):
            each.mkdir()
            write_text(each / "license.txt", _LICENCE_TEXT)
        for case in self.cases():
            self._write_scan(training, case)
            for rater, mask in enumerate(case.raters, start=1):
                write_nifti(training / f"{case.id}-mask-r{rater}.nii.gz", mask)
        for site in range(1, self.sites + 1):
            for number in range(_FIRST_TEST_NUMBER, _FIRST_TEST_NUMBER + self.subjects):
                self._write_scan(test, self.case(site, number))
        return self.sites * self.subjects

    def _write_scan(self, folder: Path, case: Case) -> None:
        write_nifti(folder / f"{case.id}-image.nii.gz", case.image)
        # Slice, vertebra: the real files tell the level of each slice; readers do not look at them.
        levels = "".join(f"{k},{3 + k // 3}\n" for k in range(case.image.shape[2]))
        write_text(folder / f"{case.id}-levels.txt", levels)


def oriented(volume: Volume, codes: str) -> Volume:
    """The same voxels at the same places, stored with axes of other directions, for example ``RPI``."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(tuple(codes)))
    array = np.ascontiguousarray(apply_orientation(volume.array, change))
    affine = volume.affine @ np.asarray(inv_ornt_aff(change, volume.shape))
    return Volume(array=array, affine=affine, has_geometry=volume.has_geometry)
