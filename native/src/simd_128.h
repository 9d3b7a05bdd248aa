// Eight sums of 32 bits as two vectors of the compiler's own, 128 bits each, which every processor has or is given: what the
// portable set and those for ARM share. A set's own file adds the byte products.
#pragma once

#include <float.h>

#include <cstdint>

#include "no_narrow_blocks.h"

namespace mq {
namespace {

typedef uint8_t Bytes128 __attribute__((vector_size(16)));
typedef int16_t Shorts128 __attribute__((vector_size(16)));
typedef int32_t Ints128 __attribute__((vector_size(16)));
typedef float Floats128 __attribute__((vector_size(16)));

static_assert(FLT_EVAL_METHOD != 2, "Simd::rounded needs sums rounded to float32, not to more");

// The lower half of every element of two vectors.
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define MQ_LOW_HALF(i) (2 * (i) + 1)
#else
#define MQ_LOW_HALF(i) (2 * (i))
#endif
inline Shorts128 low_halves(Ints128 a, Ints128 b) {
#define MQ_PLACES MQ_LOW_HALF(0), MQ_LOW_HALF(1), MQ_LOW_HALF(2), MQ_LOW_HALF(3), MQ_LOW_HALF(4), MQ_LOW_HALF(5), MQ_LOW_HALF(6), MQ_LOW_HALF(7)
#if defined(__clang__)
  return __builtin_shufflevector((Shorts128)a, (Shorts128)b, MQ_PLACES);
#else
  return __builtin_shuffle((Shorts128)a, (Shorts128)b, Shorts128{MQ_PLACES});
#endif
}
inline Bytes128 low_halves(Shorts128 a, Shorts128 b) {
#define MQ_MORE_PLACES \
  MQ_LOW_HALF(8), MQ_LOW_HALF(9), MQ_LOW_HALF(10), MQ_LOW_HALF(11), MQ_LOW_HALF(12), MQ_LOW_HALF(13), MQ_LOW_HALF(14), MQ_LOW_HALF(15)
#if defined(__clang__)
  return __builtin_shufflevector((Bytes128)a, (Bytes128)b, MQ_PLACES, MQ_MORE_PLACES);
#else
  return __builtin_shuffle((Bytes128)a, (Bytes128)b, Bytes128{MQ_PLACES, MQ_MORE_PLACES});
#endif
}
#undef MQ_MORE_PLACES
#undef MQ_PLACES
#undef MQ_LOW_HALF

struct Int256 {
  Ints128 low, high;
};

// Everything but the byte products.
struct Simd128 : NoNarrowBlocks {
  static constexpr int kLanes = 8;
  using Int = Int256;
  struct Float {
    Floats128 low, high;
  };

  static Int load(const void* from) {
    Int x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }
  static void store(void* to, Int x) { __builtin_memcpy(to, &x, sizeof x); }
  static Int broadcast4(const void* from) {
    int32_t word;
    __builtin_memcpy(&word, from, 4);
    return splat(word);
  }
  static Int add(Int a, Int b) { return {a.low + b.low, a.high + b.high}; }
  static Int sub(Int a, Int b) { return {a.low - b.low, a.high - b.high}; }
  static Int splat(int32_t x) {
    const Ints128 all = {x, x, x, x};
    return {all, all};
  }
  static Float load_float(const float* from) {
    Float x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }
  // See simd_avx512vnni.h. The product with a power of two is exact, so that it needs no joint rounding with the sum.
  static Int rounding(int32_t zero_point) { return splat(0x4b400000 - zero_point); }
  static Ints128 rounded(Ints128 x, Floats128 scale, Ints128 rounding) {
    return (Ints128)(__builtin_convertvector(x, Floats128) * scale + 12582912.0f) - rounding;
  }
  static Int rounded(Int x, Float scale, Int rounding) {
    return {rounded(x.low, scale.low, rounding.low), rounded(x.high, scale.high, rounding.high)};
  }

  struct Clamp {
    Ints128 lowest, highest;
    Clamp(int32_t low, int32_t high) : lowest(splat(low).low), highest(splat(high).low) {}
    Ints128 operator()(Ints128 x) const {
      const Ints128 low = x < lowest ? lowest : x;
      return low > highest ? highest : low;
    }
  };
  // One voxel's sixteen bytes, in the order of channel_of_lane.
  static Ints128 pack(const Int (&a)[2], const Clamp& clamp) {
    return (Ints128)low_halves(low_halves(clamp(a[0].low), clamp(a[1].low)), low_halves(clamp(a[0].high), clamp(a[1].high)));
  }
  static Int pack_two(const Int (&a)[2], const Int (&b)[2], const Clamp& clamp) { return {pack(a, clamp), pack(b, clamp)}; }
  static void store_first(uint8_t* to, Int packed) { __builtin_memcpy(to, &packed.low, 16); }
  static void store_second(uint8_t* to, Int packed) { __builtin_memcpy(to, &packed.high, 16); }
  static Ints128 max_bytes(Ints128 a, Ints128 b) {
    const Bytes128 x = (Bytes128)a, y = (Bytes128)b;
    return (Ints128)(x > y ? x : y);
  }
  static Int max_bytes(Int a, Int b) { return {max_bytes(a.low, b.low), max_bytes(a.high, b.high)}; }
  static Int max_of_two(Int packed) { return {max_bytes(packed.low, packed.high), packed.high}; }
};

struct Bytes16 {
  static constexpr int kCount = 16;
  using Type = Bytes128;
  static Type load(const void* from) {
    Type x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }
  static void store(void* to, Type x) { __builtin_memcpy(to, &x, sizeof x); }
  static Type add(Type a, Type b) { return a + b; }
  static Type sub(Type a, Type b) { return a - b; }
  static Type flip(Type x) { return x ^ 0x80; }
  static Type low_half(Type x) { return ((x & 15) ^ 8) - 8; }
  static Type high_half(Type x) { return ((x >> 4) ^ 8) - 8; }
};
struct Bytes32 {
  static constexpr int kCount = 32;
  struct Type {
    Bytes128 low, high;
  };
  static Type load(const void* from) {
    Type x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }
  static void store(void* to, Type x) { __builtin_memcpy(to, &x, sizeof x); }
  static Type add(Type a, Type b) { return {a.low + b.low, a.high + b.high}; }
  static Type sub(Type a, Type b) { return {a.low - b.low, a.high - b.high}; }
  static Type flip(Type x) { return {Bytes16::flip(x.low), Bytes16::flip(x.high)}; }
  static Type low_half(Type x) { return {Bytes16::low_half(x.low), Bytes16::low_half(x.high)}; }
  static Type high_half(Type x) { return {Bytes16::high_half(x.low), Bytes16::high_half(x.high)}; }
};
using WideBytes = Bytes32;

}  // namespace
}  // namespace mq
