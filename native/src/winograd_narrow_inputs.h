// Inputs of the narrow Winograd kernel: four neighbouring tiles by 16 channels a register.
#pragma once

#include "winograd.h"

// Sums stay in registers only where the functions that pass them on are one.
#define MQ_ONE_FUNCTION __attribute__((always_inline)) inline

namespace mq {
namespace {

constexpr int kQuad = 4, kQuads = 2, kMostDepthTaps = 8;

// Inputs of one quad and 16 channels at position (i, j): 64 bytes, tile after tile.
inline int64_t narrow_place(int64_t channels, int64_t chunk, int i, int j) { return ((i * 4 + j) * (channels / 16) + chunk) * 64; }

MQ_ONE_FUNCTION void store_positions(const __m512i (&s)[4], int i, int64_t channels, int64_t chunk, uint8_t* v) {
  const auto first = Bytes64::flip(s[0]), second = Bytes64::flip(s[1]);
  const auto sum = Bytes64::add(second, s[2]);
  Bytes64::store(v + narrow_place(channels, chunk, i, 0), Bytes64::sub(first, s[2]));
  Bytes64::store(v + narrow_place(channels, chunk, i, 1), i == 1 ? Bytes64::flip(sum) : sum);
  Bytes64::store(v + narrow_place(channels, chunk, i, 2), Bytes64::sub(s[2], second));
  Bytes64::store(v + narrow_place(channels, chunk, i, 3), Bytes64::sub(second, s[3]));
}

// Voxels of 16 bytes that follow one another: a register holds four, and columns are taken apart after the butterfly along rows.
MQ_ONE_FUNCTION void transform_quad_dense(const uint8_t* tile, ptrdiff_t row, int64_t channels, int64_t chunk, uint8_t* v) {
  __m512i d[3][4];
#pragma GCC unroll 3
  for (int part = 0; part < 3; ++part) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const uint8_t* at = tile + r * row + part * 64;
      // Of the last four voxels two belong to the tiles.
      d[part][r] = part < 2 ? Bytes64::load(at) : _mm512_castsi256_si512(Bytes32::load(at));
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512i b[3];
#pragma GCC unroll 3
    for (int part = 0; part < 3; ++part) {
      const auto& x = d[part];
      b[part] = i == 0 ? Bytes64::sub(x[0], x[2]) : i == 1 ? Bytes64::add(x[1], x[2]) : i == 2 ? Bytes64::sub(x[2], x[1]) : Bytes64::sub(x[1], x[3]);
    }
    const auto even = _mm512_shuffle_i32x4(b[0], b[1], 0x88), odd = _mm512_shuffle_i32x4(b[0], b[1], 0xdd);
    const __m512i s[4] = {even, odd, _mm512_alignr_epi64(b[2], even, 2),
                          _mm512_alignr_epi64(_mm512_shuffle_i32x4(b[2], b[2], 0x55), odd, 2)};
    store_positions(s, i, channels, chunk, v);
  }
}

inline __m512i gather_quarters(const uint8_t* at, ptrdiff_t step) {
  const __m512i a = _mm512_castsi128_si512(Bytes16::load(at));
  const __m512i b = _mm512_inserti32x4(a, Bytes16::load(at + step), 1);
  const __m512i c = _mm512_inserti32x4(b, Bytes16::load(at + 2 * step), 2);
  return _mm512_inserti32x4(c, Bytes16::load(at + 3 * step), 3);
}

// Voxels anywhere.
inline void transform_quad(const uint8_t* tile, ptrdiff_t row, ptrdiff_t column, int64_t channels, int64_t chunk, uint8_t* v) {
  __m512i s[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const uint8_t* at = tile + j * column;
    const auto d0 = gather_quarters(at, 2 * column), d1 = gather_quarters(at + row, 2 * column);
    const auto d2 = gather_quarters(at + 2 * row, 2 * column), d3 = gather_quarters(at + 3 * row, 2 * column);
    s[0][j] = Bytes64::sub(d0, d2), s[1][j] = Bytes64::add(d1, d2), s[2][j] = Bytes64::sub(d2, d1), s[3][j] = Bytes64::sub(d1, d3);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store_positions(s[i], i, channels, chunk, v);
}

// One tile of a quad that reaches over the edge; the others keep what they had.
inline void transform_lonely(const uint8_t* tile, ptrdiff_t row, ptrdiff_t column, int64_t channels, int64_t chunk, uint8_t* v) {
  alignas(64) uint8_t out[16 * 16];
  transform_channels<Bytes16>(tile, row, column, out, 64, 16);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) Bytes16::store(v + narrow_place(channels, chunk, i, j), Bytes16::load(out + i * 64 + j * 16));
}

// Pieces [first, last) of up to four tiles: the channels of one depth.
inline void transform_narrow(const Winograd& job, int32_t first, int32_t last, const TileWalk& at, int64_t count, int64_t channels, uint8_t* v) {
  int64_t chunk = 0;
  for (int32_t p = first; p < last; ++p) {
    const Piece& piece = job.pieces[p];
    const uint8_t* tile = piece.data + at.depth * piece.depth_stride + 2 * at.row * piece.row_stride + 2 * at.column * piece.column_stride;
    const ptrdiff_t row = piece.row_stride, column = piece.column_stride;
    for (int32_t c = 0; c < piece.channels; c += 16, ++chunk) {
      if (count == kQuad && column == 16) {
        transform_quad_dense(tile + c, row, channels, chunk, v);
      } else if (count == kQuad) {
        transform_quad(tile + c, row, column, channels, chunk, v);
      } else {
        for (int64_t t = 0; t < count; ++t) transform_lonely(tile + c + t * 2 * column, row, column, channels, chunk, v + t * 16);
      }
    }
  }
}

}  // namespace
}  // namespace mq
