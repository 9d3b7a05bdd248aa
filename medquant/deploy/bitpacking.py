"""Integers of 1 to 8 bits, one after the other without gaps.

Value ``i`` occupies the bits ``i * bits`` to ``(i + 1) * bits - 1``; bit ``k`` is bit ``k % 8`` of byte ``k // 8``, the lowest
first. Values are in two's complement, except that one bit stands for minus one (0) and one (1). The last byte is filled
with zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medquant.errors import CheckpointError
from medquant.quant.formats import weight_range

# Values handled at a time: bounds the bit arrays to half a megabyte. A multiple of 8, so that every chunk ends with a byte.
_CHUNK_VALUES = 1 << 16


def packed_size_bytes(count: int, bits: int) -> int:
    """``ceil(count * bits / 8)``: what :func:`pack` makes of ``count`` integers."""
    return (count * bits + 7) // 8


def pack(integers: NDArray[np.integer], bits: int) -> bytes:
    """Pack integers, in C order.

    Args:
        integers: any shape, values within :func:`medquant.quant.formats.weight_range` of ``bits``.
        bits: 1 to 8.

    Returns:
        ``ceil(integers.size * bits / 8)`` bytes.

    Raises:
        ConfigError: ``bits`` is not 1 to 8.
        CheckpointError: a value does not fit.
    """
    low, high = weight_range(bits)
    flat = np.ascontiguousarray(integers).reshape(-1)
    wrong = (flat < low) | (flat > high) | ((flat == 0) & (bits == 1))
    if wrong.any():
        expected = "-1 or 1" if bits == 1 else f"{low} to {high}"
        raise CheckpointError(f"integer {int(flat[wrong][0])} does not fit {bits} bits, expected {expected}; lower the network again")
    chunks = (flat[start : start + _CHUNK_VALUES] for start in range(0, flat.size, _CHUNK_VALUES))
    return b"".join(_pack_chunk(chunk, bits) for chunk in chunks)


def unpack(data: bytes | memoryview, bits: int, count: int) -> NDArray[np.int8]:
    """Give back what :func:`pack` packed.

    Args:
        data: exactly ``ceil(count * bits / 8)`` bytes.
        bits: 1 to 8.
        count: number of integers.

    Returns:
        Shape (count,).

    Raises:
        ConfigError: ``bits`` is not 1 to 8.
        CheckpointError: ``data`` has another length, or the bits behind the last value are not zero.
    """
    weight_range(bits)
    size = packed_size_bytes(count, bits)
    if len(data) != size:
        raise CheckpointError(f"{count} integers of {bits} bits take {size} bytes, found {len(data)}; copy or export the file again")
    unused = size * 8 - count * bits
    if unused and data[-1] >> (8 - unused):
        raise CheckpointError(f"the last {unused} bits behind {count} integers of {bits} bits are not zero; copy or export the file again")
    octets = np.frombuffer(data, dtype=np.uint8)
    result = np.empty(count, dtype=np.int8)
    for start in range(0, count, _CHUNK_VALUES):
        stop = min(start + _CHUNK_VALUES, count)
        result[start:stop] = _unpack_chunk(octets[start * bits // 8 : packed_size_bytes(stop, bits)], bits, stop - start)
    return result


def _pack_chunk(values: NDArray[np.integer], bits: int) -> bytes:
    if bits == 1:
        return np.packbits(values > 0, bitorder="little").tobytes()
    # The low bits of a two's complement number are the same at every width.
    low_byte = values.astype(np.int8).view(np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(low_byte, axis=1, count=bits, bitorder="little"), bitorder="little").tobytes()


def _unpack_chunk(octets: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int16]:
    single = np.unpackbits(octets, count=count * bits, bitorder="little").reshape(count, bits)
    values = np.packbits(single, axis=1, bitorder="little").reshape(-1).astype(np.int16)
    if bits == 1:
        return values * 2 - 1
    sign = 1 << (bits - 1)
    return (values ^ sign) - sign
