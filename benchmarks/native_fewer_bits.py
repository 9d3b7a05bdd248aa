"""What fewer bits than 4 × 6 could still gain in the native engine: larger Winograd tiles, and bit-serial products.

Run from the repository's root: ``python -m benchmarks.native_fewer_bits``. The first table is arithmetic: for each tile the
largest numbers its transforms can reach, and with which widths they fit the processor's byte products. The second is measured: the
inner loop of bit-serial products (and, count, add) against that of byte products, on this processor.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.quant.formats import weight_range

FORMATS = ((4, 6), (3, 6), (2, 6), (3, 4), (2, 4), (1, 4), (2, 3), (1, 3), (1, 2), (1, 1))
TILES = ((2, 2), (2, 3), (3, 3), (2, 4), (4, 4))
_PASSES = 20_000


@dataclass(frozen=True)
class Axis:
    """One axis of F(m, 3): the integer matrix of inputs (B^T), and rows of G made whole; the scale is left to the output."""

    inputs: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, ...], ...]


# Points 0, 1, -1 and infinity; then 2 as well; then -2 too.
AXES = {
    2: Axis(((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)), ((1, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 1))),
    3: Axis(
        ((2, -1, -2, 1, 0), (0, -2, -1, 1, 0), (0, 2, -3, 1, 0), (0, -1, 0, 1, 0), (0, 2, -1, -2, 1)),
        ((1, 0, 0), (1, 1, 1), (1, -1, 1), (1, 2, 4), (0, 0, 1)),
    ),
    4: Axis(
        ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
        ((1, 0, 0), (1, 1, 1), (1, -1, 1), (1, 2, 4), (1, -2, 4), (0, 0, 1)),
    ),
}


def _reach(coefficients: NDArray[np.int64], lowest: int, highest: int) -> tuple[int, int]:
    """Smallest and largest sum of coefficients times numbers in [lowest, highest]."""
    positive, negative = int(coefficients[coefficients > 0].sum()), int(coefficients[coefficients < 0].sum())
    return positive * lowest + negative * highest, positive * highest + negative * lowest


def operands(rows: int, columns: int, weight_bits: int, input_bits: int) -> tuple[int, int]:
    """Largest magnitude of a transformed weight, and largest span of a transformed input, of F(rows × columns, 3 × 3)."""
    low, high = weight_range(weight_bits)
    weight = span = 0
    for first, second in itertools.product(AXES[rows].weights, AXES[columns].weights):
        weight = max(weight, *(abs(each) for each in _reach(np.outer(first, second), low, high)))
    for first, second in itertools.product(AXES[rows].inputs, AXES[columns].inputs):
        smallest, largest = _reach(np.outer(first, second), 0, 2**input_bits - 1)
        span = max(span, largest - smallest)
    return weight, span


def gain(rows: int, columns: int) -> float:
    """Multiplications of the direct convolution over those of the tile."""
    return rows * columns * 9 / ((rows + 2) * (columns + 2))


def _print_tiles() -> None:
    print("Largest |weight| / span of inputs after the transforms; * where both fit byte products (127, 255)")
    print(f"{'tile':>6}{'saves':>8}" + "".join(f"{f'W{w}A{a}':>11}" for w, a in FORMATS))
    for rows, columns in TILES:
        cells = []
        for weight_bits, input_bits in FORMATS:
            weight, span = operands(rows, columns, weight_bits, input_bits)
            cells.append(f"{weight}/{span}{'*' if weight <= 127 and span <= 255 else ' '}")
        print(f"{f'{rows}×{columns}':>6}{gain(rows, columns):>7.2f}×" + "".join(f"{cell:>11}" for cell in cells))


_SOURCE = r"""
#include <algorithm>
#include <chrono>
#include <cstdio>
alignas(4096) static char memory[8192];
template <class Loop> double nanoseconds(Loop loop) {
  double least = 1e18;
  for (int round = 0; round < 200; ++round) {
    const auto start = std::chrono::steady_clock::now();
    loop();
    least = std::min(least, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}
int main() {
  const char* from = memory;
  const double bytes = nanoseconds([&] { long n = PASSES; asm volatile("1:\nBYTES dec %0\njnz 1b\n" : "+r"(n) : "r"(from) : "memory"); });
  const double bits = nanoseconds([&] { long n = PASSES; asm volatile("1:\nBITS dec %0\njnz 1b\n" : "+r"(n) : "r"(from) : "memory"); });
  std::printf("%.4f %.4f\n", PASSES * 24.0 * 64 / bytes, PASSES * 24.0 * 512 / bits);
}
"""


def measure_bit_serial() -> tuple[float, float] | None:
    """Byte products and one-bit products a nanosecond, in loops of 24 sums; None where they cannot be compiled or run."""
    in_bytes = "".join(rf"vpdpbusd {64 * k}(%1), %%zmm1, %%zmm{8 + k}\n" for k in range(24))
    in_bits = "".join(
        rf"vpandd {64 * k}(%1), %%zmm1, %%zmm2\nvpopcntd %%zmm2, %%zmm2\nvpaddd %%zmm2, %%zmm{8 + k}, %%zmm{8 + k}\n" for k in range(24)
    )
    source = _SOURCE.replace("BYTES", in_bytes).replace("BITS", in_bits).replace("PASSES", str(_PASSES))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "loops"
        Path(f"{program}.cpp").write_text(source)
        try:
            subprocess.run(["g++", "-O2", f"{program}.cpp", "-o", str(program)], check=True, capture_output=True)
            printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            return None
    return float(printed[0]), float(printed[1])


def _print_bit_serial() -> None:
    measured = measure_bit_serial()
    if measured is None:
        print("\nBit-serial products: not measured (a C++ compiler and AVX-512 VPOPCNTDQ are needed)")
        return
    in_bytes, in_bits = measured
    print(f"\nInner loops: {in_bytes:.0f} byte products and {in_bits:.0f} one-bit products a nanosecond, one thread")
    for weight_bits, input_bits in ((1, 1), (1, 2), (2, 2), (1, 4), (2, 4)):
        products = in_bits / (weight_bits * input_bits)
        direct, winograd = products / in_bytes, products / (in_bytes * gain(2, 2))
        print(f"  W{weight_bits}A{input_bits} bit-serial: {winograd:.2f} × Winograd F(2×2) in bytes, {direct:.2f} × direct")


if __name__ == "__main__":
    _print_tiles()
    _print_bit_serial()
