"""Normalisation. Expected: closed forms, NumPy's own mean and deviation, and digests that may never change."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medquant.data.normalise import Normalisation
from medquant.errors import CheckpointError, ConfigError, InputError

RULES = [Normalisation("zscore_slice"), Normalisation("zscore_volume"), Normalisation("range", -100.0, 240.0)]


def _image() -> np.ndarray:
    return np.random.default_rng(0).normal(300.0, 40.0, (13, 7, 3)).astype(np.float32)


def test_by_hand() -> None:
    # Values 1, 3: mean 2, deviation 1. Values 0, 10: mean 5, deviation 5.
    image = np.stack([[[1.0], [3.0]], [[0.0], [10.0]]], axis=2).reshape(2, 1, 2).astype(np.float32)
    assert image[:, 0, 0].tolist() == [1.0, 3.0]
    np.testing.assert_array_equal(Normalisation("zscore_slice").apply(image)[:, 0, :], [[-1.0, -1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(Normalisation("range", 1.0, 5.0).apply(image)[:, 0, :], [[0.0, 0.0], [0.5, 1.0]])
    deviation = math.sqrt((2.5**2 + 0.5**2 + 3.5**2 + 6.5**2) / 4)
    expected = np.array([[-2.5, -3.5], [-0.5, 6.5]]) / deviation
    np.testing.assert_allclose(Normalisation("zscore_volume").apply(image)[:, 0, :], expected, rtol=1e-7)


@given(arrays(np.float32, (5, 3, 2), elements=st.floats(-1e4, 1e4, width=32)))
def test_against_numpy(image: np.ndarray) -> None:
    result = Normalisation("zscore_slice").apply(image)
    for k in range(2):
        plane = image[:, :, k].astype(np.float64)
        if plane.min() == plane.max():
            assert not result[:, :, k].any()
        elif plane.std() > 1e-3:
            np.testing.assert_allclose(result[:, :, k], (plane - plane.mean()) / plane.std(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_layout_byte_order_and_repetition_do_not_change_a_bit(rule: Normalisation) -> None:
    image = _image()
    expected = rule.apply(image).tobytes()
    wide = np.zeros((26, 7, 6), np.float32)
    wide[::2, :, ::2] = image
    for other in (image.copy(order="F"), image.astype(">f4"), image.astype(np.float64), wide[::2, :, ::2]):
        assert rule.apply(other).tobytes() == expected
    assert rule.apply(image).tobytes() == expected


@pytest.mark.parametrize(
    ("rule", "digest"),
    [
        (RULES[0], "520b24f4ba5582d4"),
        (RULES[1], "97a40fc381c5bbe4"),
        (RULES[2], "5683faa82762694e"),
    ],
    ids=["zscore_slice", "zscore_volume", "range"],
)
def test_bits_are_those_of_every_earlier_version(rule: Normalisation, digest: str) -> None:
    # Model files rely on these bits. The image is made of integers only, so that it is the same everywhere.
    image = ((np.arange(31 * 17 * 3, dtype=np.int64) * 7919) % 1009).reshape(31, 17, 3)
    assert hashlib.sha256(rule.apply(image).astype("<f4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("kind", ["zscore_slice", "zscore_volume"])
@pytest.mark.parametrize("value", [0.1, 1e30, -7.0])
def test_constant_image_gives_zeros(kind: str, value: float) -> None:
    result = Normalisation(kind).apply(np.full((33, 31, 2), value, np.float32))  # type: ignore[arg-type]
    assert result.dtype == np.float32
    assert not result.any()


def test_input_is_left_alone_and_result_is_float32() -> None:
    image = _image().astype(np.float64)
    before = image.copy()
    for rule in RULES:
        assert rule.apply(image).dtype == np.float32
        assert rule.apply(image).shape == image.shape
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_refuses_not_finite(rule: Normalisation, bad: float) -> None:
    image = _image()
    image[1, 2, 0] = bad
    with pytest.raises(InputError, match="1 NaN or Inf"):
        rule.apply(image)


def test_refuses_other_shapes() -> None:
    for shape in ((4, 4), (0, 4, 4)):
        with pytest.raises(InputError, match="three axes"):
            RULES[0].apply(np.zeros(shape, np.float32))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_json_round_trip(rule: Normalisation) -> None:
    assert Normalisation.from_json(json.loads(json.dumps(rule.to_json()))) == rule


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": 3},
        {"kind": "zscore"},
        {"kind": "zscore_slice", "low": 0.0},
        {"kind": "range", "low": 0.0},
        {"kind": "range", "low": "0", "high": 1.0},
        {"kind": "range", "low": True, "high": 2.0},
        {"kind": "range", "low": 0.0, "high": math.nan},
        {"kind": "zscore_slice", "more": 1},
    ],
)
def test_damaged_json_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="stored normalisation"):
        Normalisation.from_json(data)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'zscore_slice'"):
        Normalisation("zscore_slices")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"low=2.0, high=1.0"):
        Normalisation("range", 2.0, 1.0)
    with pytest.raises(ConfigError, match="takes no low"):
        Normalisation("zscore_slice", low=0.0)
