"""Which case is trained on, which one is watched, and which one is only scored at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from medquant.data.content import array_sha256
from medquant.data.volume import Case, Dataset
from medquant.errors import CheckpointError, InputError

PARTS = ("train", "validation", "test")

_MIN_SLICES = 6
_MIN_SUBJECTS = 3
_VALIDATION_SHARE = _TEST_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Case ids of the three parts, each in dataset order, and one sentence on how they were chosen."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    rule: str

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part name → case ids, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def to_json(self) -> dict[str, object]:
        """The split as plain JSON values; ``from_json`` gives it back."""
        return {**{part: list(ids) for part, ids in self.parts().items()}, "rule": self.rule}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> Split:
        """Read what ``to_json`` wrote.

        Raises:
            CheckpointError: a part is missing or is no list of ids, the rule is no text, or there are further keys.
        """
        lists = {part: data.get(part) for part in PARTS}
        ids_are_text = all(isinstance(ids, list | tuple) and all(isinstance(item, str) for item in ids) for ids in lists.values())
        if set(data) != {*PARTS, "rule"} or not ids_are_text or not isinstance(data["rule"], str):
            raise CheckpointError(
                f"stored split has the keys {sorted(map(str, data))}, expected {', '.join(PARTS)} (lists of case ids) and rule (text)"
            )
        train, validation, test = (tuple(cast(list[str], lists[part])) for part in PARTS)
        return Split(train=train, validation=validation, test=test, rule=data["rule"])


def make_split(dataset: Dataset, seed: int = 0) -> Split:
    """Divide a dataset so that nothing of a training subject is scored.

    Slices of one stack (single-slice cases without a site, each its own subject) are cut into contiguous blocks, in the
    proportion 20 : 4 : 6. Everything else is divided by subject within its site, about 60 : 20 : 20, ``seed`` deciding which;
    sites of fewer than three subjects are divided together.

    Raises:
        InputError: fewer than 6 slices, or fewer than 3 subjects, or the parts would share content.
    """
    split = _split_blocks(dataset) if _is_one_stack(dataset) else _split_subjects(dataset, seed)
    check_no_leak(dataset, split)
    return split


def check_no_leak(dataset: Dataset, split: Split) -> None:
    """Refuse a split in which a part knows something of another one.

    Raises:
        InputError: an id is unknown, stands twice, or a subject or the voxels of an image lie in two parts.
    """
    cases = {case.id: case for case in dataset.cases}
    part_of: dict[str, str] = {}
    for part, ids in split.parts().items():
        for case_id in ids:
            if case_id not in cases:
                raise InputError(f"split: the {part} part names the case {case_id!r}, which {dataset.info.name} lacks; make the split anew")
            if case_id in part_of:
                raise InputError(
                    f"split: the case {case_id!r} stands in {part_of[case_id]} and in {part}, expected once; make the split anew"
                )
            part_of[case_id] = part
    placed = [cases[case_id] for case_id in part_of]
    _check_apart(placed, part_of, "the subject", lambda case: case.subject)
    _check_apart(placed, part_of, "the same voxels", lambda case: array_sha256(case.image.array))


def _check_apart(placed: Iterable[Case], part_of: Mapping[str, str], what: str, key_of: Callable[[Case], str]) -> None:
    first_with: dict[str, Case] = {}
    for case in placed:
        first = first_with.setdefault(key_of(case), case)
        if part_of[first.id] != part_of[case.id]:
            name = f"{what} {case.subject!r}" if key_of(case) == case.subject else what
            raise InputError(
                f"split: {name} is in {part_of[first.id]} ({first.id}) and in {part_of[case.id]} ({case.id}); "
                "expected one part only, so put both cases into the same one or remove one"
            )


def _is_one_stack(dataset: Dataset) -> bool:
    return all(case.image.shape[2] == 1 and not case.site and case.subject == case.id for case in dataset.cases)


def _split_blocks(dataset: Dataset) -> Split:
    ids = [case.id for case in dataset.cases]
    count = len(ids)
    if count < _MIN_SLICES:
        raise InputError(f"{_where(dataset)}: found {count} slices, expected at least {_MIN_SLICES} to cut into three blocks; add slices")
    validation, test = max(1, round(count * 4 / 30)), max(1, round(count * 6 / 30))
    train = count - validation - test
    first_test = train + validation
    rule = (
        f"contiguous blocks of one stack of {count} slices: 0-{train - 1} train, {train}-{first_test - 1} validation, "
        f"{first_test}-{count - 1} test; the parts are of the same animal"
    )
    return Split(tuple(ids[:train]), tuple(ids[train:first_test]), tuple(ids[first_test:]), rule)


def _split_subjects(dataset: Dataset, seed: int) -> Split:
    groups = _subjects_by_group(dataset)
    part_of_subject: dict[str, str] = {}
    for number, subjects in enumerate(groups):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
        shuffled = [subjects[position] for position in generator.permutation(len(subjects))]
        validation, test = _part_sizes(len(subjects))
        for position, subject in enumerate(shuffled):
            part_of_subject[subject] = "validation" if position < validation else "test" if position < validation + test else "train"
    ids = {part: tuple(case.id for case in dataset.cases if part_of_subject[case.subject] == part) for part in PARTS}
    counts = [sum(part == wanted for part in part_of_subject.values()) for wanted in PARTS]
    rule = f"by subject within site, {counts[0]} train, {counts[1]} validation, {counts[2]} test subjects, seed {seed}"
    return Split(ids["train"], ids["validation"], ids["test"], rule)


def _part_sizes(subjects: int) -> tuple[int, int]:
    """Validation and test subjects of a group; a rest of one or two subjects beside larger sites is trained on."""
    if subjects < _MIN_SUBJECTS:
        return 0, 0
    return max(1, round(subjects * _VALIDATION_SHARE)), max(1, round(subjects * _TEST_SHARE))


def _subjects_by_group(dataset: Dataset) -> list[list[str]]:
    """Subjects of each site in dataset order, sites by name; sites too small to divide share a last group."""
    site_of: dict[str, str] = {}
    for case in dataset.cases:
        # A subject scanned at two sites stays whole, in the site where it came first.
        site_of.setdefault(case.subject, case.site)
    if len(site_of) < _MIN_SUBJECTS:
        raise InputError(
            f"{_where(dataset)}: found {len(site_of)} subjects, expected at least {_MIN_SUBJECTS} for three parts; add subjects"
        )
    by_site: dict[str, list[str]] = defaultdict(list)
    for subject, site in site_of.items():
        by_site[site].append(subject)
    groups = [subjects for _, subjects in sorted(by_site.items()) if len(subjects) >= _MIN_SUBJECTS]
    rest = [subject for _, subjects in sorted(by_site.items()) if len(subjects) < _MIN_SUBJECTS for subject in subjects]
    return [*groups, rest] if rest else groups


def _where(dataset: Dataset) -> str:
    return dataset.path or dataset.info.name
