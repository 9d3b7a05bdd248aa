// Inputs of few channels, whose neighbours lie side by side: a register holds two or four columns of a tile, so that the transform
// takes as few loads and stores as with many channels.
#pragma once

#include "simd_avx512vnni.h"

namespace mq {
namespace {

// 32 channels, voxels 32 bytes apart. Where they are all channels of the layer, columns lie side by side in V too.
inline void transform_pairs(const uint8_t* tile, ptrdiff_t row, uint8_t* v, int64_t v_row, int64_t channels) {
  using B = Bytes64;
  const __m512i second_half = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi8(char(0x80)), 1);
  __m512i a[4], b[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) a[r] = B::load(tile + r * row), b[r] = B::load(tile + r * row + 64);
  // As in transform_channels: columns 0 and 1 carry 128.
  a[0] = B::flip(a[0]), a[1] = B::flip(a[1]);
  const __m512i left[4] = {B::sub(a[0], a[2]), B::add(a[1], a[2]), B::sub(a[2], a[1]), B::sub(a[1], a[3])};
  const __m512i right[4] = {B::sub(b[0], b[2]), B::add(b[1], b[2]), B::sub(b[2], b[1]), B::sub(b[1], b[3])};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i two = _mm512_shuffle_i64x2(right[i], right[i], 0x44);
    __m512i first = _mm512_mask_sub_epi8(B::add(left[i], two), 0x00000000ffffffffull, left[i], two);
    if (i == 1) first = _mm512_xor_si512(first, second_half);
    const __m512i second = B::sub(_mm512_shuffle_i64x2(right[i], left[i], 0xe4), _mm512_shuffle_i64x2(left[i], right[i], 0xee));
    uint8_t* to = v + i * v_row;
    if (channels == 32) {
      B::store(to, first);
      B::store(to + 64, second);
      continue;
    }
    Simd::store_first(to, first), Simd::store_second(to + channels, first);
    Simd::store_first(to + 2 * channels, second), Simd::store_second(to + 3 * channels, second);
  }
}

// 16 channels, voxels 16 bytes apart: all four columns in a register.
inline void transform_quadruples(const uint8_t* tile, ptrdiff_t row, uint8_t* v, int64_t v_row, int64_t channels) {
  using B = Bytes64;
  const __m512i first_half = _mm512_inserti64x4(_mm512_set1_epi8(char(0x80)), _mm256_setzero_si256(), 1);
  const __m512i second_quarter = _mm512_inserti32x4(_mm512_setzero_si512(), _mm_set1_epi8(char(0x80)), 1);
  const __m512i d0 = _mm512_xor_si512(B::load(tile), first_half), d1 = _mm512_xor_si512(B::load(tile + row), first_half);
  const __m512i d2 = B::load(tile + 2 * row), d3 = B::load(tile + 3 * row);
  const __m512i s[4] = {B::sub(d0, d2), B::add(d1, d2), B::sub(d2, d1), B::sub(d1, d3)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i one = _mm512_shuffle_i32x4(s[i], s[i], 0x64), other = _mm512_shuffle_i32x4(s[i], s[i], 0xda);
    __m512i all = _mm512_mask_add_epi8(B::sub(one, other), 0x00000000ffff0000ull, one, other);
    if (i == 1) all = _mm512_xor_si512(all, second_quarter);
    uint8_t* to = v + i * v_row;
    if (channels == 16) {
      B::store(to, all);
      continue;
    }
    Simd::store_quarter<0>(to, all), Simd::store_quarter<1>(to + channels, all);
    Simd::store_quarter<2>(to + 2 * channels, all), Simd::store_quarter<3>(to + 3 * channels, all);
  }
}

}  // namespace
}  // namespace mq
