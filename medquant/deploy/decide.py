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


def decide(output: NDArray[np.int64], program: IntegerProgram) -> NDArray[np.uint8]:
    """Class numbers from output integers, (N, outputs, *S) → (N, *S): argmax, or for one output whether it is above real zero.

    Channels of different exponents are brought to one grid first, in integers. Equal values go to the lower class.
    """
    values = output - _zero_point(program)
    mask: NDArray[np.uint8]
    if values.shape[1] == 1:
        mask = (values[:, 0] > 0).astype(np.uint8)
        return mask
    if len(set(program.output_exponents)) > 1:
        finest = max(program.output_exponents)
        shifts = np.array([finest - exponent for exponent in program.output_exponents], dtype=np.int64)
        values = values << shifts.reshape(1, -1, *[1] * (values.ndim - 2))
    mask = np.argmax(values, axis=1).astype(np.uint8)
    return mask


def real_outputs(output: NDArray[np.int64], program: IntegerProgram) -> NDArray[np.float32]:
    """The real numbers output integers stand for, (N, outputs, *S); comparing them with 0 decides as :func:`decide` does."""
    scales = np.array([2.0**-exponent for exponent in program.output_exponents])
    values = (output - _zero_point(program)) * scales.reshape(1, -1, *[1] * (output.ndim - 2))
    return np.asarray(values, dtype=np.float32)


def _zero_point(program: IntegerProgram) -> int:
    last = program.nodes[-1]
    return last.output.zero_point if last.output is not None else 0
