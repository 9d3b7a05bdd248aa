"""What happens to voxels that are no number: one rule for every reader.

A single NaN that is passed on makes a network's whole output NaN, which then reads as an empty mask. So such voxels are
refused, or, where the user asked for it, set to 0 and counted aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medquant.errors import InputError, UsageError, unknown_name

BadVoxelRule = Literal["refuse", "zero"]
"""``refuse``: NaN or Inf is an error. ``zero``: they become 0, and how many is reported; an image of nothing else is an error."""

Notify = Callable[[str], None]
"""Takes one line of text for the user; the command line prints it."""


@dataclass(frozen=True)
class BadVoxels:
    """How many voxels of an image are no finite number.

    Args:
        nan: count of NaN.
        infinite: count of +Inf and -Inf.
        total: count of all voxels, good ones included.
    """

    nan: int
    infinite: int
    total: int

    @property
    def count(self) -> int:
        """NaN and Inf together."""
        return self.nan + self.infinite

    def describe(self) -> str:
        """For example ``3 NaN and 1 infinite of 64 voxels``."""
        kinds = [f"{count} {name}" for count, name in ((self.nan, "NaN"), (self.infinite, "infinite")) if count]
        return f"{' and '.join(kinds) or 'no NaN or infinite'} of {self.total} voxels"


def count_bad_voxels(array: NDArray[np.generic]) -> BadVoxels:
    """Count NaN and Inf in an array of any shape; whole-number types have none and are not looked at."""
    nan = infinite = 0
    if array.dtype.kind == "f":
        for part in _parts(array):
            nan += int(np.count_nonzero(np.isnan(part)))
            infinite += int(np.count_nonzero(np.isinf(part)))
    return BadVoxels(nan=nan, infinite=infinite, total=array.size)


def apply_bad_voxel_rule(
    source: Path | str, array: NDArray[np.generic], rule: BadVoxelRule, notify: Notify | None = None
) -> NDArray[np.generic]:
    """Return ``array`` with finite values only, of the same shape and type.

    Args:
        source: what the voxels were read from, for messages.
        array: any shape. Under the rule ``zero`` it is repaired in place where it may be written to.
        rule: see :data:`BadVoxelRule`.
        notify: told how many voxels were set to 0; not called where there were none.

    Raises:
        InputError: NaN or Inf under the rule ``refuse``; under ``zero``, not one finite voxel (the repaired image would be empty).
        UsageError: the rule is unknown.
    """
    if rule not in get_args(BadVoxelRule):
        raise UsageError(unknown_name("bad-voxel rule", rule, get_args(BadVoxelRule)))
    found = count_bad_voxels(array)
    if not found.count:
        return array
    if rule == "refuse" or found.count == found.total:
        refuse_bad_voxels(source, found)
    repaired = array if array.flags.writeable else array.copy(order="K")
    for part in _parts(repaired):
        part[~np.isfinite(part)] = 0
    if notify is not None:
        notify(f"{source}: {found.describe()} set to 0, as asked")
    return repaired


def refuse_bad_voxels(source: Path | str, found: BadVoxels) -> None:
    """The rule ``refuse``.

    Raises:
        InputError: there is a bad voxel.
    """
    if found.count and found.count == found.total:
        raise InputError(f"{source}: found {found.describe()}, expected an image; nothing is left to repair, so make the image again")
    if found.count:
        raise InputError(f"{source}: found {found.describe()}, expected finite numbers; replace these voxels, or export the image again")


def _parts(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Views that make up the array, one a slice, so that the flags of a whole scan are never in memory at once."""
    if array.ndim < 2:
        yield array
        return
    for index in range(array.shape[-1]):
        yield array[..., index]
