"""The transforms that the comparison of tiles counts with are those of Winograd's convolution."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.native_fewer_bits import AXES, gain, operands


@pytest.mark.parametrize("outputs", AXES)
def test_products_of_the_transforms_determine_the_convolution(outputs: int) -> None:
    generator = np.random.default_rng(outputs)
    inputs, weights = np.array(AXES[outputs].inputs), np.array(AXES[outputs].weights)
    d = generator.integers(-9, 10, (200, outputs + 2)).astype(float)
    g = generator.integers(-9, 10, (200, 3)).astype(float)
    products = (d @ inputs.T) * (g @ weights.T)
    expected = np.stack([sum(d[:, m + k] * g[:, k] for k in range(3)) for m in range(outputs)], axis=1)
    # Some fixed matrix A makes the outputs of the products, found on half of the samples and true on the others.
    a = np.linalg.lstsq(products[:100], expected[:100], rcond=None)[0]
    assert products.shape[1] == outputs + 2
    assert np.allclose(products[100:] @ a, expected[100:], atol=1e-6)


def test_numbers_of_the_tile_that_is_used() -> None:
    # By hand: nine weights of -8 sum to -72; four inputs of 63 span from 0 to 252, or -126 to 126.
    assert operands(2, 2, 4, 6) == (72, 252)
    assert gain(2, 2) == 2.25
    assert operands(4, 4, 4, 6)[1] == 100 * 63
