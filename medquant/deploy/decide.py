"""The two ends of a program: from a normalised float image to integers, and from output integers to a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medquant.quant.formats import TensorFormat
from medquant.quant.program import IntegerProgram


def quantize_image(image: NDArray[np.float32], image_format: TensorFormat) -> NDArray[np.uint8]:
    """``clamp(round_half_even(x * 2**exponent) + zero_point)``, any shape, to uint8."""
    rounded = np.rint(image.astype(np.float32) * np.float32(2.0**image_format.exponent)) + image_format.zero_point
    quantized: NDArray[np.uint8] = np.clip(rounded, 0, image_format.highest).astype(np.uint8)
    return quantized


def decide(output: NDArray[np.int32], program: IntegerProgram) -> NDArray[np.uint8]:
    """Class numbers from output integers, (N, outputs, *S) → (N, *S): argmax, or for one output whether it is above real zero.

    Channels of different exponents are brought to one grid first, in integers. Equal values go to the lower class. Working
    memory does not grow with the number of classes.
    """
    outputs = output.shape[1]
    mask: NDArray[np.uint8]
    if outputs == 1:
        mask = (output[:, 0] > _zero_point(program)).astype(np.uint8)
        return mask
    # Values of a network that ends in a format have one zero point and one exponent: neither changes which is largest.
    finest = max(program.output_exponents)
    mixed = len(set(program.output_exponents)) > 1
    mask = np.zeros((output.shape[0], *output.shape[2:]), dtype=np.uint8)
    best = _on_grid(output[:, 0], finest - program.output_exponents[0] if mixed else None)
    for number in range(1, outputs):
        values = _on_grid(output[:, number], finest - program.output_exponents[number] if mixed else None)
        larger = values > best
        mask[larger] = number
        np.copyto(best, values, where=larger)
    return mask


def real_outputs(output: NDArray[np.int32], program: IntegerProgram) -> NDArray[np.float32]:
    """The real numbers output integers stand for, (N, outputs, *S); comparing them with 0 decides as :func:`decide` does."""
    scales = np.array([2.0**-exponent for exponent in program.output_exponents])
    values = (output.astype(np.int64) - _zero_point(program)) * scales.reshape(1, -1, *[1] * (output.ndim - 2))
    return np.asarray(values, dtype=np.float32)


def _on_grid(values: NDArray[np.int32], left: int | None) -> NDArray[np.int32] | NDArray[np.int64]:
    """A copy, shifted left by so many bits where there are several grids; 32 bits may not hold what is shifted."""
    return values.copy() if left is None else values.astype(np.int64) << left


def _zero_point(program: IntegerProgram) -> int:
    last = program.nodes[-1]
    return last.output.zero_point if last.output is not None else 0
