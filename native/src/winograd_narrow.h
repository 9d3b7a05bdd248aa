// Winograd for one register of outputs (16), where the general kernel would wait for its broadcasts and its buffers.
//
// A register holds four tiles by four outputs: transformed inputs are loaded 16 channels of four neighbouring tiles at a time, and a
// shuffle within the quarters takes the place of the broadcasts. Eight tiles go from input to output without leaving the
// first-level cache, and packing the sums to bytes needs no permutation.
#pragma once

#include "winograd.h"

// Sums stay in registers only where the functions that pass them on are one.
#define MQ_ONE_FUNCTION __attribute__((always_inline)) inline

namespace mq {
namespace {

constexpr int kQuad = 4, kQuads = 2, kNarrowTiles = kQuad * kQuads;

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
MQ_ONE_FUNCTION void transform_quad(const uint8_t* tile, ptrdiff_t row, ptrdiff_t column, int64_t channels, int64_t chunk, uint8_t* v) {
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

// One of the quads' tiles; the others keep what they had.
inline void transform_lonely(const uint8_t* tile, ptrdiff_t row, ptrdiff_t column, int64_t channels, int64_t chunk, uint8_t* v) {
  alignas(64) uint8_t out[16 * 16];
  transform_channels<Bytes16>(tile, row, column, out, 64, 16);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) Bytes16::store(v + narrow_place(channels, chunk, i, j), Bytes16::load(out + i * 64 + j * 16));
}

inline void transform_narrow(const Winograd& job, const TileWalk& at, int64_t count, uint8_t* v) {
  int64_t chunk = 0;
  for (int32_t p = 0; p < job.piece_count; ++p) {
    const Piece& piece = job.pieces[p];
    const uint8_t* tile = piece.data + at.depth * piece.depth_stride + 2 * at.row * piece.row_stride + 2 * at.column * piece.column_stride;
    const ptrdiff_t row = piece.row_stride, column = piece.column_stride;
    for (int32_t c = 0; c < piece.channels; c += 16, ++chunk) {
      for (int q = 0; q < kQuads; ++q) {
        const uint8_t* from = tile + c + q * kQuad * 2 * column;
        uint8_t* to = v + q * job.channels * 64;
        if (count >= (q + 1) * kQuad) {
          if (column == 16) transform_quad_dense(from, row, job.channels, chunk, to);
          else transform_quad(from, row, column, job.channels, chunk, to);
          continue;
        }
        for (int64_t t = 0; t < count - q * kQuad; ++t) transform_lonely(from + t * 2 * column, row, column, job.channels, chunk, to + t * 16);
      }
    }
  }
}

using NarrowSums = __m512i[kQuads][2][4];  // quad, result, group of four outputs

inline __m512i quarters(const void* from) { return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from))); }

template <int kStep>
MQ_ONE_FUNCTION void multiply_step(const __m512i (&x)[kQuads][2], const int8_t* weights, NarrowSums& sums) {
  constexpr _MM_PERM_ENUM word = _MM_PERM_ENUM(kStep * 0x55);
#pragma GCC unroll 2
  for (int place = 0; place < 2; ++place) {
    __m512i y[kQuads];
#pragma GCC unroll 2
    for (int q = 0; q < kQuads; ++q) y[q] = _mm512_shuffle_epi32(x[q][place], word);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m512i w = quarters(weights + kStep * 128 + place * 64 + g * 16);
#pragma GCC unroll 2
      for (int q = 0; q < kQuads; ++q) sums[q][place][g] = Simd::dot(sums[q][place][g], y[q], w);
    }
  }
}

// One row of tile positions: as multiply_row.
MQ_ONE_FUNCTION void multiply_narrow(const uint8_t* v, int64_t channels, int row, const int8_t* weights, NarrowSums& sums) {
  const int64_t chunks = channels / 16, quad = channels * 64;
#pragma GCC unroll 2
  for (int phase = 0; phase < 2; ++phase) {
    const uint8_t* first = v + narrow_place(channels, 0, row, phase == 0 ? 1 : 0);
    const uint8_t* second = v + narrow_place(channels, 0, row, phase == 0 ? 2 : 3);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const __m512i x[kQuads][2] = {{Bytes64::load(first), Bytes64::load(second)}, {Bytes64::load(first + quad), Bytes64::load(second + quad)}};
      multiply_step<0>(x, weights, sums);
      multiply_step<1>(x, weights, sums);
      multiply_step<2>(x, weights, sums);
      multiply_step<3>(x, weights, sums);
      first += 64, second += 64, weights += 4 * 128;
    }
    if (phase == 0) {
#pragma GCC unroll 2
      for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) {
          const __m512i sum = Simd::add(sums[q][0][g], sums[q][1][g]);
          sums[q][1][g] = Simd::sub(sums[q][0][g], sums[q][1][g]);
          sums[q][0][g] = sum;
        }
      }
    }
  }
}

MQ_ONE_FUNCTION void begin_with(const int32_t* start, NarrowSums& sums) {
#pragma GCC unroll 2
  for (int place = 0; place < 2; ++place) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m512i value = quarters(start + place * 16 + g * 4);
#pragma GCC unroll 2
      for (int q = 0; q < kQuads; ++q) sums[q][place][g] = value;
    }
  }
}

struct NarrowWriter {
  const Winograd& job;
  const int32_t first_channel;
  const Simd::Clamp clamp;
  const __m512i zero_point;
  __m512 scale[4];

  NarrowWriter(const Winograd& j, int32_t first)
      : job(j), first_channel(first), clamp(j.output.lowest, j.output.highest), zero_point(Simd::rounding(j.output.zero_point)) {
    for (int g = 0; g < 4; ++g) scale[g] = _mm512_castsi512_ps(quarters(j.output.scale + first + 4 * g));
  }

  // Bytes of one voxel of each of a quad's tiles.
  __m512i pack(const __m512i (&y)[4]) const {
    __m512i q[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) q[g] = Simd::rounded(y[g], scale[g], zero_point);
    return clamp(_mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])));
  }

  // Two voxels of each of `tiles` tiles: one line of the output. `columns`: those inside of it.
  void write_line(const TileWalk& at, int64_t quad, int line, __m512i left, __m512i right, int64_t tiles) const {
    const int64_t row = 2 * at.row + line, column = 2 * (at.column + quad * kQuad);
    if (!job.out.data || row >= job.rows) return;
    const int64_t columns = job.columns - column < 2 * tiles ? job.columns - column : 2 * tiles;
    uint8_t* to = job.out.at(at.depth, row, column) + first_channel;
    const __m512i low = _mm512_permutex2var_epi64(left, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), right);
    const __m512i high = _mm512_permutex2var_epi64(left, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), right);
    if (columns == 2 * kQuad && job.out.column_stride == 16) {
      Bytes64::store(to, low);
      Bytes64::store(to + 64, high);
      return;
    }
    alignas(64) uint8_t bytes[128];
    Bytes64::store(bytes, low);
    Bytes64::store(bytes + 64, high);
    for (int64_t c = 0; c < columns; ++c) Bytes16::store(to + c * job.out.column_stride, Bytes16::load(bytes + 16 * c));
  }

  void write_pooled(const TileWalk& at, int64_t quad, __m512i largest, int64_t tiles) const {
    const int64_t column = at.column + quad * kQuad;
    if (at.row >= job.pooled.rows) return;
    const int64_t columns = job.pooled.columns - column < tiles ? job.pooled.columns - column : tiles;
    uint8_t* to = job.pooled.at(at.depth, at.row, column) + first_channel;
    if (columns == kQuad && job.pooled.column_stride == 16) return Bytes64::store(to, largest);
    alignas(64) uint8_t bytes[64];
    Bytes64::store(bytes, largest);
    for (int64_t c = 0; c < columns; ++c) Bytes16::store(to + c * job.pooled.column_stride, Bytes16::load(bytes + 16 * c));
  }
};

// The last row of tile positions that a line of output needs, added to what the two middle rows gave.
template <int kLine>
MQ_ONE_FUNCTION void finish_line(const TileWalk& at, int64_t count, const uint8_t* v, const int8_t* weights, const int32_t* start,
                        const NarrowSums& other, const NarrowWriter& write, __m512i (&largest)[kQuads]) {
  NarrowSums sums;
  begin_with(start, sums);
  multiply_narrow(v, write.job.channels, kLine == 0 ? 0 : 3, weights, sums);
#pragma GCC unroll 2
  for (int q = 0; q < kQuads; ++q) {
    __m512i bytes[2];
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
      __m512i y[4];
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) y[g] = Simd::add(sums[q][b][g], other[q][b][g]);
      bytes[b] = write.pack(y);
    }
    const int64_t left = count - q * kQuad, tiles = left < kQuad ? left : kQuad;
    if (tiles > 0) write.write_line(at, q, kLine, bytes[0], bytes[1], tiles);
    const __m512i both = Simd::max_bytes(bytes[0], bytes[1]);
    largest[q] = kLine == 0 ? both : Simd::max_bytes(largest[q], both);
    if (kLine == 1 && tiles > 0 && write.job.pooled.data) write.write_pooled(at, q, largest[q], tiles);
  }
}

// Up to eight tiles of one row of tiles.
inline void run_narrow(const NarrowWriter& write, const TileWalk& at, int64_t count, const int8_t* weights,
                       const int32_t* start, const uint8_t* v) {
  alignas(64) static const int32_t nothing[32] = {};
  const int64_t channels = write.job.channels, row_weights = channels / 4 * 4 * kVectorBytes;
  NarrowSums sums, sum, difference;
  __m512i largest[kQuads];
  begin_with(nothing, sum);
  multiply_narrow(v, channels, 1, weights + row_weights, sum);
  begin_with(nothing, sums);
  multiply_narrow(v, channels, 2, weights + 2 * row_weights, sums);
#pragma GCC unroll 2
  for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        difference[q][b][g] = Simd::sub(sum[q][b][g], sums[q][b][g]);
        sum[q][b][g] = Simd::add(sum[q][b][g], sums[q][b][g]);
      }
    }
  }
  finish_line<0>(at, count, v, weights, start, sum, write, largest);
  finish_line<1>(at, count, v, weights + 3 * row_weights, start + 32, difference, write, largest);
}

void run_narrow_tiles(const Winograd& job, int32_t block, int64_t first_tile, int64_t last_tile, uint8_t* v) {
  const NarrowWriter write(job, Blocks{job.outputs, Simd::kLanes}.first(block));
  const int8_t* weights = job.weights + block * (int64_t(job.channels) / 4 * 16 * 2 * kVectorBytes);
  const int32_t* start = job.start + block * 8 * Simd::kLanes;
  for (int64_t tile = first_tile; tile < last_tile;) {
    const TileWalk at(job, tile);
    int64_t count = job.tile_columns() - at.column;
    count = count < last_tile - tile ? count : last_tile - tile;
    count = count < kNarrowTiles ? count : kNarrowTiles;
    transform_narrow(job, at, count, v);
    run_narrow(write, at, count, weights, start, v);
    tile += count;
  }
}

}  // namespace
}  // namespace mq
