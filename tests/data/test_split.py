"""Splits. Expected: counts by hand from the stated proportions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from medquant.data.content import content_sha256
from medquant.data.datasets import isbi_em
from medquant.data.datasets.phantom import make_phantom
from medquant.data.split import PARTS, Split, check_no_leak, make_split
from medquant.data.volume import Case, Dataset, Volume
from medquant.errors import CheckpointError, InputError


def _case(number: int, subject: str, site: str, slices: int = 2) -> Case:
    image = Volume(np.full((4, 4, slices), number, np.float32), np.eye(4))
    return Case(id=f"case{number}", subject=subject, site=site, image=image, mask=None, source=f"made {number}")


def _dataset(*cases: Case) -> Dataset:
    return Dataset(info=isbi_em.INFO, cases=cases, path=None, recognised="made", content_sha256=content_sha256(cases))


def _stack(count: int) -> Dataset:
    cases = [replace(_case(n, "", "", slices=1), id=f"slice-{n:02d}", subject=f"slice-{n:02d}") for n in range(count)]
    return _dataset(*cases)


def _sites(**subjects: int) -> Dataset:
    pairs = [(site, f"{site}-{n}") for site, count in subjects.items() for n in range(count)]
    return _dataset(*(_case(number, subject, site) for number, (site, subject) in enumerate(pairs)))


@pytest.mark.parametrize(("count", "sizes"), [(30, (20, 4, 6)), (15, (10, 2, 3)), (6, (4, 1, 1)), (7, (5, 1, 1)), (60, (40, 8, 12))])
def test_blocks(count: int, sizes: tuple[int, int, int]) -> None:
    split = make_split(_stack(count), seed=5)
    assert tuple(len(ids) for ids in split.parts().values()) == sizes
    assert [*split.train, *split.validation, *split.test] == [f"slice-{n:02d}" for n in range(count)]
    assert "contiguous" in split.rule


def test_thirty_slices_as_stated() -> None:
    split = make_split(_stack(30))
    assert (split.train[0], split.train[-1]) == ("slice-00", "slice-19")
    assert (split.validation[0], split.validation[-1]) == ("slice-20", "slice-23")
    assert (split.test[0], split.test[-1]) == ("slice-24", "slice-29")
    assert make_split(_stack(30), seed=1) == split


def test_too_few_slices_or_subjects() -> None:
    with pytest.raises(InputError, match="found 5 slices, expected at least 6"):
        make_split(_stack(5))
    with pytest.raises(InputError, match="found 2 subjects, expected at least 3"):
        make_split(_sites(a=2))


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
    first, again, other = make_split(dataset, 0), make_split(dataset, 0), make_split(dataset, 1)
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
    dataset = _dataset(*cases[:5], replace(cases[0], id="slice-05", subject="slice-05"))
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


def test_the_real_stack(shared_data: object) -> None:
    split = make_split(isbi_em.load(shared_data / "isbi_em"))  # type: ignore[operator]
    assert [len(ids) for ids in split.parts().values()] == [20, 4, 6]
