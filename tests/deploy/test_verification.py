"""Engines and exported files held to the reference: agreement is counted, and a difference of one value is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medquant.deploy import export_runtimes
from medquant.deploy.engines import ENGINES
from medquant.deploy.engines.base import Engine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.self_test import small_program
from medquant.deploy.verification import compare_engines, compare_file, random_images, run_reference
from medquant.errors import EngineMismatchError, UsageError


def test_every_engine_here_is_equal_on_every_value() -> None:
    program = small_program()
    images = list(random_images(program, 2))
    found = compare_engines(program, run_reference(program, images))
    assert {each.name for each in found} == set(ENGINES) - {"reference"}
    voxels = sum(image[:, 0].size for image in images)
    for each in found:
        if each.verdict != "absent":
            assert (each.verdict, each.differing_values, each.differing_voxels) == ("equal", 0, 0)
            # Two outputs.
            assert (each.values, each.voxels) == (2 * voxels, voxels)


class _OneOff(ReferenceEngine):
    """Right but for one value of one image."""

    def run(self, image: Any) -> Any:
        output = super().run(image)
        if image.shape[0] == 2:
            output.flat[7] += 1
        return output


class _Refusing(Engine):
    info = ENGINES["torch"].info

    def __init__(self, program: Any) -> None:
        raise EngineMismatchError("enc: not with me")

    def run(self, image: Any) -> Any:
        raise NotImplementedError


def test_one_value_that_differs_is_found_and_a_refusal_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(ENGINES) - {"reference"}:
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setitem(ENGINES, "off", _OneOff)
    monkeypatch.setitem(ENGINES, "refusing", _Refusing)
    program = small_program()
    images = list(random_images(program, 2))
    off, refusing = compare_engines(program, run_reference(program, images))
    assert off.verdict == "differs"
    assert off.differing_values == sum(image.shape[0] == 2 for image in images) > 0
    assert (refusing.verdict, refusing.reason, refusing.values) == ("refused", "enc: not with me", 0)


def test_random_images_hold_ties_and_both_ends() -> None:
    program = small_program()
    read = program.format_of("input")
    levels = [image.astype(np.float64) * 2.0**read.exponent + read.zero_point for image in random_images(program, 8)]
    assert any(np.all(each % 1 == 0.5) for each in levels)
    assert min(each.min() for each in levels) < 0
    assert max(each.max() for each in levels) > read.highest
    assert all(length % 8 == 0 for each in levels for length in each.shape[2:])
    assert len({each.shape for each in levels}) > 3
    # The same every time.
    for first, second in zip(random_images(program, 8), random_images(program, 8), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_file_that_gives_something_else_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    expected = run_reference(program, random_images(program, 2))
    (tmp_path / "m.onnx").write_bytes(b"")
    right = {each.image.tobytes(): (each.values, each.mask) for each in expected}

    def opener(change: Any) -> Any:
        return lambda path: lambda image: change(*right[image.tobytes()])

    def runtime(name: str, change: Any, package: str = "numpy") -> export_runtimes.Runtime:
        return export_runtimes.Runtime(name, package, (".onnx",), opener(change))

    def refuse(values: Any, mask: Any) -> Any:
        raise RuntimeError("bad shape\nstack")

    runtimes = (
        runtime("same", lambda values, mask: (values, mask)),
        runtime("mask", lambda values, mask: (values, 1 - np.minimum(mask, 1))),
        runtime("size", lambda values, mask: (values[..., :-1], mask)),
        runtime("deaf", refuse),
        runtime("missing", lambda values, mask: (values, mask), "no_such_package"),
    )
    monkeypatch.setattr(export_runtimes, "RUNTIMES", runtimes)
    same, mask, size, deaf, missing = compare_file(tmp_path / "m.onnx", expected)
    assert (same.name, same.verdict) == ("m.onnx in same", "equal")
    assert (mask.verdict, mask.differing_values) == ("differs", 0)
    assert mask.differing_voxels > 0
    assert (size.verdict, size.differing_values) == ("differs", size.values)
    assert (deaf.verdict, deaf.reason) == ("differs", "does not take the model's images (bad shape)")
    assert (missing.verdict, missing.reason) == ("absent", "no_such_package is not installed")


def test_what_is_no_exported_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected an exported file, .onnx or .xml"):
        compare_file(tmp_path / "m.mq", [])
    with pytest.raises(UsageError, match="no such file"):
        compare_file(tmp_path / "m.onnx", [])
