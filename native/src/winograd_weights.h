// Weights of a Winograd convolution: 2G g (2G)^T, formed in bytes from their stored width just before the layer runs.
#pragma once

#include "winograd.h"

namespace mq {
namespace {

// 2G g (2G)^T of one step and register: nine registers of bytes to sixteen, written where multiply_row reads them.
inline void transform_weights(const WideBytes::Type (&g)[9], int8_t* to, int64_t row, int64_t half, int64_t place) {
  using B = WideBytes;
  B::Type a[4][3];
#pragma GCC unroll 3
  for (int c = 0; c < 3; ++c) {
    const B::Type outer = B::add(g[c], g[6 + c]);
    a[0][c] = B::add(g[c], g[c]);
    a[1][c] = B::add(outer, g[3 + c]);
    a[2][c] = B::sub(outer, g[3 + c]);
    a[3][c] = B::add(g[6 + c], g[6 + c]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const B::Type outer = B::add(a[i][0], a[i][2]);
    B::Type u[4] = {B::add(a[i][0], a[i][0]), B::add(outer, a[i][1]), B::sub(outer, a[i][1]), B::add(a[i][2], a[i][2])};
    // The butterflies take column 3 off, and row 3: with negated weights they only add.
    u[3] = B::sub(B::sub(u[3], u[3]), u[3]);
    if (i == 3) {
      for (auto& each : u) each = B::sub(B::sub(each, each), each);
    }
    int8_t* line = to + i * row;
    B::store(line, u[1]);
    B::store(line + place, u[2]);
    B::store(line + half, u[0]);
    B::store(line + half + place, u[3]);
  }
}

// Steps [first, last) counted through all blocks: block * steps + step.
void expand_winograd(const StoredWeights& stored, int64_t first, int64_t last, int8_t* expanded) {
  using B = WideBytes;
  const Blocks blocks{stored.outputs, Simd::kLanes};
  for (int64_t item = first; item < last; ++item) {
    const int64_t block = item / stored.steps, step = item % stored.steps;
    const int registers = blocks.registers(int32_t(block));
    const int64_t half = stored.steps * 2 * registers * kVectorBytes;  // columns (1, 2), then (0, 3)
    int8_t* to = expanded + block * stored.steps * 16 * 2 * kVectorBytes + step * 2 * registers * kVectorBytes;
    const int64_t width = stored.bits == 8 ? registers * kVectorBytes : kVectorBytes;
    const int64_t before = block * stored.steps * 9 * (stored.bits == 8 ? 2 : 1) * kVectorBytes;
    const uint8_t* from = stored.data + before + step * 9 * width;
    for (int r = 0; r < registers; ++r) {
      B::Type g[9];
      for (int tap = 0; tap < 9; ++tap) {
        const uint8_t* at = from + tap * width;
        if (stored.bits == 8) g[tap] = B::load(at + r * kVectorBytes);
        else g[tap] = r == 0 ? B::low_half(B::load(at)) : B::high_half(B::load(at));
      }
      transform_weights(g, to + r * kVectorBytes, 2 * half, half, registers * kVectorBytes);
    }
  }
}

}  // namespace
}  // namespace mq
