"""Which case is trained on, which one is watched, and which one is only scored at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from medquant.data.content import volume_sha256
from medquant.data.volume import Case, Dataset
from medquant.errors import CheckpointError, InputError, unknown_name

PARTS = ("train", "validation", "test")

_MIN_SLICES = 6
_MIN_SUBJECTS = 3
_VALIDATION_SHARE = _TEST_SHARE = 0.2
_VALIDATION_SHARE_OF_FOLDS = 0.15


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


@dataclass(frozen=True)
class SplitRule:
    """How the test part is chosen.

    Args:
        seed: decides which subjects go where, as far as the rule leaves that open.
        test_site: the site that is held out, or None.
        fold: the fold that is held out, from 0, or None.
        folds: number of folds.
    """

    seed: int = 0
    test_site: str | None = None
    fold: int | None = None
    folds: int = 4


def make_split(dataset: Dataset, rule: SplitRule | None = None) -> Split:
    """Divide the labelled cases of a dataset so that nothing of a training subject is scored.

    Slices of one stack are cut into contiguous blocks, in the
    proportion 20 : 4 : 6. Everything else is divided by subject within its site, about 60 : 20 : 20; sites of fewer than three
    subjects are kept whole where there are three of them, and are divided together otherwise. Two subjects make a training
    and a test part without validation. A fold is a run of neighbouring subjects (by number, where the dataset numbers them)
    or slices.

    Raises:
        InputError: fewer than 6 slices or 2 subjects, no such site or fold, or parts that would share content.
    """
    rule = rule or SplitRule()
    labelled = replace(dataset, cases=tuple(case for case in dataset.cases if case.mask is not None))
    if not labelled.cases:
        raise InputError(f"{_where(dataset)}: found no case with a mask, expected some to train and score on; add the masks")
    if dataset.info.one_stack:
        if rule.test_site is not None:
            raise InputError(f"{_where(dataset)}: data.test_site {rule.test_site!r}: slices of one stack have no site; use data.fold")
        split = _split_blocks(labelled, rule)
    elif rule.fold is not None:
        split = _split_fold(labelled, rule)
    elif rule.test_site is not None:
        split = _split_site(labelled, rule)
    elif dataset.parts:
        train, validation, test = (dataset.parts[part] for part in PARTS)
        counts = f"{len(train)} train, {len(validation)} validation, {len(test)} test"
        split = Split(train, validation, test, f"as the dataset divides itself: {counts} cases")
    else:
        split = _split_subjects(labelled, rule.seed)
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
    _check_apart(placed, part_of, "the same voxels", lambda case: volume_sha256(case.image))


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


def _split_blocks(dataset: Dataset, rule: SplitRule) -> Split:
    ids = [case.id for case in dataset.cases]
    count = len(ids)
    if count < _MIN_SLICES:
        raise InputError(f"{_where(dataset)}: found {count} slices, expected at least {_MIN_SLICES} to cut into three blocks; add slices")
    validation, test = max(1, round(count * 4 / 30)), max(1, round(count * 6 / 30))
    first_test = count - test
    if rule.fold is not None:
        ends = [count * number // rule.folds for number in range(rule.folds + 1)]
        first_test, test = ends[rule.fold], ends[rule.fold + 1] - ends[rule.fold]
        if test < 1 or count - test - validation < 1:
            raise InputError(f"{_where(dataset)}: {count} slices cannot be cut into {rule.folds} folds; choose fewer")
    # Watched are the slices before the tested ones; where there are none, those after them.
    first_validation = first_test - validation if first_test >= validation else first_test + test
    parts = ["train"] * count
    parts[first_test : first_test + test] = ["test"] * test
    parts[first_validation : first_validation + validation] = ["validation"] * validation
    chosen = {part: [number for number in range(count) if parts[number] == part] for part in PARTS}
    listed = ", ".join(f"{_runs(chosen[part])} {part}" for part in PARTS)
    fold = "" if rule.fold is None else f", fold {rule.fold} of {rule.folds}"
    text = f"contiguous blocks of one stack of {count} slices{fold}: {listed}; the parts are of the same animal"
    train, watched, tested = (tuple(ids[number] for number in chosen[part]) for part in PARTS)
    return Split(train, watched, tested, text)


def _runs(numbers: list[int]) -> str:
    """Numbers as runs.

    >>> _runs([0, 1, 2, 5])
    '0-2 and 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " and ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs)


def _split_subjects(dataset: Dataset, seed: int) -> Split:
    subjects = list(dict.fromkeys(case.subject for case in dataset.cases))
    if len(subjects) < 2:
        raise InputError(f"{_where(dataset)}: found {len(subjects)} subjects, expected at least 2 to train and to test on; add subjects")
    if len(subjects) == 2:
        halves = dict(zip(subjects, ("train", "test"), strict=True))
        return _by_subject(dataset, halves, "one subject each to train and to test on, none left to watch training: {counts}")
    part_of_subject: dict[str, str] = {}
    groups, whole_sites = _groups(dataset)
    for number, units in enumerate(groups):
        validation, test = _part_sizes(len(units))
        for position, unit in enumerate(_shuffled(units, seed, number)):
            part = "validation" if position < validation else "test" if position < validation + test else "train"
            part_of_subject |= dict.fromkeys(unit, part)
    how = "by whole sites, which have too few subjects to divide," if whole_sites else "by subject within site,"
    return _by_subject(dataset, part_of_subject, f"{how} {{counts}}, seed {seed}")


def _split_site(dataset: Dataset, rule: SplitRule) -> Split:
    sites = sorted({case.site for case in dataset.cases if case.site})
    if rule.test_site not in sites:
        raise InputError(
            f"{_where(dataset)}: data.test_site: {unknown_name('site', str(rule.test_site), tuple(sites)) if sites else 'it has no sites'}"
        )
    tested = {case.subject for case in dataset.cases if case.site == rule.test_site}
    rest = replace(dataset, cases=tuple(case for case in dataset.cases if case.subject not in tested))
    part_of_subject = dict.fromkeys(tested, "test")
    groups, _ = _groups(rest, least_sites=2)
    for number, units in enumerate(groups):
        # The sites that stay need no test part of their own.
        watched = max(1, round(len(units) * _VALIDATION_SHARE)) if len(units) >= 2 else 0
        for position, unit in enumerate(_shuffled(units, rule.seed, number)):
            part_of_subject |= dict.fromkeys(unit, "validation" if position < watched else "train")
    return _by_subject(dataset, part_of_subject, f"site {rule.test_site} held out for testing, {{counts}}, seed {rule.seed}")


def _split_fold(dataset: Dataset, rule: SplitRule) -> Split:
    subjects = list(dict.fromkeys(case.subject for case in dataset.cases))
    if rule.fold is None:
        raise InputError("no fold was chosen")
    numbered = dataset.info.numbered
    if numbered:
        # Smaller folds come first, as in the published splits of Pancreas-CT: 1-20, 21-40, 41-61, 62-82.
        larger = numbered % rule.folds
        ends = [numbered // rule.folds * fold + max(0, fold - (rule.folds - larger)) for fold in range(rule.folds + 1)]
        first, last = ends[rule.fold] + 1, ends[rule.fold + 1]
        tested = {subject for subject in subjects if first <= int(subject[-4:]) <= last}
        name = f"fold {rule.fold} of {rule.folds} (numbers {first} to {last}) held out for testing"
    else:
        ends = [len(subjects) * fold // rule.folds for fold in range(rule.folds + 1)]
        tested = set(subjects[ends[rule.fold] : ends[rule.fold + 1]])
        name = f"fold {rule.fold} of {rule.folds} (neighbouring subjects) held out for testing"
    rest = [[subject] for subject in subjects if subject not in tested]
    if not tested or not rest:
        raise InputError(
            f"{_where(dataset)}: {name}: it holds {len(tested)} of {len(subjects)} subjects; choose another fold or fewer folds"
        )
    watched = max(1, round(len(rest) * _VALIDATION_SHARE_OF_FOLDS)) if len(rest) >= 2 else 0
    order = _shuffled(rest, rule.seed, 0)
    part_of_subject = {subject: "test" for subject in tested} | {unit[0]: "validation" for unit in order[:watched]}
    return _by_subject(dataset, part_of_subject, f"{name}, {{counts}}, seed {rule.seed}")


def _by_subject(dataset: Dataset, part_of_subject: Mapping[str, str], text: str) -> Split:
    part_of = {case.id: part_of_subject.get(case.subject, "train") for case in dataset.cases}
    ids = {part: tuple(case.id for case in dataset.cases if part_of[case.id] == part) for part in PARTS}
    counts = [len({case.subject for case in dataset.cases if part_of[case.id] == wanted}) for wanted in PARTS]
    counted = f"{counts[0]} train, {counts[1]} validation, {counts[2]} test subjects"
    return Split(ids["train"], ids["validation"], ids["test"], text.format(counts=counted))


def _shuffled(units: list[list[str]], seed: int, number: int) -> list[list[str]]:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
    return [units[position] for position in generator.permutation(len(units))]


def _part_sizes(units: int) -> tuple[int, int]:
    """Validation and test units of a group; a rest of one or two beside larger sites is trained on."""
    if units < _MIN_SUBJECTS:
        return 0, 0
    return max(1, round(units * _VALIDATION_SHARE)), max(1, round(units * _TEST_SHARE))


def _groups(dataset: Dataset, least_sites: int = 3) -> tuple[list[list[list[str]]], bool]:
    """Groups of units, a unit being the subjects that stay together; and whether the units are whole sites.

    Sites are groups of their own where each can be divided into ``parts``; the others are units of a last group, or its
    subjects are where there are fewer such sites than parts.
    """
    site_of: dict[str, str] = {}
    for case in dataset.cases:
        # A subject scanned at two sites stays whole, in the site where it came first.
        site_of.setdefault(case.subject, case.site)
    if not site_of:
        raise InputError(f"{_where(dataset)}: no subject is left to train on; choose another test site")
    by_site: dict[str, list[str]] = defaultdict(list)
    for subject, site in site_of.items():
        by_site[site].append(subject)
    groups = [[[subject] for subject in subjects] for _, subjects in sorted(by_site.items()) if len(subjects) >= _MIN_SUBJECTS]
    small = [subjects for _, subjects in sorted(by_site.items()) if len(subjects) < _MIN_SUBJECTS]
    whole_sites = len(small) >= least_sites and not groups
    rest = small if whole_sites else [[subject] for subjects in small for subject in subjects]
    return ([*groups, rest] if rest else groups), whole_sites


def _where(dataset: Dataset) -> str:
    return dataset.path or dataset.info.name
