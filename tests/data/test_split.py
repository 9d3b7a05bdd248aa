"""Splits. Expected: counts by hand from the stated proportions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medquant.data.content import content_sha256
from medquant.data.datasets import isbi_em
from medquant.data.datasets.phantom import make_phantom
from medquant.data.opening import open_dataset
from medquant.data.split import PARTS, Split, SplitRule, check_no_leak, make_split
from medquant.data.volume import Case, Dataset, DatasetInfo, Volume
from medquant.errors import CheckpointError, InputError


def _case(number: int, subject: str, site: str, slices: int = 2) -> Case:
    image = Volume(np.full((4, 4, slices), number, np.float32), np.eye(4))
    mask = Volume(np.zeros(image.shape, np.uint8), np.eye(4))
    return Case(id=f"case{number}", subject=subject, site=site, image=image, mask=mask, source=f"made {number}")


INFO = DatasetInfo("made", {0: "background", 1: "organ"}, ("organ",))


def _dataset(*cases: Case, info: DatasetInfo = INFO) -> Dataset:
    return Dataset(info=info, cases=cases, path=None, recognised="made", content_sha256=content_sha256(cases))


def _stack(count: int) -> Dataset:
    cases = [replace(_case(n, "", "", slices=1), id=f"slice-{n:02d}", subject=f"slice-{n:02d}") for n in range(count)]
    return _dataset(*cases, info=isbi_em.INFO)


def _sites(**subjects: int) -> Dataset:
    pairs = [(site, f"{site}-{n}") for site, count in subjects.items() for n in range(count)]
    return _dataset(*(_case(number, subject, site) for number, (site, subject) in enumerate(pairs)))


@pytest.mark.parametrize(("count", "sizes"), [(30, (20, 4, 6)), (15, (10, 2, 3)), (6, (4, 1, 1)), (7, (5, 1, 1)), (60, (40, 8, 12))])
def test_blocks(count: int, sizes: tuple[int, int, int]) -> None:
    split = make_split(_stack(count), SplitRule(5))
    assert tuple(len(ids) for ids in split.parts().values()) == sizes
    assert [*split.train, *split.validation, *split.test] == [f"slice-{n:02d}" for n in range(count)]
    assert "contiguous" in split.rule


def test_thirty_slices_as_stated() -> None:
    split = make_split(_stack(30))
    assert (split.train[0], split.train[-1]) == ("slice-00", "slice-19")
    assert (split.validation[0], split.validation[-1]) == ("slice-20", "slice-23")
    assert (split.test[0], split.test[-1]) == ("slice-24", "slice-29")
    assert make_split(_stack(30), SplitRule(1)) == split


def test_too_few_slices_or_subjects() -> None:
    with pytest.raises(InputError, match="found 5 slices, expected at least 6"):
        make_split(_stack(5))
    with pytest.raises(InputError, match="found 1 subjects, expected at least 2"):
        make_split(_sites(a=1))


def test_two_subjects_make_two_parts() -> None:
    for dataset in (_sites(a=2), _sites(a=1, b=1)):
        split = make_split(dataset)
        assert (split.train, split.validation, split.test) == (("case0",), (), ("case1",))
        assert "1 train, 0 validation, 1 test subjects" in split.rule


@pytest.mark.parametrize(("subjects", "sizes"), [(3, (1, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2)), (20, (12, 4, 4))])
def test_every_site_in_every_part(subjects: int, sizes: tuple[int, int, int]) -> None:
    dataset = _sites(a=subjects, b=subjects)
    split = make_split(dataset)
    site_of = {case.id: case.site for case in dataset.cases}
    for ids, size in zip(split.parts().values(), sizes, strict=True):
        assert sorted(site_of[case_id] for case_id in ids) == ["a"] * size + ["b"] * size


def test_small_sites_are_divided_together() -> None:
    split = make_split(_sites(a=1, b=1, c=1))
    assert [len(ids) for ids in split.parts().values()] == [1, 1, 1]
    split = make_split(_sites(a=5, b=2))
    assert [len(ids) for ids in split.parts().values()] == [5, 1, 1]


def test_phantom_and_seed() -> None:
    dataset = make_phantom(slices=1)
    first, again, other = make_split(dataset), make_split(dataset, SplitRule(0)), make_split(dataset, SplitRule(1))
    assert first == again
    assert first.test != other.test
    assert [len(ids) for ids in first.parts().values()] == [12, 4, 4]
    assert sorted(sum(first.parts().values(), ())) == sorted(case.id for case in dataset.cases)


def test_all_cases_of_a_subject_stay_together() -> None:
    cases = [_case(n, f"s{n // 3}", f"site{n % 2}") for n in range(30)]
    dataset = _dataset(*cases)
    part_of = {case_id: part for part, ids in make_split(dataset).parts().items() for case_id in ids}
    for subject in range(10):
        assert len({part_of[f"case{n}"] for n in range(3 * subject, 3 * subject + 3)}) == 1


def test_leaks_are_named() -> None:
    dataset = _dataset(_case(0, "s0", ""), _case(1, "s1", ""), _case(2, "s0", ""), _case(3, "s3", ""))
    with pytest.raises(InputError, match=r"the subject 's0' is in train \(case0\) and in test \(case2\)"):
        check_no_leak(dataset, Split(("case0",), ("case1",), ("case2",), "by hand"))
    with pytest.raises(InputError, match="names the case 'case9'"):
        check_no_leak(dataset, Split(("case9",), (), (), "by hand"))
    with pytest.raises(InputError, match="'case0' stands in train and in validation"):
        check_no_leak(dataset, Split(("case0",), ("case0",), (), "by hand"))
    check_no_leak(dataset, Split(("case0", "case2"), ("case1",), ("case3",), "by hand"))


def test_the_same_voxels_under_two_names_are_a_leak() -> None:
    twin = replace(_case(0, "s5", ""), id="case5")
    dataset = _dataset(_case(0, "s0", ""), _case(1, "s1", ""), twin)
    with pytest.raises(InputError, match=r"the same voxels is in train \(case0\) and in test \(case5\)"):
        check_no_leak(dataset, Split(("case0",), ("case1",), ("case5",), "by hand"))


def test_make_split_checks_too() -> None:
    cases = _stack(6).cases
    dataset = _dataset(*cases[:5], replace(cases[0], id="slice-05", subject="slice-05"), info=isbi_em.INFO)
    with pytest.raises(InputError, match="the same voxels"):
        make_split(dataset)


def test_json_round_trip_and_damage() -> None:
    split = make_split(_sites(a=5))
    stored = json.loads(json.dumps(split.to_json()))
    assert Split.from_json(stored) == split
    assert tuple(stored)[:3] == PARTS
    for damaged in ({}, {**stored, "train": "case1"}, {**stored, "test": [1]}, {**stored, "rule": None}, {**stored, "more": 1}):
        with pytest.raises(CheckpointError, match="stored split"):
            Split.from_json(damaged)


def test_the_real_stack(shared_data: Path) -> None:
    split = make_split(open_dataset(shared_data / "isbi_em"))
    assert [len(ids) for ids in split.parts().values()] == [20, 4, 6]


# --- whole sites, labelled cases --------------------------------------------------------------------------------------


def test_sites_too_small_to_divide_stay_whole() -> None:
    dataset = _sites(a=2, b=1, c=2, d=2, e=1)
    split = make_split(dataset)
    site_of = {case.id: case.site for case in dataset.cases}
    sites = [{site_of[case_id] for case_id in ids} for ids in split.parts().values()]
    # Of 5 sites one is watched and one is tested.
    assert [len(found) for found in sites] == [3, 1, 1]
    assert set.union(*sites) == set("abcde")
    assert "by whole sites" in split.rule


def test_two_small_sites_are_divided_by_subject() -> None:
    split = make_split(_sites(a=2, b=2))
    assert [len(ids) for ids in split.parts().values()] == [2, 1, 1]
    assert "by subject" in split.rule


def test_only_labelled_cases_are_placed() -> None:
    dataset = _sites(a=6)
    cases = [replace(case, mask=None) if number in (1, 4) else case for number, case in enumerate(dataset.cases)]
    split = make_split(_dataset(*cases))
    assert sorted(sum(split.parts().values(), ())) == ["case0", "case2", "case3", "case5"]
    with pytest.raises(InputError, match="found no case with a mask"):
        make_split(_dataset(*(replace(case, mask=None) for case in cases)))


def test_an_unlabelled_twin_of_a_case_is_no_leak() -> None:
    dataset = _sites(a=4)
    twin = replace(dataset.cases[0], id="twin", subject="twin", mask=None)
    assert "twin" not in sum(make_split(_dataset(*dataset.cases, twin)).parts().values(), ())


# --- a site held out --------------------------------------------------------------------------------------------------


def test_a_whole_site_is_held_out() -> None:
    dataset = _sites(a=5, b=4, c=10)
    split = make_split(dataset, SplitRule(test_site="b"))
    site_of = {case.id: case.site for case in dataset.cases}
    assert split.test == tuple(case.id for case in dataset.cases if case.site == "b")
    # Of 5 and of 10 subjects a fifth is watched.
    assert sorted(site_of[case_id] for case_id in split.validation) == ["a", "c", "c"]
    assert len(split.train) == 12
    assert "site b held out" in split.rule


def test_a_subject_scanned_at_the_held_out_site_too_is_tested_with_all_its_cases() -> None:
    cases = [_case(0, "both", "a"), _case(1, "both", "b"), *(_case(n, f"s{n}", "a") for n in range(2, 8)), _case(8, "s8", "b")]
    split = make_split(_dataset(*cases), SplitRule(test_site="b"))
    assert split.test == ("case0", "case1", "case8")


def test_a_site_that_cannot_be_held_out_is_named() -> None:
    with pytest.raises(InputError, match=r"data\.test_site: unknown site 'd'.*known: a, b"):
        make_split(_sites(a=3, b=3), SplitRule(test_site="d"))
    with pytest.raises(InputError, match=r"data\.test_site: it has no sites"):
        make_split(_dataset(*(_case(n, f"s{n}", "") for n in range(4))), SplitRule(test_site="a"))
    with pytest.raises(InputError, match="no subject is left to train on"):
        make_split(_sites(a=4), SplitRule(test_site="a"))
    with pytest.raises(InputError, match=r"slices of one stack have no site; use data\.fold"):
        make_split(_stack(30), SplitRule(test_site="a"))


def test_one_other_subject_is_trained_on() -> None:
    split = make_split(_sites(a=3, b=1), SplitRule(test_site="a"))
    assert (len(split.train), len(split.validation), len(split.test)) == (1, 0, 3)


# --- folds ------------------------------------------------------------------------------------------------------------


def _numbered(*absent: int, last: int = 82) -> Dataset:
    cases = [replace(_case(n, f"PANCREAS_{n:04d}", ""), id=f"PANCREAS_{n:04d}") for n in range(1, last + 1) if n not in absent]
    return _dataset(*cases, info=replace(INFO, numbered=last))


@pytest.mark.parametrize("fold", range(4))
def test_folds_of_the_pancreas_are_the_published_ones(fold: int) -> None:
    # 1-20, 21-40, 41-61, 62-82, as OrganSegC2F has them; 25 and 70 were taken out of the collection.
    first, last = [(1, 20), (21, 40), (41, 61), (62, 82)][fold]
    split = make_split(_numbered(25, 70), SplitRule(fold=fold))
    expected = [f"PANCREAS_{n:04d}" for n in range(first, last + 1) if n not in (25, 70)]
    assert list(split.test) == expected
    assert len(expected) == [20, 19, 21, 20][fold]
    watched = round(0.15 * (80 - len(expected)))
    assert (len(split.validation), len(split.train)) == (watched, 80 - len(expected) - watched)
    assert f"numbers {first} to {last}" in split.rule


@pytest.mark.parametrize(("folds", "sizes"), [(2, [41, 41]), (3, [27, 27, 28]), (5, [16, 16, 16, 17, 17]), (4, [20, 20, 21, 21])])
def test_the_larger_folds_come_last(folds: int, sizes: list[int]) -> None:
    tests = [make_split(_numbered(), SplitRule(fold=fold, folds=folds)).test for fold in range(folds)]
    assert [len(test) for test in tests] == sizes
    assert list(sum(tests, ())) == [f"PANCREAS_{n:04d}" for n in range(1, 83)]


def test_folds_without_numbers_are_neighbours() -> None:
    dataset = _sites(a=5, b=5)
    tests = [make_split(dataset, SplitRule(fold=fold, folds=3)).test for fold in range(3)]
    assert [len(test) for test in tests] == [3, 3, 4]
    assert list(sum(tests, ())) == [case.id for case in dataset.cases]


def test_folds_without_anyone_are_named() -> None:
    with pytest.raises(InputError, match=r"fold 0 of 8 .*holds 0 of 3 subjects; choose another fold or fewer folds"):
        make_split(_sites(a=3), SplitRule(fold=0, folds=8))
    with pytest.raises(InputError, match="holds 2 of 2 subjects"):
        make_split(_dataset(*_numbered().cases[:2], info=replace(INFO, numbered=82)), SplitRule(fold=0))
    with pytest.raises(InputError, match="6 slices cannot be cut into 8 folds"):
        make_split(_stack(6), SplitRule(fold=0, folds=8))


@pytest.mark.parametrize(("count", "folds"), [(30, 5), (30, 4), (30, 15), (7, 3), (6, 2), (6, 5)])
def test_folds_of_a_stack_are_contiguous(count: int, folds: int) -> None:
    tested: list[int] = []
    for fold in range(folds):
        split = make_split(_stack(count), SplitRule(fold=fold, folds=folds))
        numbers = {part: [int(case_id[-2:]) for case_id in ids] for part, ids in split.parts().items()}
        for part in ("validation", "test"):
            assert numbers[part] == list(range(numbers[part][0], numbers[part][-1] + 1))
        assert sorted(number for part in numbers.values() for number in part) == list(range(count))
        # Watched are neighbours of the tested slices.
        assert numbers["validation"][-1] + 1 == numbers["test"][0] or numbers["test"][-1] + 1 == numbers["validation"][0]
        assert len(numbers["validation"]) == max(1, round(count * 4 / 30))
        assert f"fold {fold} of {folds}" in split.rule
        tested += numbers["test"]
    assert tested == list(range(count))


# --- whatever the structure -------------------------------------------------------------------------------------------

# Subject and site of each case, few of both so that they meet often; some cases without a mask.
STRUCTURES = st.lists(st.tuples(st.integers(0, 7), st.sampled_from("abcd"), st.integers(0, 4)), min_size=1, max_size=24)
RULES = st.builds(SplitRule, st.integers(0, 5)) | st.builds(
    lambda seed, fold, folds: SplitRule(seed, fold=fold % folds, folds=folds), st.integers(0, 5), st.integers(0, 9), st.integers(2, 10)
)
RULES |= st.builds(lambda seed, site: SplitRule(seed, test_site=site), st.integers(0, 5), st.sampled_from("abcd"))


@given(STRUCTURES, RULES)
def test_no_subject_is_in_two_parts_and_no_labelled_case_is_lost(structure: list[tuple[int, str, int]], rule: SplitRule) -> None:
    cases = [_case(n, f"s{subject}", site) for n, (subject, site, _) in enumerate(structure)]
    cases = [case if labelled else replace(case, mask=None) for case, (_, _, labelled) in zip(cases, structure, strict=True)]
    dataset = _dataset(*cases)
    try:
        split = make_split(dataset, rule)
    except InputError:
        return  # too few subjects, no such site, an empty fold: tests of their own say when
    subject_of = {case.id: case.subject for case in cases}
    subjects = [{subject_of[case_id] for case_id in ids} for ids in split.parts().values()]
    assert sum(len(found) for found in subjects) == len(set.union(*subjects))
    assert sorted(sum(split.parts().values(), ())) == sorted(case.id for case in cases if case.mask is not None)
    assert split.train
    assert split.test
    for ids in split.parts().values():
        assert list(ids) == [case.id for case in cases if case.id in ids]
    assert make_split(dataset, rule) == split
    if rule.test_site is not None:
        site_of = {case.id: case.site for case in cases}
        assert all(site_of[case_id] != rule.test_site for case_id in (*split.train, *split.validation))
