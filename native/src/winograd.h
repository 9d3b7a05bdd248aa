// Exact Winograd convolution, F(2x2, 3x3) in 8-bit products (docs/native.md; Lavin and Gray 2016 for the algorithm).
//
// With 2G on both sides 4-bit weights become integers in [-72, 72], and B^T d B of 6-bit inputs spans 252. The transform of inputs
// is done in bytes modulo 256: fifteen of the sixteen positions are signed and carry 128 on top, so that all are unsigned operands
// of the byte product; what that adds to the sums is known from the weights and taken off by the value the sums begin with.
// The outputs are 4 times the convolution, without remainder.
//
// A block of tiles goes through three stages whose buffers stay in cache: transformed inputs V (row of the tile, tile, column,
// channels), sums Z after the butterfly along columns (tile, row, 2, outputs), bytes.
#pragma once

#include "kernels.h"
#include "requantize.h"
#ifdef __AVX512VNNI__
#include "winograd_inputs_avx512.h"
#endif

namespace mq {
namespace {

constexpr int64_t kVectorBytes = Simd::kLanes * 4;
constexpr int64_t kPad = 64;  // keeps the store streams of the transform off each other's cache sets

// Four columns; tiles of many channels would all begin at the same cache set.
int64_t v_tile_bytes(int64_t channels) { return 4 * channels + (channels >= 256 ? kPad : 0); }
int64_t v_row_bytes(int64_t tiles, int64_t channels) { return tiles * v_tile_bytes(channels) + kPad; }
int64_t z_tile_values(int registers) { return 8 * registers * Simd::kLanes + 16; }

// Where the tiles of a block lie, walked in order.
struct TileWalk {
  const Winograd& job;
  int64_t depth, row, column;
  TileWalk(const Winograd& j, int64_t tile) : job(j) {
    const int64_t across = j.tile_columns(), line = tile / across;
    column = tile % across, row = line % j.tile_rows(), depth = line / j.tile_rows();
  }
  void next() {
    if (++column < job.tile_columns()) return;
    column = 0;
    if (++row == job.tile_rows()) row = 0, ++depth;
  }
};

// --- inputs -----------------------------------------------------------------------------------------------------------

// One tile, kCount channels: 4x4 voxels to the 16 positions.
template <class B>
inline void transform_channels(const uint8_t* tile, ptrdiff_t row, ptrdiff_t column, uint8_t* v, int64_t v_row, int64_t channels) {
  typename B::Type s[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const uint8_t* at = tile + j * column;
    auto d0 = B::load(at), d1 = B::load(at + row);
    const auto d2 = B::load(at + 2 * row), d3 = B::load(at + 3 * row);
    // Columns 0 and 1 carry 128: each position along a row of the tile has exactly one of them.
    if (j < 2) d0 = B::flip(d0), d1 = B::flip(d1);
    s[0][j] = B::sub(d0, d2);
    s[1][j] = B::add(d1, d2);
    s[2][j] = B::sub(d2, d1);
    s[3][j] = B::sub(d1, d3);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    uint8_t* to = v + i * v_row;
    const auto sum = B::add(s[i][1], s[i][2]);
    B::store(to, B::sub(s[i][0], s[i][2]));
    // Position (1, 1) is a sum of four inputs, at most 252: unsigned as it is.
    B::store(to + channels, i == 1 ? B::flip(sum) : sum);
    B::store(to + 2 * channels, B::sub(s[i][2], s[i][1]));
    B::store(to + 3 * channels, B::sub(s[i][1], s[i][3]));
  }
}

inline void transform_tile(const Winograd& job, int64_t depth, int64_t row, int64_t column, uint8_t* v, int64_t v_row) {
  for (int32_t p = 0; p < job.piece_count; ++p) {
    const Piece& piece = job.pieces[p];
    const uint8_t* tile = piece.data + depth * piece.depth_stride + 2 * row * piece.row_stride + 2 * column * piece.column_stride;
    int32_t c = 0;
#ifdef __AVX512VNNI__
    if (piece.channels == piece.column_stride && (piece.channels == 32 || piece.channels == 16)) {
      (piece.channels == 32 ? transform_pairs : transform_quadruples)(tile, piece.row_stride, v, v_row, job.channels);
      c = piece.channels;
    }
#endif
    for (; c + WideBytes::kCount <= piece.channels; c += WideBytes::kCount)
      transform_channels<WideBytes>(tile + c, piece.row_stride, piece.column_stride, v + c, v_row, job.channels);
    for (; c + 32 <= piece.channels; c += 32)
      transform_channels<Bytes32>(tile + c, piece.row_stride, piece.column_stride, v + c, v_row, job.channels);
    for (; c < piece.channels; c += 16)
      transform_channels<Bytes16>(tile + c, piece.row_stride, piece.column_stride, v + c, v_row, job.channels);
    v += piece.channels;
  }
}

// --- products ---------------------------------------------------------------------------------------------------------

// One row of the tile positions of kTiles tiles by `registers` registers of outputs.
// Columns 1 and 2 are summed apart; their sum and difference go on as the two results, to which columns 0 and 3 are added.
template <int kRegisters, int kTiles>
inline void multiply_row(const uint8_t* v, int64_t channels, const int8_t* weights, int64_t steps, const int32_t* start, int32_t* z,
                         int64_t z_tile) {
  using Int = Simd::Int;
  Int one[kTiles][kRegisters], two[kTiles][kRegisters];
#pragma GCC unroll 16
  for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) {
      one[t][r] = Simd::load(start + r * Simd::kLanes);
      two[t][r] = Simd::load(start + (kRegisters + r) * Simd::kLanes);
    }
  }
  const int64_t tile = v_tile_bytes(channels);
  for (int phase = 0; phase < 2; ++phase) {
    const uint8_t* first = v + (phase == 0 ? channels : 0);
    const uint8_t* second = v + (phase == 0 ? 2 : 3) * channels;
    for (int64_t step = 0; step < steps; ++step) {
      Int a[kRegisters], b[kRegisters];
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) {
        a[r] = Simd::load(weights + r * kVectorBytes);
        b[r] = Simd::load(weights + (kRegisters + r) * kVectorBytes);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t) {
        const Int x = Simd::broadcast4(first + t * tile);
#pragma GCC unroll 2
        for (int r = 0; r < kRegisters; ++r) one[t][r] = Simd::dot(one[t][r], x, a[r]);
        const Int y = Simd::broadcast4(second + t * tile);
#pragma GCC unroll 2
        for (int r = 0; r < kRegisters; ++r) two[t][r] = Simd::dot(two[t][r], y, b[r]);
      }
      first += 4, second += 4, weights += 2 * kRegisters * kVectorBytes;
    }
    if (phase == 0) {
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 2
        for (int r = 0; r < kRegisters; ++r) {
          const Int sum = Simd::add(one[t][r], two[t][r]);
          two[t][r] = Simd::sub(one[t][r], two[t][r]);
          one[t][r] = sum;
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) {
      Simd::store(z + t * z_tile + r * Simd::kLanes, one[t][r]);
      Simd::store(z + t * z_tile + (kRegisters + r) * Simd::kLanes, two[t][r]);
    }
  }
}

// Brings the inputs of the tiles that come next nearer while the products of these are formed: what the rows above have not
// brought already, two lines of two voxels a tile.
class Prefetch {
 public:
  // `tiles` from `first` on, spread over the products of `during` tiles.
  Prefetch(const Winograd& job, int64_t first, int64_t tiles, int64_t during) : job_(job), at_(job, first), left_(tiles * job.piece_count) {
    const int64_t calls = 4 * ((during + Simd::kTiles - 1) / Simd::kTiles) * Blocks{job.outputs, Simd::kLanes}.count();
    each_ = (left_ + calls - 1) / calls;
  }
  void some() {
    for (int64_t n = each_; n > 0 && left_ > 0; --n, --left_) one();
  }

 private:
  void one() {
    const Piece& piece = job_.pieces[piece_];
    const uint8_t* tile = piece.data + at_.depth * piece.depth_stride + (2 * at_.row + 2) * piece.row_stride +
                          (2 * at_.column + 2) * piece.column_stride;
    for (int row = 0; row < 2; ++row)
      for (ptrdiff_t byte = 0; byte < 2 * piece.column_stride; byte += 64) __builtin_prefetch(tile + row * piece.row_stride + byte, 0, 2);
    if (++piece_ < job_.piece_count) return;
    piece_ = 0;
    at_.next();
  }

  const Winograd& job_;
  TileWalk at_;
  int32_t piece_ = 0;
  int64_t left_ = 0, each_ = 0;
};

template <int kRegisters, int kTiles>
void multiply_tiles(const uint8_t* v, int64_t v_row, int64_t channels, const int8_t* weights, const int32_t* start, int32_t* z,
                    int64_t first, int64_t last, Prefetch& prefetch) {
  alignas(64) static const int32_t nothing[2 * kRegisters * Simd::kLanes] = {};
  const int64_t steps = channels / 4, z_tile = z_tile_values(kRegisters);
  const int64_t row_weights = steps * 4 * kRegisters * kVectorBytes;
  for (int row = 0; row < 4; ++row) {
    const int32_t* begins = row == 0 ? start : row == 3 ? start + 2 * kRegisters * Simd::kLanes : nothing;
    for (int64_t t = first; t < last; t += kTiles) {
      prefetch.some();
      multiply_row<kRegisters, kTiles>(v + row * v_row + t * v_tile_bytes(channels), channels, weights + row * row_weights, steps, begins,
                                       z + t * z_tile + row * 2 * kRegisters * Simd::kLanes, z_tile);
    }
  }
}

// --- outputs ----------------------------------------------------------------------------------------------------------

// Sums of one tile after the butterfly along rows: 4 times the convolution at voxels (0,0), (0,1), (1,0), (1,1).
template <int kRegisters>
inline void finish_sums(const int32_t* z, Simd::Int (&y)[4][kRegisters]) {
#pragma GCC unroll 2
  for (int b = 0; b < 2; ++b) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) {
      const int32_t* at = z + (b * kRegisters + r) * Simd::kLanes;
      constexpr int row = 2 * kRegisters * Simd::kLanes;
      const Simd::Int z1 = Simd::load(at + row), z2 = Simd::load(at + 2 * row);
      y[b][r] = Simd::add(Simd::load(at), Simd::add(z1, z2));
      y[2 + b][r] = Simd::add(Simd::load(at + 3 * row), Simd::sub(z1, z2));
    }
  }
}

// A tile that reaches over the edge, or whose numbers need more than float32: voxel by voxel.
inline void write_tile_slowly(const Winograd& job, const TileWalk& at, int32_t first_channel, int32_t registers, const int32_t* sums) {
  const int32_t width = registers * Simd::kLanes;
  uint8_t largest[2 * Simd::kLanes] = {};
  for (int v = 0; v < 4; ++v) {
    const int64_t row = 2 * at.row + v / 2, column = 2 * at.column + v % 2;
    if (row >= job.rows || column >= job.columns) continue;
    uint8_t bytes[2 * Simd::kLanes];
    for (int32_t lane = 0; lane < width; ++lane) {
      const int32_t channel = channel_of_lane(registers, lane / Simd::kLanes, lane % Simd::kLanes);
      const int64_t q = rounded_shift(sums[v * width + lane], job.output.shift[first_channel + lane] + job.output.accumulators_shift) +
                        job.output.zero_point;
      bytes[channel] = uint8_t(q < job.output.lowest ? job.output.lowest : q > job.output.highest ? job.output.highest : q);
    }
    if (job.out.data) __builtin_memcpy(job.out.at(at.depth, row, column) + first_channel, bytes, size_t(width));
    for (int32_t c = 0; c < width; ++c) largest[c] = bytes[c] > largest[c] ? bytes[c] : largest[c];
  }
  if (job.pooled.data && at.row < job.pooled.rows && at.column < job.pooled.columns)
    __builtin_memcpy(job.pooled.at(at.depth, at.row, at.column) + first_channel, largest, size_t(width));
}

// The four voxels of a whole tile, already scaled and rounded; two registers of outputs.
inline void write_packed(const Winograd& job, const TileWalk& at, int32_t first_channel, const Simd::Int (&y)[4][2],
                         const Simd::Clamp& clamp) {
  const Simd::Int top = Simd::pack_two(y[0], y[1], clamp), bottom = Simd::pack_two(y[2], y[3], clamp);
  if (job.out.data) {
    uint8_t* to = job.out.at(at.depth, 2 * at.row, 2 * at.column) + first_channel;
    Simd::store_first(to, top);
    Simd::store_second(to + job.out.column_stride, top);
    Simd::store_first(to + job.out.row_stride, bottom);
    Simd::store_second(to + job.out.row_stride + job.out.column_stride, bottom);
  }
  if (job.pooled.data)
    Simd::store_first(job.pooled.at(at.depth, at.row, at.column) + first_channel, Simd::max_of_two(Simd::max_bytes(top, bottom)));
}

inline void write_packed(const Winograd& job, const TileWalk& at, int32_t first_channel, const Simd::Int (&y)[4][1],
                         const Simd::Clamp& clamp) {
  const Simd::Int packed = Simd::pack_four(y[0][0], y[1][0], y[2][0], y[3][0], clamp);
  if (job.out.data) {
    uint8_t* to = job.out.at(at.depth, 2 * at.row, 2 * at.column) + first_channel;
    Simd::store_quarter<0>(to, packed);
    Simd::store_quarter<1>(to + job.out.column_stride, packed);
    Simd::store_quarter<2>(to + job.out.row_stride, packed);
    Simd::store_quarter<3>(to + job.out.row_stride + job.out.column_stride, packed);
  }
  if (job.pooled.data) Simd::store_quarter<0>(job.pooled.at(at.depth, at.row, at.column) + first_channel, Simd::max_of_four(packed));
}

template <int kRegisters>
void write_tiles(const Winograd& job, int32_t first_channel, const int32_t* z, int64_t first_tile, int64_t count) {
  using Int = Simd::Int;
  const int64_t z_tile = z_tile_values(kRegisters);
  const Simd::Clamp clamp(job.output.lowest, job.output.highest);
  const Int rounding = Simd::rounding(job.output.zero_point);
  Simd::Float scale[kRegisters];
  for (int r = 0; r < kRegisters; ++r) scale[r] = Simd::load_float(job.output.scale + first_channel + r * Simd::kLanes);
  TileWalk at(job, first_tile);
  for (int64_t t = 0; t < count; ++t, at.next()) {
    Int y[4][kRegisters];
    finish_sums<kRegisters>(z + t * z_tile, y);
    const bool whole = 2 * at.row + 1 < job.rows && 2 * at.column + 1 < job.columns;
    if (!whole || !job.output.in_float) {
      alignas(64) int32_t sums[4 * kRegisters * Simd::kLanes];
      for (int v = 0; v < 4; ++v)
        for (int r = 0; r < kRegisters; ++r) Simd::store(sums + (v * kRegisters + r) * Simd::kLanes, y[v][r]);
      write_tile_slowly(job, at, first_channel, kRegisters, sums);
      continue;
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) y[v][r] = Simd::rounded(y[v][r], scale[r], rounding);
    }
    write_packed(job, at, first_channel, y, clamp);
  }
}

}  // namespace
}  // namespace mq
