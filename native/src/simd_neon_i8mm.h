// ARM with FEAT_I8MM: four products of unsigned by signed bytes added to each of four sums in one instruction; 32 registers.
#pragma once

#include <arm_neon.h>

#include "simd_128.h"

namespace mq {
namespace {

struct Simd : Simd128 {
  static constexpr int kTiles = 2;  // of a Winograd product: 2 * 2 * 2 sums, each of two registers
  static constexpr int kTilesNarrow = kTiles;
  static constexpr int kVoxels = 6;
  static constexpr int kVoxelsNarrow = 0;

  static Ints128 dot(Ints128 sum, Ints128 x, Ints128 w) {
    return (Ints128)vusdotq_s32((int32x4_t)sum, (uint8x16_t)x, (int8x16_t)w);
  }
  static Int dot(Int sum, Int x, Int w) { return {dot(sum.low, x.low, w.low), dot(sum.high, x.high, w.high)}; }
  // Never called.
  static Int dot_narrow(Int, Int, Int);
  static Int add_halves(Int, Int);
};

}  // namespace
}  // namespace mq
