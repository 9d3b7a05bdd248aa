// What a kernel set offers: the functions compiled for one kind of processor, and the layouts they expect.
//
// All sets give identical integers. A set's file (kernels_*.cpp) is compiled with that processor's instructions and must not be
// entered elsewhere; mq::kernel_sets() returns those this processor runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "moves.h"
#include "views.h"

namespace mq {

// Accumulators to bytes: q = clamp(round_half_even(acc * 2^-shift) + zero_point, lowest, highest), one shift a channel.
struct Output {
  const float* scale = nullptr;    // 2^-shift, in the order of the kernel's lanes
  const int32_t* shift = nullptr;  // the same as integers
  bool in_float = true;            // every accumulator is below 2^24 and every product with its scale below 2^22
  int32_t zero_point = 0, lowest = 0, highest = 255;
  int32_t accumulators_shift = 0;  // accumulators are 2^this times the true ones
};

// Weights in their stored width. Kernels sum four bytes into each 32-bit lane, so the unit is a `step`: four input bytes by one
// block of outputs. A block is one or two registers; with two, a byte holds a 4-bit weight of each.
struct StoredWeights {
  const uint8_t* data = nullptr;  // (blocks, steps, taps, lanes, 4); 8-bit weights of two registers: (..., 2, lanes, 4)
  int32_t bits = 8;               // 4 or 8
  int32_t outputs = 0;            // padded to 16
  int64_t steps = 0;
  int32_t taps = 1;               // 9 for Winograd, whose steps are of input channels alone; 1 for direct convolution
};

// A piece of the input of a Winograd convolution: some channels of one tensor, at one depth offset.
struct Piece {
  const uint8_t* data = nullptr;  // the input voxel of output voxel (0, 0, 0) and tap (0, 0)
  ptrdiff_t depth_stride = 0, row_stride = 0, column_stride = 0;
  int32_t channels = 0;           // a multiple of 16
};

// A 3x3 convolution of stride 1 by F(2x2, 3x3).
struct Winograd {
  const Piece* pieces = nullptr;
  int32_t piece_count = 0;
  int32_t channels = 0;           // of all pieces
  int32_t depth_taps = 1, depth_dilation = 1;  // pieces are those of one tap, then those of the next
  int32_t outputs = 0;            // padded to 16
  int32_t depths = 1, rows = 0, columns = 0;  // of the output
  const int8_t* weights = nullptr;            // expanded
  const int32_t* start = nullptr;             // what accumulators begin with, (blocks, 2, block)
  Output output;
  View out;
  View pooled;                    // maximum over 2x2, written beside `out` where its data is not null

  int64_t tile_rows() const { return (int64_t(rows) + 1) / 2; }
  int64_t tile_columns() const { return (int64_t(columns) + 1) / 2; }
  int64_t tiles() const { return depths * tile_rows() * tile_columns(); }
};

// A stretch of input bytes that are consecutive in memory and take part in every output voxel's sum.
struct Run {
  const uint8_t* data = nullptr;  // of output voxel (0, 0, 0)
  ptrdiff_t depth_step = 0, row_step = 0, column_step = 0;  // from one output voxel to the next
  int32_t steps = 0;              // of four bytes
};

// Any convolution as a sum over runs.
struct Direct {
  const Run* runs = nullptr;
  int32_t run_count = 0;
  int64_t steps = 0;              // of all runs
  int32_t outputs = 0;            // true number
  int32_t depths = 1, rows = 0, columns = 0;  // output voxels computed
  const int8_t* weights = nullptr;            // expanded
  const int32_t* start = nullptr;             // (padded outputs), in the order of the lanes
  Output output;
  // Where voxel (0, 0, 0) and its neighbours go: bytes of one voxel consecutive, or accumulators, channel after channel.
  uint8_t* bytes = nullptr;
  int32_t* accumulators = nullptr;
  bool relu = false;              // of accumulators
  int32_t narrow_steps = 0;       // the steps whose products 16 bits can sum, two sums a lane, whatever the input
  ptrdiff_t depth_stride = 0, row_stride = 0, column_stride = 0, channel_stride = 0;  // in elements
  bool may_write_padding = false; // bytes up to the next multiple of 16 channels may be written
};

struct KernelSet {
  const char* name;
  int32_t lanes;        // 32-bit sums in a register
  bool winograd;        // whether its byte products are exact for Winograd's operands, and faster than direct
  int64_t (*tile_unit)(const Winograd& job);      // tiles are shared out in whole units
  int64_t (*tiles_at_once)(const Winograd& job);  // most tiles of one call, so that its buffers stay in cache
  size_t (*winograd_scratch)(const Winograd& job);
  void (*winograd_run)(const Winograd& job, int64_t first_tile, int64_t last_tile, uint8_t* scratch);
  void (*expand_winograd)(const StoredWeights& stored, int64_t first, int64_t last, int8_t* expanded);
  void (*expand_direct)(const StoredWeights& stored, int64_t first, int64_t last, int8_t* expanded);
  void (*direct_run)(const Direct& job, int64_t first_line, int64_t last_line);
  const Moves* moves;
};

// --- layouts ----------------------------------------------------------------------------------------------------------

// Outputs come in blocks of two registers, the last of one where no more are left.
struct Blocks {
  int32_t outputs, lanes;  // outputs: padded to 16
  int32_t count() const { return (outputs + 2 * lanes - 1) / (2 * lanes); }
  int32_t registers(int32_t block) const { return outputs - block * 2 * lanes > lanes ? 2 : 1; }
  int32_t first(int32_t block) const { return block * 2 * lanes; }
};

// The output channel, counted within its block, of a lane: chosen so that packing 32-bit sums to bytes leaves natural order.
inline int32_t channel_of_lane(int32_t registers, int32_t reg, int32_t lane) {
  return registers == 1 ? lane : lane / 4 * 8 + reg * 4 + lane % 4;
}

inline int32_t padded16(int32_t channels) { return (channels + 15) / 16 * 16; }

// The sets this processor can run, the fastest first; the last, "portable", runs everywhere.
const std::vector<const KernelSet*>& kernel_sets();

}  // namespace mq
