// Sets of fewer than sixteen lanes never meet a block of one register: outputs are padded to 16, two registers' worth or more.
// The kernels name these functions all the same.
#pragma once

#include <cstdint>

namespace mq {
namespace {

template <class Int>
struct NoNarrowBlocks {
  static constexpr int kTilesNarrow = 1;
  template <class Clamp>
  static Int pack_four(const Int&, const Int&, const Int&, const Int&, const Clamp&) {
    __builtin_trap();
  }
  template <int kWhich>
  static void store_quarter(uint8_t*, const Int&) {
    __builtin_trap();
  }
  static Int max_of_four(const Int&) { __builtin_trap(); }
};

}  // namespace
}  // namespace mq
