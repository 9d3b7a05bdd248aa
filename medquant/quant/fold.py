"""Fold batch norm into convolutions and join rectifiers to what they follow, before anything is quantized."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medquant.quant.graph import Add, BatchNorm, ConvGeometry, Convolution, Graph, Relu


def simplify(graph: Graph, keep_batch_norm: bool = False) -> Graph:
    """The graph without batch norm, rectifiers joined to what they follow.

    Batch norm right after a convolution is folded into its weight and bias (Jacob et al., 2018, §3.2), in float64. Anywhere
    else, for example behind a rectifier as in the paper's order conv → ReLU → norm, no exact fold exists (zero padding stands
    in the way of the next convolution): it becomes a 1×1 convolution of its own for each channel, and stays an integer layer.

    Args:
        graph: as captured.
        keep_batch_norm: leave batch norm as layers of their own, for methods that need the statistics of each batch.
    """
    if not keep_batch_norm:
        graph = _replace_norms(_fold_norms(graph))
    return _join_relus(graph)


def scale_output_channels(weight: Tensor, scale: Tensor, geometry: ConvGeometry) -> Tensor:
    """``weight`` with each output channel multiplied by its entry of ``scale``, in the weight's own layout."""
    if not geometry.transposed:
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    # A transposed weight is (in, out / groups, ...): the in-channels of group g meet the out-channels of group g.
    per_group = scale.reshape(geometry.groups, 1, -1)
    split = weight.reshape(geometry.groups, weight.shape[0] // geometry.groups, weight.shape[1], *weight.shape[2:])
    return (split * per_group.reshape(*per_group.shape, *[1] * (weight.dim() - 2))).reshape(weight.shape)


def _fold_norms(graph: Graph) -> Graph:
    for name in [operation.name for operation in graph if isinstance(operation, BatchNorm)]:
        # Looked up again: folding an earlier norm may have renamed what this one reads.
        norm = graph[name]
        before = graph[norm.inputs[0]]
        if isinstance(norm, BatchNorm) and isinstance(before, Convolution) and graph.read_once(before.name):
            weight = scale_output_channels(before.weight.double(), norm.scale, before.geometry).to(before.weight.dtype)
            bias = torch.zeros(before.out_channels, dtype=torch.float64) if before.bias is None else before.bias.double()
            folded = (bias.to(norm.scale.device) * norm.scale + norm.shift).to(before.weight.dtype)
            graph = graph.fused(norm, replace(before, weight=weight, bias=folded))
    return graph


def _replace_norms(graph: Graph) -> Graph:
    for norm in [operation for operation in graph if isinstance(operation, BatchNorm)]:
        axes = _spatial_axes(graph)
        weight = norm.scale.float().reshape(-1, 1, *[1] * axes)
        ones, zeros = (1,) * axes, (0,) * axes
        geometry = ConvGeometry(stride=ones, padding=zeros, dilation=ones, groups=weight.shape[0])
        graph = graph.with_operation(Convolution(norm.name, norm.inputs, weight, norm.shift.float(), geometry))
    return graph


def _spatial_axes(graph: Graph) -> int:
    return next(operation.geometry.spatial_axes for operation in graph if isinstance(operation, Convolution))


def _join_relus(graph: Graph) -> Graph:
    for name in [operation.name for operation in graph if isinstance(operation, Relu)]:
        relu = graph[name]
        before = graph[relu.inputs[0]]
        if isinstance(before, Convolution | Add | BatchNorm) and graph.read_once(before.name):
            graph = graph.fused(relu, replace(before, relu=True))
    return graph
