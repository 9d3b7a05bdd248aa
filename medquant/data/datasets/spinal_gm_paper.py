"""The spinal cord gray matter challenge as the 2019 U-Net fixed-point paper's released code had it: each rater a sample of its own.

Gray matter alone is the class; of each slice the middle 50 mm is kept, which is 200 pixels of 0.25 mm; subjects 1 to 8 of each site are
trained on and 9 and 10 are watched, and scored: the paper had no third part.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from medquant.data.content import content_sha256
from medquant.data.datasets import spinal_gm
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Dataset, Volume

NAME = "spinal_gm_paper"
LAYOUT = "as spinal_gm, when asked for by name"

FIELD_MM = 50.0
LAST_TRAINED = 8

_GRAY_MATTER = 1
_NUMBER = re.compile(r"-sc(\d{2})")

INFO = replace(
    spinal_gm.INFO,
    name=NAME,
    classes={0: "background", 1: "gray_matter"},
    scored=("gray_matter",),
    official_score=(),
    regions={},
    recipe={
        "model.channels": 64,
        "model.depth": 4,
        "data.spacing_mm": [0.25, 0.25],
        "data.patch_size": [200, 200],
        "data.batch_size": 16,
        "data.normalisation": "zscore_slice",
        "data.augmentation": "mr",
    },
)


def recognise(path: Path) -> str | None:
    """Never: the challenge's files are spinal_gm unless this is asked for."""
    return None


def load(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Read the challenge and make a case of every rater's mask; cases of a subject stay in one part.

    Raises:
        InputError: as :func:`spinal_gm.load`.
        GeometryError: as :func:`spinal_gm.load`.
    """
    cache = ArrayCache(None) if options is None else options.cache
    original = spinal_gm.load(path, ReadOptions("each", cache))
    cases = tuple(_of_rater(case, number, mask) for case in original.cases for number, mask in enumerate(case.raters, start=1))
    trained = [_number(case) <= LAST_TRAINED for case in cases]
    parts = {
        "train": tuple(case.id for case, learns in zip(cases, trained, strict=True) if learns),
        "validation": tuple(case.id for case, learns in zip(cases, trained, strict=True) if not learns),
        "test": (),
    }
    recognised = (
        f"Spinal cord gray matter challenge as in the 2019 fixed-point paper: {len(cases)} cases, one for each rater's mask of "
        f"{len(original.cases)} subjects; gray matter = 1, the middle {FIELD_MM:g} mm of each slice. What is scored is what was watched."
    )
    return Dataset(INFO, cases, str(path), recognised, content_sha256(cases), parts)


def _of_rater(case: Case, number: int, mask: Volume) -> Case:
    window = tuple(_middle(length, spacing) for length, spacing in zip(case.image.shape[:2], case.image.spacing_mm[:2], strict=True))
    gray = np.asarray(mask.array[window], dtype=np.uint8) == _GRAY_MATTER
    affine = case.image.affine.copy()
    # The grid begins at another voxel now.
    affine[:3, 3] += affine[:3, :2] @ [part.start for part in window]
    return Case(
        id=f"{case.id}-r{number}",
        subject=case.subject,
        site=case.site,
        image=Volume(np.ascontiguousarray(case.image.array[window]), affine, case.image.has_geometry),
        mask=Volume(gray.astype(np.uint8), affine, case.image.has_geometry),
        source=case.source,
    )


def _middle(length: int, spacing_mm: float) -> slice:
    """The middle 50 mm of an axis, all of it where it is shorter."""
    kept = min(length, round(FIELD_MM / spacing_mm))
    start = (length - kept) // 2
    return slice(start, start + kept)


def _number(case: Case) -> int:
    found = _NUMBER.search(case.id)
    return 0 if found is None else int(found[1])
