"""Convolutions as matrix products of bytes, for GPUs: windows are gathered in tiles and multiplied by ``torch._int_mm``.

The products are int8 by int8 summed in int32, so no algorithm that a library may choose can round: exact wherever accumulators
fit 32 bits. (Float32 convolutions may run as Winograd or FFT, which torch cannot forbid for a single call.) Everything else,
and convolutions with groups, runs as in :class:`FloatTorchProgram`. The operator is private to torch: it is tried before use.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from medquant.deploy.engines import torch_bytes
from medquant.deploy.engines.torch_float import FloatTorchProgram
from medquant.deploy.engines.torch_rewrite import transposed_as_plain
from medquant.quant.program import ConvolutionNode, IntegerProgram

_INT32_LIMIT = 2**31
_LEAST_ROWS = 32
"""``torch._int_mm`` wants more than 16 rows on a GPU, and the other two lengths multiples of 8."""


class MatmulTorchProgram(FloatTorchProgram):
    """The walk of :class:`FloatTorchProgram` with its convolutions as products of bytes.

    Args:
        program: the network.
        device: where tensors live; the CPU runs the same code, slowly.
        tile_bytes: most memory that gathered windows take at once.
    """

    def __init__(self, program: IntegerProgram, device: torch.device, tile_bytes: int = 2**28) -> None:
        super().__init__(program, device)
        self._tile_bytes = tile_bytes
        self._plain: dict[str, ConvolutionNode] = {}
        for node in program.convolutions:
            plain = transposed_as_plain(node) if node.geometry.transposed else node
            if plain is not None and self._fits(plain):
                self._plain[node.name] = plain
        self._matrices = {name: self._matrix(plain) for name, plain in self._plain.items()}

    def _fits(self, node: ConvolutionNode) -> bool:
        magnitude = node.weight_magnitude.reshape(len(node.bias), -1).sum(axis=1, dtype=np.int64)
        return node.geometry.groups == 1 and bool((magnitude * 256 + np.abs(node.bias)).max() < _INT32_LIMIT)

    def _offset(self, node: ConvolutionNode) -> int:
        """What is taken off ``q - z`` so that it fits int8; 0 where it fits as it is."""
        read = self.program.format_of(node.inputs[0])
        fits = read.zero_point <= 128 and read.highest - read.zero_point <= 127
        return 0 if fits else 128 - read.zero_point

    def _matrix(self, node: ConvolutionNode) -> tuple[Tensor, Tensor]:
        """Weights as (K, O) int8 with K ordered (taps, channels), both filled up with zeros, and what is added to the products."""
        outputs = len(node.bias)
        rows = np.moveaxis(node.weight, 1, -1).reshape(outputs, -1)
        matrix = np.zeros((_multiple_of_8(outputs), _multiple_of_8(rows.shape[1])), np.int8)
        matrix[:outputs, : rows.shape[1]] = rows
        added = node.bias + self._offset(node) * rows.sum(axis=1)
        return torch.from_numpy(matrix).to(self.device).t(), torch.from_numpy(added).to(self.device)

    def _convolve(self, node: ConvolutionNode, x: Tensor) -> Tensor:
        if node.name not in self._plain:
            return super()._convolve(node, x)
        sums = self._sums(self._plain[node.name], x)
        if node.geometry.transposed:
            target = torch.empty(
                (x.shape[0], len(node.bias), *torch_bytes.transposed_size(node, x.shape[2:])), dtype=sums.dtype, device=self.device
            )
            torch_bytes.interleave(node, sums, target)
            sums = target
        return self.finish(node, sums)

    def _sums(self, node: ConvolutionNode, x: Tensor) -> Tensor:
        """Accumulators of a plain convolution as float64, (N, O, *T), from ``q - z`` in float32, (N, C, *S)."""
        g, offset, channels = node.geometry, self._offset(node), x.shape[1]
        matrix, added = self._matrices[node.name]
        centred = (x - offset).to(torch.int8).movedim(1, -1)
        size = [n + 2 * p for n, p in zip(x.shape[2:], g.padding, strict=True)]
        padded = torch.full((x.shape[0], *size, channels), -offset, dtype=torch.int8, device=self.device)
        padded[(slice(None), *(slice(p, p + n) for p, n in zip(g.padding, x.shape[2:], strict=True)))] = centred
        kernel = node.weight.shape[2:]
        out = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(size, g.dilation, kernel, g.stride, strict=True)]
        sums = torch.empty((x.shape[0], *out, len(node.bias)), dtype=torch.float64, device=self.device)
        # Tiles are whole rows along the first spatial axis of one image.
        row_bytes = int(np.prod(out[1:])) * matrix.shape[0]
        rows = max(self._tile_bytes // max(row_bytes, 1), 1)
        for image, first in product(range(x.shape[0]), range(0, out[0], rows)):
            tile = [min(rows, out[0] - first), *out[1:]]
            windows = _gather(padded[image], node, [first, *[0] * (len(out) - 1)], tile, matrix.shape[0])
            products = torch._int_mm(windows, matrix)[: int(np.prod(tile)), : len(node.bias)]
            sums[image, first : first + tile[0]] = products.add(added).reshape(*tile, -1)
        return sums.movedim(-1, 1)


def byte_products_work(device: torch.device) -> bool:
    """Whether ``torch._int_mm`` exists, runs on this device, and sums the largest bytes exactly."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(-128, 128, (64, 2048), generator=generator, dtype=torch.int8)
    matrix = torch.randint(-128, 128, (2048, 24), generator=generator, dtype=torch.int8)
    windows[0], matrix[:, 0] = -128, -128
    try:
        found = torch._int_mm(windows.to(device), matrix.t().contiguous().to(device).t())
    except (AttributeError, RuntimeError, TypeError):
        # Absent, or not for this device.
        return False
    return found.dtype == torch.int32 and torch.equal(found.cpu().double(), windows.double() @ matrix.double())


def _gather(padded: Tensor, node: ConvolutionNode, start: list[int], tile: list[int], width: int) -> Tensor:
    """The windows of a tile of outputs, (rows, width): taps first, channels within; filled up with zeros in both directions."""
    channels, count = padded.shape[-1], int(np.prod(tile))
    windows = torch.zeros((max(count, _LEAST_ROWS), width), dtype=torch.int8, device=padded.device)
    g = node.geometry
    for number, tap in enumerate(product(*(range(k) for k in node.weight.shape[2:]))):
        begins = [(first * s) + t * d for first, s, t, d in zip(start, g.stride, tap, g.dilation, strict=True)]
        seen = tuple(slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(begins, tile, g.stride, strict=True))
        part = windows[:count, number * channels : (number + 1) * channels]
        part.unflatten(0, tile).copy_(padded[seen])
    return windows


def _multiple_of_8(length: int) -> int:
    return -(-length // 8) * 8
