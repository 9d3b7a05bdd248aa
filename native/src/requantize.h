// Rounding and packing, shared by both kinds of convolution. One copy for each kernel set.
#pragma once

#include "kernels.h"

namespace mq {
namespace {

// round_half_even(x * 2^-shift), shifts beyond 32 bits included; a negative shift is one to the left.
inline int64_t rounded_shift(int64_t x, int32_t shift) {
  if (shift <= 0) return x * (int64_t(1) << (shift < -30 ? 30 : -shift));
  const int32_t right = shift > 60 ? 60 : shift;
  const int64_t half = (int64_t(1) << (right - 1)) - 1;
  return (x + half + ((x >> right) & 1)) >> right;
}

}  // namespace
}  // namespace mq
