"""One call for every convolution a graph can hold."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medquant.quant.graph import ConvGeometry

_PLAIN = {2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Convolution or transposed convolution as ``geometry`` says; shapes as in torch.nn.functional, 2D or 3D."""
    axes = geometry.spatial_axes
    if geometry.transposed:
        return _TRANSPOSED[axes](
            x, weight, bias, geometry.stride, geometry.padding, geometry.output_padding, geometry.groups, geometry.dilation
        )
    return _PLAIN[axes](x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
