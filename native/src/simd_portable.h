// Byte products without any instruction for them: exact wherever C++ is.
#pragma once

#include "simd_128.h"

namespace mq {
namespace {

struct Simd : Simd128 {
  static constexpr int kTiles = 4;
  static constexpr int kTilesNarrow = kTiles;
  static constexpr int kVoxels = 6;
  static constexpr int kVoxelsNarrow = 8;

  // A byte of every pair, as 16 bits.
  static Shorts128 even_unsigned(Ints128 x) { return (Shorts128)x & 0xff; }
  static Shorts128 odd_unsigned(Ints128 x) { return (Shorts128)((x >> 8) & 0xff00ff); }
  static Shorts128 even_signed(Ints128 x) { return ((Shorts128)x << 8) >> 8; }
  static Shorts128 odd_signed(Ints128 x) { return (Shorts128)x >> 8; }
  static Ints128 both_halves(Shorts128 x) { return (((Ints128)x << 16) >> 16) + ((Ints128)x >> 16); }

  // 16 bits hold one product of an unsigned and a signed byte.
  static Ints128 dot(Ints128 sum, Ints128 x, Ints128 w) {
    return sum + (both_halves(even_unsigned(x) * even_signed(w)) + both_halves(odd_unsigned(x) * odd_signed(w)));
  }
  static Int dot(Int sum, Int x, Int w) { return {dot(sum.low, x.low, w.low), dot(sum.high, x.high, w.high)}; }
  static Ints128 dot_narrow(Ints128 sum, Ints128 x, Ints128 w) {
    return (Ints128)((Shorts128)sum + even_unsigned(x) * even_signed(w) + odd_unsigned(x) * odd_signed(w));
  }
  static Int dot_narrow(Int sum, Int x, Int w) { return {dot_narrow(sum.low, x.low, w.low), dot_narrow(sum.high, x.high, w.high)}; }
  static Int add_halves(Int sum, Int halves) {
    return {sum.low + both_halves((Shorts128)halves.low), sum.high + both_halves((Shorts128)halves.high)};
  }
};

}  // namespace
}  // namespace mq
