"""The self-test of engines: those that are here agree with the reference, a wrong one is called wrong, a missing one missing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medquant.deploy import self_test
from medquant.deploy.engines import ENGINES
from medquant.deploy.engines.base import EngineInfo
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.self_test import check_engines, small_program


class _WrongEngine(ReferenceEngine):
    info = EngineInfo(name="wrong", summary="off by one in one place of each image", exact=True, priority=0)

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        output = super().run(image)
        output[:, 0, 0, 0] += 1
        return output


class _MissingEngine(ReferenceEngine):
    info = EngineInfo(name="missing", summary="for another machine", exact=True, priority=0)

    @classmethod
    def unavailable(cls) -> str | None:
        return "this machine has no abacus"


def test_every_engine_that_is_here_is_exact() -> None:
    results = {result.name: result for result in check_engines()}
    assert results.keys() == ENGINES.keys() >= {"reference", "torch"}
    for name, result in results.items():
        assert result.works is (ENGINES[name].unavailable() is None)
        assert result.differing == 0
    assert results["torch"].exact
    assert results["torch"].verdict == f"works, {ENGINES['torch'].info.summary}"


def test_a_wrong_engine_is_counted_and_a_missing_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "ENGINES", {"wrong": _WrongEngine, "missing": _MissingEngine})
    wrong, missing = check_engines()
    # Two images of two outputs with 32×32 pixels each; one value of each image is off.
    assert (wrong.works, wrong.exact, wrong.differing) == (True, False, 2)
    assert wrong.verdict == "WRONG: 2 of 4096 values differ from the reference"
    assert (missing.works, missing.exact, missing.verdict) == (False, False, "not here: this machine has no abacus")


def test_the_program_is_fixed_and_uses_all_its_range() -> None:
    first, second = small_program(), small_program()
    image = np.random.default_rng(3).integers(0, 256, (1, 1, 32, 32)).astype(np.uint8)
    outputs = ReferenceEngine(first).run(image)
    np.testing.assert_array_equal(outputs, ReferenceEngine(second).run(image))
    assert [type(node).__name__ for node in first] == [
        *("ImageNode", "ConvolutionNode", "MaxPoolNode", "ConvolutionNode", "UpsampleNode", "ConcatNode", "ConvolutionNode")
    ]
    weights = np.concatenate([node.weight.ravel() for node in first.convolutions])
    assert (weights.min(), weights.max()) == (-8, 7)
    assert len(np.unique(outputs)) > 500
