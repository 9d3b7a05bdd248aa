// Where a tensor lies: channels last, a row of voxels after another, with a ring around it that holds real zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mq {

// One image's tensor, (D, I, J, C) with D = 1 for 2D; axes are named depth, row, column.
// `data` is voxel (0, 0, 0), channel 0. A voxel's channels are contiguous; `column_stride` bytes lie between voxels of a row.
// Bytes between `channels` and `column_stride` belong to the tensor: they may be written (with anything) and are read at most
// together with zero weights.
struct View {
  uint8_t* data = nullptr;
  int32_t channels = 0;
  int32_t depths = 1, rows = 0, columns = 0;
  ptrdiff_t depth_stride = 0, row_stride = 0, column_stride = 0;

  uint8_t* at(int64_t depth, int64_t row, int64_t column = 0) const {
    return data + depth * depth_stride + row * row_stride + column * column_stride;
  }
  int64_t lines() const { return int64_t(depths) * rows; }
};

// Voxels of the ring before and after the tensor along each axis (depth, row, column).
struct Ring {
  int32_t before[3] = {0, 0, 0};
  int32_t after[3] = {0, 0, 0};
};

// round_half_even(x * 2^-shift) + zero_point, clamped to [lowest, highest]; a negative shift is one to the left.
struct Requantization {
  int32_t shift = 0;
  int32_t zero_point = 0;
  int32_t lowest = 0, highest = 255;
};

}  // namespace mq
