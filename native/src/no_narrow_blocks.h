// Sets of fewer than sixteen lanes never meet a block of one register: outputs are padded to 16, two registers' worth or more.
// The kernels name these functions all the same.
#pragma once

#include <cstdint>

namespace mq {
namespace {

struct NoNarrowBlocks {
  template <class Int, class Clamp>
  static Int pack_four(Int, Int, Int, Int, const Clamp&) {
    __builtin_trap();
  }
  template <int kWhich, class Int>
  static void store_quarter(uint8_t*, Int) {
    __builtin_trap();
  }
  template <class Int>
  static Int max_of_four(Int) {
    __builtin_trap();
  }
};

}  // namespace
}  // namespace mq
