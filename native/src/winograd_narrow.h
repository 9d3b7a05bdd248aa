// Winograd for one register of outputs (16), where the general kernel would wait for its broadcasts and its buffers.
//
// A register holds four tiles by four outputs: transformed inputs are loaded 16 channels of four neighbouring tiles at a time, and a
// shuffle within the quarters takes the place of the broadcasts. Both butterflies of the output are formed in registers, so that
// between the transformed inputs and the bytes nothing is stored, and packing the sums needs no permutation.
#pragma once

#include "winograd_narrow_inputs.h"

namespace mq {
namespace {

// --- products ---------------------------------------------------------------------------------------------------------

// Transformed inputs of kQuads quads: for each depth tap its channels, quad after quad.
struct NarrowInputs {
  const uint8_t* of_tap[kMostDepthTaps];
  int32_t taps;
  int64_t channels;
};

// Four outputs in every quarter.
inline __m512i quarters(const void* from) { return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from))); }

// For each quad: result (sum or difference), group of four outputs.
using NarrowSums = __m512i[kQuads][2][4];

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

// Two columns of positions of one row: columns 1 and 2, or 0 and 3.
template <int kRow, bool kMiddle>
MQ_ONE_FUNCTION void multiply_columns(const NarrowInputs& inputs, const int8_t* weights, NarrowSums& sums) {
  constexpr int64_t kChunkWeights = 4 * 128;
  const int64_t chunks = inputs.channels / 16, half = inputs.taps * chunks * kChunkWeights;
  weights += kRow * 2 * half + (kMiddle ? 0 : half);
  for (int32_t tap = 0; tap < inputs.taps; ++tap) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk, weights += kChunkWeights) {
      __m512i x[kQuads][2];
#pragma GCC unroll 2
      for (int q = 0; q < kQuads; ++q) {
        const uint8_t* v = inputs.of_tap[tap] + q * inputs.channels * 64;
        x[q][0] = Bytes64::load(v + narrow_place(inputs.channels, chunk, kRow, kMiddle ? 1 : 0));
        x[q][1] = Bytes64::load(v + narrow_place(inputs.channels, chunk, kRow, kMiddle ? 2 : 3));
      }
      multiply_step<0>(x, weights, sums);
      multiply_step<1>(x, weights, sums);
      multiply_step<2>(x, weights, sums);
      multiply_step<3>(x, weights, sums);
    }
  }
}

// a, b to a + b, a - b.
MQ_ONE_FUNCTION void butterfly(__m512i& a, __m512i& b) {
  const __m512i sum = Simd::add(a, b);
  b = Simd::sub(a, b);
  a = sum;
}

// A whole row of positions, begun with `start`: columns 1 and 2 summed apart, then columns 0 and 3 added to their sum and difference.
template <int kRow>
MQ_ONE_FUNCTION void multiply_row(const NarrowInputs& inputs, const int8_t* weights, const int32_t* start, NarrowSums& sums) {
#pragma GCC unroll 2
  for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) sums[q][n / 4][n % 4] = start ? quarters(start + n / 4 * 16 + n % 4 * 4) : Simd::zero();
  }
  multiply_columns<kRow, true>(inputs, weights, sums);
#pragma GCC unroll 2
  for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) butterfly(sums[q][0][g], sums[q][1][g]);
  }
  multiply_columns<kRow, false>(inputs, weights, sums);
}

// --- outputs ----------------------------------------------------------------------------------------------------------

struct NarrowWriter {
  const Winograd& job;
  const Simd::Clamp clamp;
  const __m512i rounding;
  __m512 scale[4];

  explicit NarrowWriter(const Winograd& j) : job(j), clamp(j.output.lowest, j.output.highest), rounding(Simd::rounding(j.output.zero_point)) {
    for (int g = 0; g < 4; ++g) scale[g] = _mm512_castsi512_ps(quarters(j.output.scale + 4 * g));
  }

  // Bytes of one voxel of each of a quad's tiles.
  MQ_ONE_FUNCTION __m512i pack(const __m512i (&y)[4]) const {
    __m512i q[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) q[g] = Simd::rounded(y[g], scale[g], rounding);
    return clamp(_mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])));
  }

  // Two voxels of each of `tiles` tiles: one line of the output.
  MQ_ONE_FUNCTION void write_line(const TileWalk& at, int line, __m512i left, __m512i right, int64_t tiles) const {
    const int64_t row = 2 * at.row + line, column = 2 * at.column;
    if (!job.out.data || row >= job.rows) return;
    const int64_t columns = job.columns - column < 2 * tiles ? job.columns - column : 2 * tiles;
    uint8_t* to = job.out.at(at.depth, row, column);
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

  MQ_ONE_FUNCTION void write_pooled(const TileWalk& at, __m512i largest, int64_t tiles) const {
    if (at.row >= job.pooled.rows) return;
    const int64_t columns = job.pooled.columns - at.column < tiles ? job.pooled.columns - at.column : tiles;
    uint8_t* to = job.pooled.at(at.depth, at.row, at.column);
    if (columns == kQuad && job.pooled.column_stride == 16) return Bytes64::store(to, largest);
    alignas(64) uint8_t bytes[64];
    Bytes64::store(bytes, largest);
    for (int64_t c = 0; c < columns; ++c) Bytes16::store(to + c * job.pooled.column_stride, Bytes16::load(bytes + 16 * c));
  }
};

// One line of a quad's output: its own row of positions on top of what the two middle rows gave. Returns the larger of each two voxels.
MQ_ONE_FUNCTION __m512i finish_line(const NarrowWriter& write, const TileWalk& at, int line, int64_t tiles, __m512i (&own)[2][4],
                                    const __m512i (&middle)[2][4]) {
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) own[n / 4][n % 4] = Simd::add(own[n / 4][n % 4], middle[n / 4][n % 4]);
  const __m512i left = write.pack(own[0]), right = write.pack(own[1]);
  if (tiles > 0) write.write_line(at, line, left, right, tiles);
  return Simd::max_bytes(left, right);
}

// Up to eight tiles of one row of tiles.
inline void run_quads(const NarrowWriter& write, const TileWalk& at, int64_t count, const NarrowInputs& inputs, const int8_t* weights,
                      const int32_t* start) {
  const int64_t tiles[kQuads] = {count < kQuad ? count : kQuad, count - kQuad};
  TileWalk second = at;
  second.column += kQuad;
  // The two middle rows of positions: their sum goes to the first line of output, their difference to the second.
  NarrowSums sum, difference, sums;
  multiply_row<1>(inputs, weights, nullptr, sum);
  multiply_row<2>(inputs, weights, nullptr, difference);
#pragma GCC unroll 2
  for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) butterfly(sum[q][n / 4][n % 4], difference[q][n / 4][n % 4]);
  }
  __m512i top[kQuads], bottom[kQuads];
  multiply_row<0>(inputs, weights, start, sums);
  top[0] = finish_line(write, at, 0, tiles[0], sums[0], sum[0]);
  top[1] = finish_line(write, second, 0, tiles[1], sums[1], sum[1]);
  multiply_row<3>(inputs, weights, start + 32, sums);
  bottom[0] = finish_line(write, at, 1, tiles[0], sums[0], difference[0]);
  bottom[1] = finish_line(write, second, 1, tiles[1], sums[1], difference[1]);
  if (!write.job.pooled.data) return;
  write.write_pooled(at, Simd::max_bytes(top[0], bottom[0]), tiles[0]);
  if (tiles[1] > 0) write.write_pooled(second, Simd::max_bytes(top[1], bottom[1]), tiles[1]);
}

// --- the stages together ----------------------------------------------------------------------------------------------

// Groups of tiles in the order they are run: neighbours along the depth follow one another, since what is transformed for one of
// them serves the next as well.
struct NarrowWalk {
  static constexpr int64_t kGroup = kQuads * kQuad;
  const Winograd& job;
  int64_t line, last_line, depths = 0, depth = 0;
  TileWalk at;

  NarrowWalk(const Winograd& j, int64_t first, int64_t last) : job(j), line(first), last_line(last), at(j, 0) {
    if (!done()) begin_row();
  }
  bool done() const { return line >= last_line; }
  bool begins_column() const { return depth == 0; }
  int64_t count() const { return job.tile_columns() - at.column < kGroup ? job.tile_columns() - at.column : kGroup; }
  void next() {
    if (++depth < depths) return move();
    depth = 0, at.column += kGroup;
    if (at.column < job.tile_columns()) return move();
    line += depths;
    if (!done()) begin_row();
  }

 private:
  void begin_row() {
    at.row = line / job.depths, at.column = 0, depth = 0;
    const int64_t end = (at.row + 1) * job.depths;
    depths = (end < last_line ? end : last_line) - line;
    move();
  }
  void move() { at.depth = line - at.row * job.depths + depth; }
};

// Transforms ahead of the products: what was just stored cannot be loaded at once without waiting.
class NarrowTransforms {
 public:
  NarrowTransforms(const Winograd& job, uint8_t* buffers) : job_(job), buffers_(buffers), pieces_(job.piece_count / job.depth_taps) {
    inputs_.taps = job.depth_taps, inputs_.channels = job.channels / job.depth_taps;
  }
  NarrowInputs prepare(const NarrowWalk& walk) {
    fetch(walk);
    const int32_t known = walk.begins_column() ? 0 : inputs_.taps - 1;
    for (int32_t tap = 0; tap < known; ++tap) inputs_.of_tap[tap] = inputs_.of_tap[tap + 1];
    for (int32_t tap = known; tap < inputs_.taps; ++tap) {
      // Twice as many buffers as taps: those in use are not written.
      uint8_t* v = buffers_ + slot_++ % (2 * inputs_.taps) * inputs_.channels * 64 * kQuads;
      inputs_.of_tap[tap] = v;
      TileWalk at = walk.at;
      for (int64_t left = walk.count(); left > 0; left -= kQuad, at.column += kQuad, v += inputs_.channels * 64)
        transform_narrow(job_, tap * pieces_, (tap + 1) * pieces_, at, left < kQuad ? left : kQuad, inputs_.channels, v);
    }
    return inputs_;
  }

 private:
  // Inputs are fetched two groups ahead: lines of a large tensor are far from the first-level cache, those of another depth from any.
  void fetch(const NarrowWalk& walk) const {
    constexpr int64_t kAhead = 2;
    TileWalk at = walk.at;
    int32_t first_piece = 0, first_row = 2;
    if (walk.depths > 1) {
      at.depth += kAhead;
      // Of a depth that comes into use all four lines.
      first_piece = (inputs_.taps - 1) * pieces_, first_row = 0;
      if (walk.depth + kAhead >= walk.depths) return;
    } else {
      at.column += kAhead * NarrowWalk::kGroup;
      if (at.column >= job_.tile_columns()) return;
    }
    for (int32_t p = first_piece; p < job_.piece_count; ++p) {
      const Piece& piece = job_.pieces[p];
      const uint8_t* tile = piece.data + at.depth * piece.depth_stride + 2 * at.row * piece.row_stride + 2 * at.column * piece.column_stride;
      const ptrdiff_t bytes = 2 * NarrowWalk::kGroup * piece.column_stride;
      for (int32_t row = first_row; row < 4; ++row)
        for (ptrdiff_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(tile + row * piece.row_stride + byte, 0, 3);
    }
  }

  const Winograd& job_;
  uint8_t* buffers_;
  const int32_t pieces_;
  NarrowInputs inputs_;
  int64_t slot_ = 0;
};

size_t narrow_scratch(const Winograd& job) { return size_t(job.channels) * 2 * kQuads * 64; }

// Tiles are counted (row, depth, column) here, and whole lines of them asked for.
void run_narrow_tiles(const Winograd& job, int64_t first_tile, int64_t last_tile, uint8_t* scratch) {
  const NarrowWriter write(job);
  NarrowTransforms transforms(job, scratch);
  NarrowWalk walk(job, first_tile / job.tile_columns(), last_tile / job.tile_columns());
  if (walk.done()) return;
  for (NarrowInputs inputs = transforms.prepare(walk);;) {
    const TileWalk at = walk.at;
    const int64_t count = walk.count();
    walk.next();
    const NarrowInputs present = inputs;
    if (!walk.done()) inputs = transforms.prepare(walk);
    run_quads(write, at, count, present, job.weights, job.start);
    if (walk.done()) return;
  }
}

}  // namespace
}  // namespace mq
