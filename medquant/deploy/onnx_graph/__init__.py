"""An integer program as an ONNX graph in the quantize, dequantize form (QDQ) that runtimes turn into 8-bit kernels.

What makes it exact, and 8-bit at the same time (measured on ONNX Runtime 1.31 and OpenVINO 2026.4, kept by tests):

- a convolution is DequantizeLinear, Conv, QuantizeLinear, with levels read at scale 1 and weights at ``2**-shift``;
- the true width is a Clip of the uint8 levels: both runtimes fuse it, and neither moves it over the rounding;
- weights are int8, or INT4 cast to int8, which both fold when they open the graph;
- everything else is on the levels themselves, or between Cast and QuantizeLinear, which nothing fuses to wrong rounding:
  a quantized addition adds its zero point before it rounds, and a quantized resize drops its fractions.

For the exported file, which OpenVINO opens with bfloat16 for what is float where the processor has it:

- the last layer is a ConvInteger, additions are 1×1 convolutions, transposed convolutions plain ones with their phases interleaved;
- odd zero points are made even, or refused; no Shape operator stands behind a convolution, whose sums it would saturate.
"""

from __future__ import annotations

from medquant.deploy.onnx_graph.models import levels_model, mask_model

__all__ = ["levels_model", "mask_model"]
