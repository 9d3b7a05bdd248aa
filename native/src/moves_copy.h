// Copies into and out of the layout, and the ring. Included by moves_impl.h only.
#pragma once

#include "lanes.h"
#include "moves.h"

namespace mq {
namespace {

// `columns` voxels from `to` on, their channels only: the bytes after them may be another tensor's, joined along the
// channels.
void fill_voxels(const View& out, uint8_t* to, int64_t columns, uint8_t value) {
  if (columns <= 0) return;
  if (out.column_stride == out.channels) {
    memset(to, value, static_cast<size_t>(columns * out.column_stride));
    return;
  }
  channel_blocks<kBytes>(out.channels, [&](auto lane, int64_t c) {
    using Bytes = typename decltype(lane)::Bytes;
    const Bytes x = static_cast<Bytes>(Bytes{} + value);
    for (int64_t k = 0; k < columns; ++k) store(to + k * out.column_stride + c, x);
  });
}

// Whole lines [first, last) of a depth, with their parts of the ring.
void fill_lines(const View& out, const Ring& ring, uint8_t value, int64_t depth, int64_t first, int64_t last) {
  const int64_t columns = int64_t{ring.before[2]} + out.columns + ring.after[2];
  for (int64_t row = first; row < last; ++row) {
    uint8_t* line = out.data + depth * out.depth_stride + row * out.row_stride;
    fill_voxels(out, line - ring.before[2] * out.column_stride, columns, value);
  }
}

void fill_ring(const View& out, const Ring& ring, uint8_t value, int64_t first, int64_t last) {
  const int64_t top = -int64_t{ring.before[1]}, bottom = int64_t{out.rows} + ring.after[1];
  for (int64_t line = first; line < last; ++line) {
    const int64_t depth = line / out.rows, row = line % out.rows;
    if (line == 0)
      for (int64_t d = -int64_t{ring.before[0]}; d < 0; ++d) fill_lines(out, ring, value, d, top, bottom);
    if (row == 0) fill_lines(out, ring, value, depth, top, 0);
    uint8_t* to = line_to(out, line);
    fill_voxels(out, to - ring.before[2] * out.column_stride, ring.before[2], value);
    fill_voxels(out, to + out.columns * out.column_stride, ring.after[2], value);
    if (row == out.rows - 1) fill_lines(out, ring, value, depth, out.rows, bottom);
    if (row == out.rows - 1 && depth == out.depths - 1)
      for (int64_t d = out.depths; d < int64_t{out.depths} + ring.after[0]; ++d)
        fill_lines(out, ring, value, d, top, bottom);
  }
}

// One channel of voxels of four bytes; the other three are written back as they were. `to` may be any of the four: the
// last voxel is written alone, so that nothing after the line is touched.
void spread_by_four(const uint8_t* from, uint8_t* to, int64_t columns) {
  const uint8_t others[4] = {0, 255, 255, 255}, first[4] = {1, 0, 0, 0};
  uint32_t mask, unit;
  memcpy(&mask, others, 4);
  memcpy(&unit, first, 4);
#pragma GCC ivdep
  for (int64_t k = 0; k < columns - 1; ++k) {
    uint32_t voxel;
    memcpy(&voxel, to + 4 * k, 4);
    voxel = (voxel & mask) | (from[k] * unit);
    memcpy(to + 4 * k, &voxel, 4);
  }
  to[4 * (columns - 1)] = from[columns - 1];
}

void take_image(const uint8_t* image, const View& out, int64_t first, int64_t last) {
  const int64_t plane = int64_t{out.depths} * out.rows * out.columns;
  const ptrdiff_t stride = out.column_stride;
  const int64_t columns = out.columns;
  for (int64_t line = first; line < last; ++line)
    for (int32_t c = 0; c < out.channels; ++c) {
      const uint8_t* from = image + c * plane + line * columns;
      uint8_t* to = line_to(out, line) + c;
      if (stride == 1) memcpy(to, from, static_cast<size_t>(columns));
      else if (stride == 4) spread_by_four(from, to, columns);
      else
        for (int64_t k = 0; k < columns; ++k) to[k * stride] = from[k];
    }
}

// With the stride known when compiling, the loop becomes shuffles.
template <int Stride>
void gather(const uint8_t* __restrict from, ptrdiff_t any_stride, int32_t* __restrict to, int64_t columns) {
  const ptrdiff_t stride = Stride > 0 ? Stride : any_stride;
  for (int64_t k = 0; k < columns; ++k) to[k] = from[k * stride];
}

void give_bytes(const View& in, int32_t* output, int64_t first, int64_t last) {
  const int64_t plane = int64_t{in.depths} * in.rows * in.columns;
  for (int64_t line = first; line < last; ++line)
    for (int32_t c = 0; c < in.channels; ++c) {
      const uint8_t* from = line_to(in, line) + c;
      int32_t* to = output + c * plane + line * in.columns;
      if (in.column_stride == 1) gather<1>(from, 1, to, in.columns);
      else if (in.column_stride == 4) gather<4>(from, 4, to, in.columns);
      else gather<0>(from, in.column_stride, to, in.columns);
    }
}

}  // namespace
}  // namespace mq
