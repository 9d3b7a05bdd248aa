"""The rule for voxels that are no number. Expected: counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medquant.data.voxel_rules import apply_bad_voxel_rule, count_bad_voxels
from medquant.errors import UsageError

NAN, INF = float("nan"), float("inf")


def test_the_rule_itself() -> None:
    values = np.array([1, NAN, -INF, INF, 2])
    assert count_bad_voxels(values).describe() == "1 NaN and 2 infinite of 5 voxels"
    whole = np.arange(4)
    assert apply_bad_voxel_rule("x", whole, "refuse") is whole
    values.flags.writeable = False
    np.testing.assert_array_equal(apply_bad_voxel_rule("x", values, "zero"), [1, 0, 0, 0, 2])
    assert np.isnan(values[1])
    with pytest.raises(UsageError, match=r"unknown bad-voxel rule 'zeros' .*did you mean 'zero'"):
        apply_bad_voxel_rule("x", whole, "zeros")  # type: ignore[arg-type]
