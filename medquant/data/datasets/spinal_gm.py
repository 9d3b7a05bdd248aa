"""Spinal cord gray matter challenge (ISMRM 2016; Prados et al. 2017): cervical cord of four sites, each mask drawn by four raters.

Layout of the official download: ``training-data-gm-sc-challenge-ismrm16-v20160302b`` with ``siteS-scNN-image.nii.gz`` and
``siteS-scNN-mask-r1.nii.gz`` to ``-r4.nii.gz``, and ``test-data-gm-sc-challenge-ismrm16-v20160401`` with images alone.
Subjects 01 to 10 of a site are for training, 11 to 20 for testing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from medquant.data.content import content_sha256, volume_sha256
from medquant.data.grids import lay_on
from medquant.data.label_values import check_labels
from medquant.data.raters import TIE_RULE, majority, staple
from medquant.data.reading import RaterRule, ReadOptions
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Dataset, DatasetInfo, LabelArray, Volume
from medquant.errors import InputError

LAYOUT = (
    "siteS-scNN-image.nii.gz with siteS-scNN-mask-r1.nii.gz to -r4.nii.gz, in the folder or its training-data-gm-sc-challenge-* or train"
)

INFO = DatasetInfo(
    name="spinal_gm",
    modality="MR",
    classes={0: "background", 1: "gray_matter", 2: "white_matter"},
    scored=("gray_matter", "white_matter", "cord"),
    official_score=("msd", "hd", "shd", "smd", "sensitivity", "specificity", "precision", "jaccard", "conformity"),
    recipe={
        "model.channels": 16,
        "model.depth": 4,
        "train.epochs": 30,
        "train.steps_per_epoch": 40,
        "data.spacing_mm": [0.3, 0.3],
        "data.region": "coarse",
        "data.patch_size": [128, 128],
        "data.batch_size": 8,
        "data.normalisation": "zscore_slice",
        "data.augmentation": "mr_sites",
    },
    citation="Prados et al. 2017, NeuroImage 152:312-329, doi 10.1016/j.neuroimage.2017.03.010",
    regions={"cord": (1, 2)},
)

_FILE = re.compile(r"(?P<id>(?P<site>site\d{1,2})-sc(?P<number>\d{2}))-(?:image|mask-r(?P<rater>[1-4]))\.nii(?:\.gz)?")
_TRAINING_FOLDERS = re.compile(r"train|training-data-gm-sc-challenge-ismrm16.*")
_TEST_FOLDERS = re.compile(r"test|test-data-gm-sc-challenge-ismrm16.*")
_FIRST_TEST_NUMBER = 11
_EXPECTED_VALUES = "0 (background), 1 (gray matter) and 2 (white matter)"
_MOST_NAMED = 3


@dataclass
class _Files:
    """What lies in the folders for one subject."""

    site: str
    is_test: bool
    image: Path | None = None
    masks: dict[int, Path] = field(default_factory=dict)


@dataclass
class _Remarks:
    """What the user should hear about the masks."""

    raters: Counter[int] = field(default_factory=Counter)
    lacking: dict[str, list[str]] = field(default_factory=lambda: {"gray matter (1)": [], "white matter (2)": []})
    reordered: int = 0
    assumed: int = 0


def recognise(path: Path) -> str | None:
    """Say why the folder is taken for the challenge's download, or None. One file of the official naming is enough."""
    for folder, _ in _folders(path):
        name = next((entry.name for entry in _entries(folder) if _FILE.fullmatch(entry.name)), None)
        if name is not None:
            return f"it holds {(folder / name).relative_to(path)}"
    return None


def load(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Read the labelled subjects; each volume becomes a case, on its own grid.

    ``case.mask`` is the vote of the raters that are there (``options.raters`` ``majority`` and ``each``) or their STAPLE
    estimate; for ``each``, ``case.raters`` holds the single masks. Subjects without masks are counted and not used.

    Raises:
        InputError: a file is unreadable or stands twice; an image or a training subject's masks are missing; a mask holds
            another value than 0, 1, 2; or no mask at all holds gray matter, or white matter.
        GeometryError: a mask does not lie on its image's grid.
    """
    options = options or ReadOptions()
    found = _find_files(path)
    unlabelled = [name for name, files in found.items() if not files.masks]
    remarks = _Remarks()
    cases = tuple(_read_case(name, files, options, remarks) for name, files in found.items() if files.masks)
    if not cases:
        raise InputError(
            f"{path}: found {_count(len(unlabelled), 'image')} and no mask, expected {LAYOUT}; add the training part of the download"
        )
    _check_encoding(path, remarks)
    return Dataset(
        info=INFO,
        cases=cases,
        path=str(path),
        recognised=_describe(path, cases, len(unlabelled), options.raters, remarks),
        content_sha256=content_sha256(cases),
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _folders(path: Path) -> list[tuple[Path, bool]]:
    """Folders that may hold images, and whether each is for testing: the given one; else the known ones in it, two levels deep."""
    if any(_FILE.fullmatch(entry.name) for entry in _entries(path)):
        return [(path, False)]
    found: list[tuple[Path, bool]] = []
    level = [(path, False)]
    for _ in range(2):
        # An archive unpacked into train/ lies one level deeper, under its official name.
        level = [
            (entry, is_test or _TEST_FOLDERS.fullmatch(entry.name) is not None)
            for folder, is_test in level
            for entry in _entries(folder)
            if (_TRAINING_FOLDERS.fullmatch(entry.name) or _TEST_FOLDERS.fullmatch(entry.name)) and entry.is_dir()
        ]
        found += level
    # Training folders first: what is recognised is named by the first file.
    return sorted(found, key=lambda item: item[1])


def _find_files(path: Path) -> dict[str, _Files]:
    """Subject → its files, in order of site and number; every image is there, and every training subject has a mask."""
    found: dict[str, _Files] = {}
    for folder, is_test in _folders(path):
        for entry in _entries(folder):
            if match := _FILE.fullmatch(entry.name):
                is_test_subject = is_test or int(match["number"]) >= _FIRST_TEST_NUMBER
                _add(found.setdefault(match["id"], _Files(match["site"], is_test_subject)), entry, match["rater"])
    if not found:
        raise InputError(f"{path}: found no file of the challenge, expected {LAYOUT}; give the folder the download was unpacked into")
    imageless = [name for name, files in found.items() if files.image is None]
    if imageless:
        raise InputError(
            f"{path}: the masks of {_names(imageless)} have no image beside them, expected -image.nii.gz; copy the missing files"
        )
    maskless = [name for name, files in found.items() if not files.masks and not files.is_test]
    if maskless:
        raise InputError(f"{path}: {_names(maskless)} of the training part have no mask, expected -mask-r1.nii.gz; copy the missing files")
    # By number of the site and of the subject, which a plain sort of the names would mix up beyond nine sites.
    return dict(sorted(found.items(), key=lambda item: (len(item[1].site), item[0])))


def _add(files: _Files, entry: Path, rater: str | None) -> None:
    known = files.image if rater is None else files.masks.get(int(rater))
    if known is not None:
        raise InputError(f"{entry}: {known} is the same scan or mask by its name, expected one of the two; remove the other")
    if rater is None:
        files.image = entry
    else:
        files.masks[int(rater)] = entry


def _read_case(name: str, files: _Files, options: ReadOptions, remarks: _Remarks) -> Case:
    from medquant.data.nifti import read_nifti

    if files.image is None:
        raise InputError(f"{name}: has no image")
    image = options.cache.volume([files.image], "nifti 1", partial(read_nifti, files.image))
    raters = [_read_mask(files.masks[rater], files.image, image, options.cache, remarks) for rater in sorted(files.masks)]
    remarks.raters[len(raters)] += 1
    return Case(
        id=name,
        subject=name,
        site=files.site,
        image=image,
        mask=_combine(raters, options.raters, options.cache),
        source=str(files.image),
        raters=tuple(raters) if options.raters == "each" else (),
    )


def _read_mask(path: Path, image_path: Path, image: Volume, cache: ArrayCache, remarks: _Remarks) -> Volume:
    from medquant.data.nifti import read_nifti_mask

    stored = cache.volume([path], "nifti mask 1", partial(read_nifti_mask, path))
    values = check_labels(stored, INFO.classes, _EXPECTED_VALUES, str(path), cache)
    for number, lacking in enumerate(remarks.lacking.values(), start=1):
        if number not in values:
            lacking.append(path.name)
    mask, how = lay_on(stored, image, (str(path), str(image_path)), cache)
    remarks.reordered += how == "reordered"
    remarks.assumed += how == "assumed"
    return mask


def _combine(raters: Sequence[Volume], rule: RaterRule, cache: ArrayCache) -> Volume:
    """One mask from all raters of a case; they lie on one grid."""
    if len(raters) == 1:
        return raters[0]
    estimate = _by_staple if rule == "staple" else _by_majority
    first = raters[0]

    def make() -> Volume:
        arrays = [np.asarray(rater.array, dtype=np.uint8) for rater in raters]
        return Volume(array=estimate(arrays), affine=first.affine, has_geometry=first.has_geometry)

    digests = " ".join(volume_sha256(rater) for rater in raters)
    return cache.keep(f"raters 1 {estimate.__name__} {digests} {first.affine.tolist()}", make)


def _by_majority(masks: Sequence[LabelArray]) -> LabelArray:
    return majority(masks, len(INFO.classes))


def _by_staple(masks: Sequence[LabelArray]) -> LabelArray:
    return staple(masks, len(INFO.classes)).mask


def _check_encoding(path: Path, remarks: _Remarks) -> None:
    """Refuse a set in which a class never occurs: then the numbers do not mean what the challenge's numbers mean."""
    masks = sum(raters * cases for raters, cases in remarks.raters.items())
    for tissue, lacking in remarks.lacking.items():
        if len(lacking) == masks:
            raise InputError(
                f"{path}: none of the {masks} masks holds {tissue}, expected the challenge's encoding {_EXPECTED_VALUES}; "
                "use the original masks"
            )


def _describe(path: Path, cases: Sequence[Case], unlabelled: int, rule: RaterRule, remarks: _Remarks) -> str:
    sites = Counter(case.site for case in cases)
    parts = [
        f"Spinal cord gray matter challenge ({recognise(path)}): {_count(len(cases), 'labelled case')} "
        f"({', '.join(f'{count} of {site}' for site, count in sites.items())}); gray matter = 1, white matter = 2, cord = both",
        _describe_raters(rule, remarks.raters),
    ]
    if unlabelled:
        parts.append(f"not used: {_count(unlabelled, 'image')} without masks (the test part)")
    if remarks.reordered:
        parts.append(f"{_count(remarks.reordered, 'mask')} stored along other axes than the image, brought into its order")
    if remarks.assumed:
        parts.append(
            f"{_count(remarks.assumed, 'mask')} taken to lie on the image, because one of the two files says nothing about its place"
        )
    parts += [f"no {tissue} in {_names(names)}" for tissue, names in remarks.lacking.items() if names]
    return "; ".join(parts) + "."


def _describe_raters(rule: RaterRule, raters: Counter[int]) -> str:
    if set(raters) == {1}:
        return f"one rater only in {_count(raters[1], 'case')} of {raters[1]}, so there is nothing to combine"
    rules: dict[RaterRule, str] = {
        "majority": f"truth is the majority of the raters ({TIE_RULE})",
        "each": f"training takes each rater in turn, scored is their majority ({TIE_RULE})",
        "staple": "truth is the STAPLE estimate from the raters",
    }
    counts = ", ".join(f"{_count(number, 'rater')} in {_count(raters[number], 'case')}" for number in sorted(raters, reverse=True))
    return f"{rules[rule]}: {counts}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    return ", ".join(listed[:_MOST_NAMED]) + more
