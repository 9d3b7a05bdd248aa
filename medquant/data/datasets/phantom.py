"""A made-up spinal cord dataset: something to train on when there is no data, and to test against a known truth.

Axial slices through a neck: vertebra and muscles, a canal of bright fluid, in it the cord, whose gray matter has the shape
of a butterfly. Four sites differ in contrast, sharpness, noise and shading; subjects differ in shape. As with human raters,
the outlines of the mask wander a little about the true ones, so that no network can reach a Dice of 1.
On the side of growing ``i`` lies a small bright vessel (background): a mirrored image shows it on the wrong side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medquant.data.content import content_sha256
from medquant.data.datasets.phantom_anatomy import RATER_HABIT_MM, Anatomy, Grid, rate
from medquant.data.datasets.phantom_scanner import Scanner, scan
from medquant.data.volume import Case, Dataset, DatasetInfo, Volume
from medquant.errors import ConfigError

INFO = DatasetInfo(
    name="phantom",
    classes={0: "background", 1: "gray_matter", 2: "white_matter"},
    scored=("gray_matter", "white_matter"),
    recipe={
        "model.channels": 16,
        "train.epochs": 16,
        "train.steps_per_epoch": 25,
        "data.patch_size": [96, 96],
        "data.batch_size": 16,
        "data.normalisation": "zscore_slice",
        "data.augmentation": "mr",
    },
)

SLICE_SPACING_MM = 5.0

_MIN_FIELD_MM = 40.0


def make_phantom(
    seed: int = 0, subjects_per_site: int = 5, sites: int = 4, slices: int = 6, size: int = 96, spacing_mm: float = 0.5
) -> Dataset:
    """Generate the phantom; the same arguments give the same bytes, whatever the number of threads.

    Args:
        seed: non-negative; every value gives other subjects.
        subjects_per_site: one case each.
        sites: scanners; beyond the fourth they are variations of the first four.
        slices: slices of a case, 5 mm apart.
        size: voxels along ``i`` and ``j``.
        spacing_mm: distance of voxels along ``i`` and ``j``.

    Returns:
        Cases of shape ``(size, size, slices)``, ids ``site1-sub01`` and on; classes 0 background, 1 gray matter, 2 white matter.

    Raises:
        ConfigError: a count below 1, a negative seed, or a field of view (``size · spacing_mm``) below 40 mm.
    """
    if min(subjects_per_site, sites, slices, size) < 1 or seed < 0:
        raise ConfigError(
            f"phantom: found seed {seed}, {subjects_per_site} subjects, {sites} sites, {slices} slices, size {size}; "
            "expected a seed of at least 0 and counts of at least 1"
        )
    grid = neck_grid(size, spacing_mm)
    cases = tuple(
        make_case(grid, slices, seed, site, subject) for site in range(1, sites + 1) for subject in range(1, subjects_per_site + 1)
    )
    recognised = (
        f"Built-in phantom (no data was given): {sites} sites with {subjects_per_site} generated subjects each, "
        f"{slices} slices of {size}×{size} at {spacing_mm:g} mm, seed {seed}; gray matter = 1, white matter = 2."
    )
    return Dataset(info=INFO, cases=cases, path=None, recognised=recognised, content_sha256=content_sha256(cases))


def neck_grid(size: int, spacing_mm: float) -> Grid:
    """The grid of a slice, if it is wide enough.

    Raises:
        ConfigError: a field of view (``size · spacing_mm``) below 40 mm.
    """
    if not (spacing_mm > 0 and size * spacing_mm >= _MIN_FIELD_MM):
        raise ConfigError(f"phantom: a field of {size} × {spacing_mm} mm cannot hold the neck; choose at least {_MIN_FIELD_MM:g} mm")
    return Grid(size=size, spacing_mm=spacing_mm)


def make_case(
    grid: Grid, slices: int, seed: int, site: int, subject: int, *, slice_mm: float = SLICE_SPACING_MM, further_raters: int = 0
) -> Case:
    """Generate one subject; the arguments are those of :func:`make_phantom`, by number.

    Args:
        grid: the slices' grid.
        slices: number of slices.
        seed: as there.
        site: scanner, from 1.
        subject: number within the site, from 1.
        slice_mm: distance of slices.
        further_raters: raters besides the first, each with a habit kept over all subjects; ``Case.raters`` then holds all of them.
    """
    # A counter-based generator per subject: a case does not depend on how many others are made.
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, site, subject])))
    scanner = Scanner.of_site(site)
    anatomy = Anatomy.draw(random)
    gain = scanner.gain * float(random.uniform(0.85, 1.15))
    image = np.empty((grid.size, grid.size, slices), dtype=np.float32)
    masks = np.empty((1 + further_raters, *image.shape), dtype=np.uint8)
    hands = [_Hand.of(seed, site, subject, rater) for rater in range(2, 2 + further_raters)]
    for k in range(slices):
        tissue = anatomy.slice_at(k * slice_mm, grid, random)
        image[:, :, k] = gain * scan(tissue, scanner, grid, random)
        masks[0, :, :, k] = tissue.rated
        for number, hand in enumerate(hands, start=1):
            masks[number, :, :, k] = rate(tissue.gray, tissue.cord, grid, hand.habit_mm, hand.random)
    affine = np.diag([grid.spacing_mm, grid.spacing_mm, slice_mm, 1.0])
    affine[:2, 3] = -(grid.size - 1) / 2 * grid.spacing_mm
    name = f"site{site}-sub{subject:02d}"
    rated = tuple(Volume(array=mask, affine=affine) for mask in masks)
    return Case(
        id=name,
        subject=name,
        site=f"site{site}",
        image=Volume(array=image, affine=affine),
        mask=rated[0],
        source=f"phantom {name} (seed {seed})",
        raters=rated if further_raters else (),
    )


@dataclass(frozen=True)
class _Hand:
    """A further rater at one subject: random numbers of their own, so that the first rater's mask does not depend on them."""

    habit_mm: float
    random: np.random.Generator

    @staticmethod
    def of(seed: int, site: int, subject: int, rater: int) -> _Hand:
        habits = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0, 0, rater])))
        own = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, site, subject, rater])))
        return _Hand(float(habits.normal(0.0, 2 * RATER_HABIT_MM)), own)
