"""The table over folds: figures counted by hand, and documents that must not be joined."""

from __future__ import annotations

import json
import math

import pytest

from medquant.errors import InputError
from medquant.evaluate.fold_summary import fold_table

Document = dict[str, object]


def document(**dice: float | None) -> Document:
    """An evaluation of one class, case id → Dice, among other entries that a real one has."""
    cases = [{"id": case, "dice": {"pancreas": value}, "hd95": 3.5, "empty": []} for case, value in dice.items()]
    return {"schema": 1, "split": "test", "cases": cases, "dice": {"pancreas": {"mean": 0.5}}}


def test_by_hand() -> None:
    # 0.8, 0.6 | 0.7 | 0.9, 0.5, 0.7: mean 4.2 / 6; squares of differences 0.01 + 0.01 + 0 + 0.04 + 0.04 + 0 over 5
    table = fold_table([document(p01=0.8, p02=0.6), document(p03=0.7), document(p04=0.9, p05=0.5, p06=0.7)])
    assert table["dice"] == {"pancreas": {"mean": 0.7, "std": round(math.sqrt(0.1 / 5), 6), "min": 0.5, "max": 0.9, "cases": 6, "empty": 0}}
    assert table["folds"] == [
        {"name": "fold 1", "cases": 2, "dice": {"pancreas": 0.7}},
        {"name": "fold 2", "cases": 1, "dice": {"pancreas": 0.7}},
        {"name": "fold 3", "cases": 3, "dice": {"pancreas": 0.7}},
    ]
    assert table["schema"] == 1
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_the_mean_is_over_cases_not_over_folds() -> None:
    # mean of the fold means would be 0.5
    table = fold_table([document(a=1.0, b=1.0, c=1.0), document(d=0.0)], names=["one/eval.json", "two/eval.json"])
    assert table["dice"]["pancreas"]["mean"] == 0.75  # type: ignore[index]
    assert [fold["name"] for fold in table["folds"]] == ["one/eval.json", "two/eval.json"]  # type: ignore[attr-defined]


def test_cases_with_nothing_to_score_are_counted_and_left_out() -> None:
    table = fold_table([document(a=0.4, b=None), document(c=None)])
    assert table["dice"] == {"pancreas": {"mean": 0.4, "std": None, "min": 0.4, "max": 0.4, "cases": 1, "empty": 2}}
    assert [fold["dice"] for fold in table["folds"]] == [{"pancreas": 0.4}, {"pancreas": None}]  # type: ignore[attr-defined]
    nothing = fold_table([document(a=None)])["dice"]
    assert nothing == {"pancreas": {"mean": None, "std": None, "min": None, "max": None, "cases": 0, "empty": 1}}


def test_classes_are_kept_apart() -> None:
    first = {"cases": [{"id": "a", "dice": {"gray": 0.2, "cord": 1}}]}
    second = {"cases": [{"id": "b", "dice": {"cord": 0, "gray": 0.6}}]}
    dice = fold_table([first, second])["dice"]
    assert list(dice) == ["gray", "cord"]  # type: ignore[call-overload]
    assert (dice["gray"]["mean"], dice["cord"]["mean"], dice["cord"]["max"]) == (0.4, 0.5, 1.0)  # type: ignore[index]


def test_a_case_tested_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"case p02 is tested by fold 1 and by fold 3"):
        fold_table([document(p01=0.8, p02=0.6), document(p03=0.7), document(p02=0.6)])
    twice = document(p01=0.8)
    twice["cases"] = [*twice["cases"], *twice["cases"]]  # type: ignore[misc]
    with pytest.raises(InputError, match="fold 1: case p01 stands twice"):
        fold_table([twice])


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "0 documents"),
        ([{}], "fold 1: found no list of cases"),
        ([document(a=0.5), {"cases": []}], "fold 2: found no list of cases"),
        ([{"cases": [{"id": "a"}]}], "entry 0 of cases"),
        ([{"cases": ["a"]}], "entry 0 of cases"),
        ([{"cases": [{"id": "a", "dice": {}}]}], "entry 0 of cases"),
        ([{"cases": [{"id": 7, "dice": {"x": 0.5}}]}], "entry 0 of cases"),
        ([{"cases": [{"id": "a", "dice": {"x": "0.5"}}]}], "case a: found the Dice '0.5'"),
        ([{"cases": [{"id": "a", "dice": {"x": True}}]}], "found the Dice True"),
        ([{"cases": [{"id": "a", "dice": {"x": 84.2}}]}], r"found the Dice 84\.2, expected a number from 0 to 1"),
        ([{"cases": [{"id": "a", "dice": {"x": math.nan}}]}], "found the Dice nan"),
        ([document(a=0.5), {"cases": [{"id": "b", "dice": {"liver": 0.5}}]}], "fold 2: case b scores liver, fold 1 scores pancreas"),
    ],
)
def test_documents_that_cannot_be_joined_are_refused(documents: list[Document], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fold_table(documents)


def test_every_document_needs_its_name() -> None:
    with pytest.raises(InputError, match="1 documents and 2 names"):
        fold_table([document(a=0.5)], names=["one", "two"])
