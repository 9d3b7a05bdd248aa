// AVX2 without VNNI. Its byte product sums two products in 16 bits and saturates: exact only where they fit.
#pragma once

#include "simd_256.h"

namespace mq {
namespace {

struct Simd : Simd256 {
  static constexpr int kTiles = 2;
  static constexpr int kTilesNarrow = kTiles;
  static constexpr int kVoxels = 4;
  static constexpr int kVoxelsNarrow = 4;

  // Any bytes: those of every pair apart, widened to 16 bits.
  static Int dot(Int sum, Int x, Int w) {
    const Int even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const Int odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
    return add(add(sum, even), odd);
  }
  static Int dot_narrow(Int sum, Int x, Int w) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(x, w)); }
  static Int add_halves(Int sum, Int halves) { return add(sum, _mm256_madd_epi16(halves, _mm256_set1_epi16(1))); }
};

}  // namespace
}  // namespace mq
