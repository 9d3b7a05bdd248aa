"""Tries an installed wheel where there is nothing but numpy: the library is in it, loads, and computes. See [tool.cibuildwheel]."""

from __future__ import annotations

import struct
import sys
from importlib.util import find_spec

import numpy as np

from medquant.deploy.native import NativeLibrary, load_library
from medquant.errors import MedquantError


def main() -> str | None:
    """What is wrong, None where nothing is."""
    if find_spec("torch") is not None:
        return "torch is installed: this tries what works without it"
    library = load_library()
    if library.kernels[-1] != "portable":
        return f"the kernel sets are {library.kernels}; portable runs everywhere and comes last"
    for kernels in library.kernels:
        try:
            library.open(b"no program", [], kernels, 1)
        except MedquantError:
            wrong = miscalculated(library, kernels)
            if wrong is not None:
                return f"kernel set {kernels}: {wrong}"
            continue
        return f"kernel set {kernels} opened what is no program"
    return None


def miscalculated(library: NativeLibrary, kernels: str) -> str | None:
    """Where a network of two layers differs from what is worked out by hand; None where it does not.

    The image holds q = 0, 1, 2, 3 and stands for q - 1. The first layer sums left and right neighbour, real zero beyond the edge,
    minus the middle, plus 2, halves it, half to even, and keeps 0 to 7:

    ====================  ====  ====  ====  ====
    q - 1                  -1     0     1     2
    sum                     3     2     3     1
    halved, to even         2     1     2     0
    ====================  ====  ====  ====  ====

    The second has two outputs: three times that minus 4, and its negative plus 1.
    """
    integers = (0, 3, 0, 0)
    first = _node(1, b"first", [0], integers, *(2, 1, 0, 1), *(1, 3, 1, 1, 0, 1, 1, 1, 0, 0), 1, 1, 0, 2, 1)
    second = _node(1, b"second", [1], _ACCUMULATORS, *(3, 0, 0, 1), *(1, 1, 1, 1, 0, 0, 1, 1, 0, 0), 2, 1, 1, -4, 1, 0, 0)
    image = _node(0, b"image", [], (0, 8, 1, 0), 1)
    program = b"".join((b"MQNP", struct.pack("<III", 1, 2, 3), image, first, second))
    handle = library.open(program, [np.array([1, -1, 1], np.int8), np.array([3, -1], np.int8)], kernels, 2)
    pixels = np.arange(4, dtype=np.uint8).reshape(1, 1, 1, 4)
    found, mask = library.run(handle, pixels).tolist(), library.decide(handle, pixels).tolist()
    library.close(handle)
    expected, classes = [[[[2, -1, 2, -4]], [[-1, 0, -1, 1]]]], [[[0, 1, 0, 1]]]
    if found != expected or mask != classes:
        return f"found {found} and classes {mask}, expected {expected} and {classes}"
    return None


_ACCUMULATORS = (1, 0, 0, 0)


def _node(kind: int, name: bytes, inputs: list[int], written: tuple[int, ...], *fields: int) -> bytes:
    """A node as ``medquant/deploy/native/program.py`` writes it, which needs more packages than are here.

    Fields are those of the image (channels), or of a convolution: bits, relu, transposed, groups; kernel, stride, padding, dilation
    and output padding along two axes; outputs, inputs, number of its weights; biases; exponents.
    """
    head = struct.pack("<II", kind, len(name)) + name
    return head + struct.pack(f"<I{len(inputs)}I4i{len(fields)}i", len(inputs), *inputs, *written, *fields)


if __name__ == "__main__":
    sys.exit(main())
