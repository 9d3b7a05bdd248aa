// ARM with FEAT_DotProd: four products of bytes of the same sign, so that unsigned ones are taken less 128 and that share is added
// again. It depends on the weights alone: the compiler computes it once for all voxels.
#pragma once

#include <arm_neon.h>

#include "simd_128.h"

namespace mq {
namespace {

struct Simd : Simd128 {
  static constexpr int kTiles = 2;  // of a Winograd product: 2 * 2 * 2 sums, each of two registers
  static constexpr int kTilesNarrow = kTiles;
  static constexpr int kVoxels = 4;
  static constexpr int kVoxelsNarrow = 0;

  static Ints128 dot(Ints128 sum, Ints128 x, Ints128 w) {
    const int8x16_t weights = (int8x16_t)w, half = vdupq_n_s8(64);
    const int32x4_t share = vdotq_s32(vdotq_s32(vdupq_n_s32(0), half, weights), half, weights);
    return (Ints128)vdotq_s32((int32x4_t)sum, (int8x16_t)((Bytes128)x ^ 0x80), weights) + (Ints128)share;
  }
  static Int dot(Int sum, Int x, Int w) { return {dot(sum.low, x.low, w.low), dot(sum.high, x.high, w.high)}; }
  // Never called.
  static Int dot_narrow(Int, Int, Int);
  static Int add_halves(Int, Int);
};

}  // namespace
}  // namespace mq
