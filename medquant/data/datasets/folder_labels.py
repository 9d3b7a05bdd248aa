"""What the ``labels`` of a ``dataset.json`` say: classes of the masks, and regions that join some of them.

Two ways of writing them are in use. The Decathlon names the class of a number, ``{"0": "background", "1": "heart"}``; nnU-Net
gives the number of a class, or the numbers of a region, ``{"background": 0, "whole tumor": [1, 2, 3], "enhancing": 3}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medquant.data.datasets.dataset_json import FILE_NAME, check_name
from medquant.errors import InputError

BACKGROUND = 0
IGNORE = "ignore"
"""nnU-Net's name for voxels nobody labelled."""

_HIGHEST_CLASS = 255


@dataclass(frozen=True)
class Labels:
    """Classes and regions of a dataset folder.

    Args:
        classes: class number → name, numbered from 0 without gaps; 0 is background.
        scored: names of classes and regions that are scored, in the order of the file.
        regions: name → class numbers, of two or more classes.
    """

    classes: Mapping[int, str]
    scored: tuple[str, ...]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """The class numbers as a message words them."""
        return f"0 to {max(self.classes)} (the labels of {FILE_NAME})"


def read_labels(folder: Path, stored: Mapping[str, str | int | list[int]], regions_class_order: Sequence[int] | None = None) -> Labels:
    """Make sense of ``labels``.

    A number that is named only as part of a region gets the name ``label_N``; regions are scored, such numbers are not, as
    nnU-Net does it.

    Raises:
        InputError: the two ways of writing are mixed; a number or name stands twice; numbers do not run from 0 without gaps to
            at most 255; there is no class beside background; there is an ``ignore`` label; or the regions do not fit their order.
    """
    numbers: dict[str, tuple[int, ...]]
    if all(isinstance(value, str) for value in stored.values()):
        numbers = {check_name(folder, "label", str(name)): (_number(folder, key),) for key, name in stored.items()}
        if len(numbers) < len(stored):
            raise _mistake(folder, "two numbers of labels have the same name, expected one each")
    elif not any(isinstance(value, str) for value in stored.values()):
        numbers = {check_name(folder, "label", key): _members(folder, key, value) for key, value in stored.items()}
    else:
        raise _mistake(folder, "labels mix number → name and name → number, expected one way throughout")
    if any(name.lower() == IGNORE for name in numbers):
        raise _mistake(folder, "there is an 'ignore' label, which medquant does not train with, expected every voxel to have its class")
    return _joined(folder, numbers, regions_class_order)


def _joined(folder: Path, numbers: Mapping[str, tuple[int, ...]], order: Sequence[int] | None) -> Labels:
    singles = [(name, members[0]) for name, members in numbers.items() if len(members) == 1]
    classes = {number: name for name, number in singles}
    if len(classes) < len(singles):
        raise _mistake(folder, "two names of labels have the same number, expected one each")
    regions = {name: members for name, members in numbers.items() if len(members) > 1}
    for members in regions.values():
        for number in members:
            classes.setdefault(number, f"label_{number}")
    if BACKGROUND not in classes or any(BACKGROUND in members for members in regions.values()):
        raise _mistake(folder, "the number 0 must be background and part of no region")
    if len(classes) < 2 or set(classes) != set(range(len(classes))):
        raise _mistake(folder, f"found the label numbers {_listed(classes)}, expected 0, 1 and on without gaps; renumber labels and masks")
    if len(set(classes.values()) | set(regions)) < len(classes) + len(regions):
        raise _mistake(folder, "a label is called label_N, the name of a class that is only named within a region; rename it")
    scored = tuple(name for name, members in numbers.items() if members != (BACKGROUND,))
    if regions:
        _check_order(folder, order, len(scored), classes)
    return Labels(classes=dict(sorted(classes.items())), scored=scored, regions=regions)


def _check_order(folder: Path, order: Sequence[int] | None, regions: int, classes: Mapping[int, str]) -> None:
    # medquant predicts the classes themselves and does not need the order; a wrong one shows that the labels are not those meant.
    if order is not None and (len(order) != regions or any(number not in classes or number == BACKGROUND for number in order)):
        raise _mistake(folder, f"regions_class_order must hold one label number for each of the {regions} labels beside background")


def _members(folder: Path, key: str, value: object) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    members = tuple(number for number in found if isinstance(number, int) and 0 <= number <= _HIGHEST_CLASS)
    if not members or len(members) != len(found) or len(set(members)) != len(members):
        raise _mistake(folder, f"the label {key!r} must have one number, or a list of different numbers, from 0 to {_HIGHEST_CLASS}")
    return members


def _number(folder: Path, key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 3 and int(key) <= _HIGHEST_CLASS and str(int(key)) == key):
        raise _mistake(folder, f"labels of the form number → name must be numbered '0' to '{_HIGHEST_CLASS}'")
    return int(key)


def _mistake(folder: Path, what: str) -> InputError:
    return InputError(f"{folder / FILE_NAME}: {what}; correct labels in {FILE_NAME}")


def _listed(numbers: Mapping[int, str]) -> str:
    shown = sorted(numbers)[:8]
    return ", ".join(map(str, shown)) + (" .." if len(numbers) > len(shown) else "")
