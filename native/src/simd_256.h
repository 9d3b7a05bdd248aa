// Eight sums of 32 bits in one AVX2 register: everything but the byte products, which each set adds.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "no_narrow_blocks.h"

namespace mq {
namespace {

struct Simd256 : NoNarrowBlocks {
  static constexpr int kLanes = 8;
  using Int = __m256i;
  using Float = __m256;

  static Int load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void store(void* to, Int x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
  static Int broadcast4(const void* from) {
    int32_t word;
    __builtin_memcpy(&word, from, 4);
    return _mm256_set1_epi32(word);
  }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int splat(int32_t x) { return _mm256_set1_epi32(x); }
  static Float load_float(const float* from) { return _mm256_loadu_ps(from); }
  // See simd_avx512vnni.h. The product with a power of two is exact, so that it needs no joint rounding with the sum.
  static Int rounding(int32_t zero_point) { return _mm256_set1_epi32(0x4b400000 - zero_point); }
  static Int rounded(Int x, Float scale, Int rounding) {
    const Float sum = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(x), scale), _mm256_set1_ps(12582912.0f));
    return _mm256_sub_epi32(_mm256_castps_si256(sum), rounding);
  }

  struct Clamp {
    Int lowest, highest;
    Clamp(int32_t low, int32_t high) : lowest(_mm256_set1_epi8(char(low))), highest(_mm256_set1_epi8(char(high))) {}
    Int operator()(Int x) const { return _mm256_min_epu8(_mm256_max_epu8(x, lowest), highest); }
  };
  // The sixteen bytes of one voxel, then those of the other.
  static Int pack_two(const Int (&a)[2], const Int (&b)[2], const Clamp& clamp) {
    const Int packed = clamp(_mm256_packus_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(b[0], b[1])));
    return _mm256_permute4x64_epi64(packed, 0xd8);
  }
  static void store_first(uint8_t* to, Int packed) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed)); }
  static void store_second(uint8_t* to, Int packed) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_extracti128_si256(packed, 1));
  }
  static Int max_bytes(Int a, Int b) { return _mm256_max_epu8(a, b); }
  static Int max_of_two(Int packed) { return _mm256_max_epu8(packed, _mm256_permute2x128_si256(packed, packed, 1)); }
};

struct Bytes32 {
  static constexpr int kCount = 32;
  using Type = __m256i;
  static Type load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void store(void* to, Type x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
  static Type add(Type a, Type b) { return _mm256_add_epi8(a, b); }
  static Type sub(Type a, Type b) { return _mm256_sub_epi8(a, b); }
  static Type flip(Type x) { return _mm256_xor_si256(x, _mm256_set1_epi8(char(0x80))); }
  // Weights of 4 bits, sign-extended, from the low and the high halves of bytes.
  static Type low_half(Type x) {
    const Type eight = _mm256_set1_epi8(8);
    return sub(_mm256_xor_si256(_mm256_and_si256(x, _mm256_set1_epi8(15)), eight), eight);
  }
  static Type high_half(Type x) { return low_half(_mm256_srli_epi16(x, 4)); }
};
struct Bytes16 {
  static constexpr int kCount = 16;
  using Type = __m128i;
  static Type load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static void store(void* to, Type x) { _mm_storeu_si128(static_cast<__m128i*>(to), x); }
  static Type add(Type a, Type b) { return _mm_add_epi8(a, b); }
  static Type sub(Type a, Type b) { return _mm_sub_epi8(a, b); }
  static Type flip(Type x) { return _mm_xor_si128(x, _mm_set1_epi8(char(0x80))); }
};
using WideBytes = Bytes32;

}  // namespace
}  // namespace mq
