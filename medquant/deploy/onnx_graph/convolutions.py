"""Convolutions as ONNX operators: each in the form that the runtimes compute in 8-bit products, or in one that is exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.onnx_graph.plain_form import PlainForm, as_plain, without_groups
from medquant.deploy.onnx_graph.requantize import Levels, Requantizer, effective_shift, power_of_two
from medquant.deploy.onnx_graph.writer import GraphWriter
from medquant.errors import EngineMismatchError
from medquant.quant.formats import FLOAT32_EXACT_LIMIT, TensorFormat
from medquant.quant.program import ConvolutionNode, accumulator_bound


@dataclass(frozen=True)
class Source:
    """A uint8 tensor that a convolution reads: its name, the integer that is real zero in it, and the program's format of it."""

    name: str
    zero_point: int
    format: TensorFormat


@dataclass(frozen=True)
class ConvolutionWriter:
    """Writes the convolutions of one graph.

    Args:
        writer: the graph.
        requantize: writes what follows the sums.
        packed: whether weights are stored at their true width.
    """

    writer: GraphWriter
    requantize: Requantizer
    packed: bool

    def __call__(self, node: ConvolutionNode, source: Source, written: Levels | None, shift: NDArray[np.int64] | None) -> str:
        """One convolution.

        Args:
            node: the convolution.
            source: what it reads.
            written: the integers it may write; None where the accumulators are wanted.
            shift: of the requantization, (out,); None likewise.

        Returns:
            The name of a uint8 tensor of levels, or of an int32 tensor of accumulators.

        Raises:
            EngineMismatchError: no form of this convolution is exact.
        """
        form = as_plain(node)
        if self.requantize.portable and form.axes == 3 and form.attributes["group"] > 1 and form.weight.shape[1] == 1:
            # OpenVINO has no kernel for these where it takes bfloat16 by itself, and refuses the file.
            form = without_groups(form)
        wide = accumulator_bound(node, source.format) >= FLOAT32_EXACT_LIMIT
        if shift is None or written is None:
            if (wide or self.requantize.portable) and form.phases > 1 and not _shuffles(form):
                raise EngineMismatchError(
                    f"{node.name} is a transposed convolution of stride {form.stride} that ends the network in 32-bit accumulators, "
                    "which have no exact form in ONNX; use engine reference"
                )
            # OpenVINO rounds the sums of a float convolution to bfloat16 where the processor has it, unless it is told not to.
            integers = wide or self.requantize.portable
            sums = self._integer_sums(form, source) if integers else self._float_sums(form, source, None)
            sums = self._shuffled(sums, form, accumulators=True)
            if node.relu:
                sums = self.writer.op("Relu", [sums], f"{node.name}_rectified")
            return self.writer.cast(sums, np.int32, f"{node.name}_accumulators")
        shift = np.repeat(shift, form.phases)
        if wide:
            sums = self._integer_sums(form, source)
            result = self.requantize.spelled_out(sums, shift, written, node.relu, node.name, form.axes, np.float64)
        else:
            # Scaled by its weights, so that quantizing with scale 1 is all that is left.
            sums = self._float_sums(form, source, shift)
            result = self.requantize(sums, np.asarray(0), written, node.relu, node.name, int(shift.max()))
        return self._shuffled(result, form, accumulators=False)

    # --- forms ------------------------------------------------------------------------------------------------------------

    def _float_sums(self, node: PlainForm, source: Source, shift: NDArray[np.int64] | None) -> str:
        """Sums times ``2**-shift``, float32. Runtimes join dequantize, convolve, quantize to one operator in 8-bit products."""
        weight = self.writer.weight(node.weight, f"{node.name}_weight", self.packed)
        bias = self.writer.constant(node.bias.astype(np.int32), f"{node.name}_bias")
        factors = np.ones(len(node.bias), np.float32) if shift is None else power_of_two(-effective_shift(shift))
        scale = self.writer.constant(factors, f"{node.name}_scale")
        inputs = [self._dequantized(source, node.name)]
        inputs += [self.writer.op("DequantizeLinear", [name, scale], f"{name}_real", axis=0) for name in (weight, bias)]
        return self.writer.op("Conv", inputs, f"{node.name}_sums", **node.attributes)

    def _integer_sums(self, node: PlainForm, source: Source) -> str:
        """Sums that float32 does not hold: of 32-bit integers, handed on as float64."""
        weight = self.writer.weight(node.weight, f"{node.name}_weight", self.packed)
        zero_point = self.writer.scalar(source.zero_point, np.uint8, "zero_point")
        sums = self.writer.op("ConvInteger", [source.name, weight, zero_point], f"{node.name}_products", **node.attributes)
        bias = self.writer.constant(node.bias.astype(np.int32).reshape(-1, *[1] * node.axes), f"{node.name}_bias")
        return self.writer.cast(self.writer.op("Add", [sums, bias], f"{node.name}_integers"), np.float64, f"{node.name}_sums")

    def _dequantized(self, source: Source, stem: str) -> str:
        one = self.writer.scalar(1, np.float32, "one")
        zero_point = self.writer.scalar(source.zero_point, np.uint8, "zero_point")
        return self.writer.op("DequantizeLinear", [source.name, one, zero_point], f"{stem}_read")

    def _shuffled(self, source: str, form: PlainForm, accumulators: bool) -> str:
        """Channels that hold the phases of a transposed convolution, brought to their voxels."""
        if form.phases > 1:
            source = self._interleaved(source, form, accumulators)
        if not any(form.cut_before) and not any(form.cut_behind):
            return source
        numbers = (form.cut_before, [-cut if cut else np.iinfo(np.int64).max for cut in form.cut_behind], range(2, 2 + form.axes))
        return self.writer.op("Slice", [source, *(self._numbers(list(values)) for values in numbers)], f"{form.name}_cut")

    def _interleaved(self, source: str, form: PlainForm, accumulators: bool) -> str:
        if _shuffles(form):
            return self.writer.op("DepthToSpace", [source], f"{form.name}_shuffled", blocksize=form.stride[0], mode="CRD")
        # Each voxel copied to its place by weights of one: even bfloat16 holds levels. Reshaping would need the sizes, and
        # OpenVINO computes a convolution whose size is asked for with saturated sums.
        channels = len(form.bias) // form.phases
        ones = np.tile(np.eye(form.phases, dtype=np.float32), (channels, 1)).reshape(-1, 1, *form.stride)
        floats = source if accumulators else self.writer.cast(source, np.float32, f"{form.name}_copied")
        copied = self.writer.op(
            "ConvTranspose",
            [floats, self.writer.constant(ones, "places")],
            f"{form.name}_interleaved",
            kernel_shape=form.stride,
            strides=form.stride,
            group=channels,
        )
        return copied if accumulators else self.writer.cast(copied, np.uint8, f"{form.name}_shuffled")

    def _numbers(self, values: list[int]) -> str:
        return self.writer.constant(np.array(values, np.int64), "numbers")


def _shuffles(form: PlainForm) -> bool:
    """Whether ONNX's DepthToSpace, which is flat and square, brings the phases to their voxels."""
    return form.axes == 2 and len(set(form.stride)) == 1
