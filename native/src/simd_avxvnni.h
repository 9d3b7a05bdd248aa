// AVX-VNNI: four byte products added to each of eight sums in one instruction; 16 registers.
#pragma once

#include "simd_256.h"

namespace mq {
namespace {

struct Simd : Simd256 {
  static constexpr int kTiles = 3;  // of a Winograd product: 3 * 2 * 2 sums in registers
  static constexpr int kTilesNarrow = kTiles;
  static constexpr int kVoxels = 6;
  static constexpr int kVoxelsNarrow = 0;

  static Int dot(Int sum, Int unsigned_bytes, Int signed_bytes) { return _mm256_dpbusd_avx_epi32(sum, unsigned_bytes, signed_bytes); }
  // Never called.
  static Int dot_narrow(Int, Int, Int);
  static Int add_halves(Int, Int);
};

}  // namespace
}  // namespace mq
