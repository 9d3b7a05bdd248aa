// AVX-512 with VNNI: 16 sums of 32 bits a register, four byte products added to each in one instruction.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mq {
namespace {

struct Simd {
  static constexpr int kLanes = 16;
  static constexpr int kTiles = 6;     // of a Winograd product with two registers of outputs: 6 * 2 * 2 sums in registers
  static constexpr int kTilesNarrow = 12;  // with one register
  static constexpr int kVoxels = 12;   // of a direct convolution
  static constexpr int kVoxelsNarrow = 0;  // of one whose sums begin in 16 bits, where that is faster
  using Int = __m512i;
  using Float = __m512;

  static Int zero() { return _mm512_setzero_si512(); }
  static Int load(const void* from) { return _mm512_loadu_si512(from); }
  static void store(void* to, Int x) { _mm512_storeu_si512(to, x); }
  // Four bytes in every lane.
  static Int broadcast4(const void* from) {
    int32_t word;
    __builtin_memcpy(&word, from, 4);
    return _mm512_set1_epi32(word);
  }
  // sum + four products of unsigned by signed bytes in each lane.
  static Int dot(Int sum, Int unsigned_bytes, Int signed_bytes) { return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes); }
  // Sums in 16 bits, and what they come to: never called.
  static Int dot_narrow(Int, Int, Int);
  static Int add_halves(Int, Int);
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int splat(int32_t x) { return _mm512_set1_epi32(x); }
  static Float load_float(const float* from) { return _mm512_loadu_ps(from); }
  // round_half_even(x * scale) + zero_point in one rounding: 1.5 * 2^23 on top leaves the integer in the lowest bits of the float.
  // |x * scale| has to stay below 2^22. `rounding` is what takes the rest of the bits off and adds the zero point.
  static Int rounding(int32_t zero_point) { return _mm512_set1_epi32(0x4b400000 - zero_point); }
  static Int rounded(Int x, Float scale, Int rounding) {
    const Float sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), scale, _mm512_set1_ps(12582912.0f));
    return _mm512_sub_epi32(_mm512_castps_si512(sum), rounding);
  }

  // Two voxels of two registers each, clamped to bytes, to two places.
  struct Clamp {
    Int lowest, highest;
    Clamp(int32_t low, int32_t high) : lowest(_mm512_set1_epi8(char(low))), highest(_mm512_set1_epi8(char(high))) {}
    Int operator()(Int x) const { return _mm512_min_epu8(_mm512_max_epu8(x, lowest), highest); }
  };
  static Int pack_two(const Int (&a)[2], const Int (&b)[2], const Clamp& clamp) {
    const Int packed = clamp(_mm512_packus_epi16(_mm512_packs_epi32(a[0], a[1]), _mm512_packs_epi32(b[0], b[1])));
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), packed);
  }
  // Bytes of the first and of the second voxel.
  static void store_first(uint8_t* to, Int packed) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(packed)); }
  static void store_second(uint8_t* to, Int packed) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_extracti64x4_epi64(packed, 1));
  }
  // Maximum of both voxels, in the first's place.
  static Int max_of_two(Int packed) { return _mm512_max_epu8(packed, _mm512_shuffle_i64x2(packed, packed, 0x4e)); }

  // Four voxels of one register each.
  static Int pack_four(Int a, Int b, Int c, Int d, const Clamp& clamp) {
    const Int packed = clamp(_mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
  }
  template <int kWhich>
  static void store_quarter(uint8_t* to, Int packed) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_extracti32x4_epi32(packed, kWhich));
  }
  static Int max_of_four(Int packed) {
    const Int pairs = max_of_two(packed);
    return _mm512_max_epu8(pairs, _mm512_shuffle_i64x2(pairs, pairs, 0xb1));
  }

  // Bytes: for the transforms of inputs and weights.
  static Int max_bytes(Int a, Int b) { return _mm512_max_epu8(a, b); }
};

// Registers of 64, 32 and 16 bytes under one name each.
struct Bytes64 {
  static constexpr int kCount = 64;
  using Type = __m512i;
  static Type load(const void* from) { return _mm512_loadu_si512(from); }
  static void store(void* to, Type x) { _mm512_storeu_si512(to, x); }
  static Type add(Type a, Type b) { return _mm512_add_epi8(a, b); }
  static Type sub(Type a, Type b) { return _mm512_sub_epi8(a, b); }
  static Type flip(Type x) { return _mm512_xor_si512(x, _mm512_set1_epi8(char(0x80))); }
  // Weights of 4 bits, sign-extended, from the low and the high halves of bytes.
  static Type low_half(Type x) {
    const Type eight = _mm512_set1_epi8(8);
    return sub(_mm512_xor_si512(_mm512_and_si512(x, _mm512_set1_epi8(15)), eight), eight);
  }
  static Type high_half(Type x) { return low_half(_mm512_srli_epi16(x, 4)); }
};
struct Bytes32 {
  static constexpr int kCount = 32;
  using Type = __m256i;
  static Type load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void store(void* to, Type x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
  static Type add(Type a, Type b) { return _mm256_add_epi8(a, b); }
  static Type sub(Type a, Type b) { return _mm256_sub_epi8(a, b); }
  static Type flip(Type x) { return _mm256_xor_si256(x, _mm256_set1_epi8(char(0x80))); }
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
using WideBytes = Bytes64;  // as wide as Simd::Int

}  // namespace
}  // namespace mq
