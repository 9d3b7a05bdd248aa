"""Collects the nodes and constants of one ONNX graph: every name once, every constant stored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_INT4 = (-8, 7)


class GraphWriter:
    """Nodes in the order they run, and the constants they read.

    Args:
        taken: names that belong to the graph's inputs and outputs.
    """

    def __init__(self, taken: Sequence[str]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._names = set(taken)
        self._stored: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, inputs: Sequence[str], stem: str, output: str | None = None, **attributes: Any) -> str:
        """Append an operator of the standard set; the name of the tensor it writes, ``output`` or one made from ``stem``."""
        from onnx import helper

        written = output or self._fresh(stem)
        self.nodes.append(helper.make_node(kind, list(inputs), [written], name=written, **attributes))
        return written

    def cast(self, source: str, dtype: type[np.generic], stem: str, output: str | None = None) -> str:
        """Append a conversion to another number type."""
        from onnx import helper

        return self.op("Cast", [source], stem, output, to=int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def constant(self, array: NDArray[np.generic], stem: str) -> str:
        """The name of a constant with these numbers; equal ones are stored once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._stored:
            self._stored[key] = self._fresh(stem)
            self.constants.append(numpy_helper.from_array(array, self._stored[key]))
        return self._stored[key]

    def scalar(self, value: float, dtype: type[np.generic], stem: str) -> str:
        """The name of a constant without axes."""
        return self.constant(np.asarray(value, dtype=dtype), stem)

    def weight(self, values: NDArray[np.int64], stem: str, packed: bool) -> str:
        """The name of an int8 tensor of weights.

        Args:
            values: integers of at most 8 bits.
            stem: what the constant is called after.
            packed: store them as INT4, two in a byte, where they fit; the runtimes widen them once, when they open the graph.
        """
        if not packed or values.min(initial=0) < _INT4[0] or values.max(initial=0) > _INT4[1]:
            return self.constant(values.astype(np.int8), stem)
        from onnx import TensorProto, helper

        name = self._fresh(f"{stem}_int4")
        # Raw bytes: onnx's own helper would spend four bytes on each pair.
        self.constants.append(helper.make_tensor(name, TensorProto.INT4, list(values.shape), _pairs(values), raw=True))
        return self.cast(name, np.int8, stem)

    def _fresh(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return name


def _pairs(values: NDArray[np.int64]) -> bytes:
    """Two's complement nibbles, the first of each pair in the low half (ONNX IR, 4-bit tensors); a last odd one alone."""
    nibbles = (values.reshape(-1) & 15).astype(np.uint8)
    padded = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return bytes(padded[0::2] | (padded[1::2] << 4))
