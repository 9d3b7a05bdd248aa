// Pooling: maxima and means over windows. Included by moves_impl.h only.
#pragma once

#include "lanes.h"
#include "moves.h"

namespace mq {
namespace {

// Positions of one window along an axis that lie inside the tensor.
struct Reach {
  int64_t first, last;
};

Reach reach_of(const Window& window, int axis, int64_t place, int64_t length) {
  const int64_t start = place * window.stride[axis] - window.padding[axis];
  return {larger<int64_t>(start, 0), smaller<int64_t>(start + window.kernel[axis], length)};
}

// Two columns of each of `Lines` input lines, without padding: the pooling of nearly every U-Net.
template <typename Lane, int Lines>
void max_pairs(const uint8_t* const* lines, ptrdiff_t in_stride, uint8_t* out, ptrdiff_t out_stride, int64_t columns) {
  for (int64_t k = 0; k < columns; ++k) {
    auto most = load<Lane>(lines[0] + 2 * k * in_stride);
    most = larger(most, load<Lane>(lines[0] + (2 * k + 1) * in_stride));
    for (int line = 1; line < Lines; ++line) {
      most = larger(most, load<Lane>(lines[line] + 2 * k * in_stride));
      most = larger(most, load<Lane>(lines[line] + (2 * k + 1) * in_stride));
    }
    store(out + k * out_stride, most);
  }
}

// Fast path of a line. Returns false where the window is another.
bool max_pool_pairs(const View& in, const View& out, const Window& window, Reach depths, Reach rows, uint8_t* to) {
  if (window.kernel[2] != 2 || window.stride[2] != 2 || window.padding[2] != 0) return false;
  if (rows.last - rows.first != 2 || depths.last - depths.first < 1 || depths.last - depths.first > 2) return false;
  const uint8_t* lines[4] = {};
  int count = 0;
  for (int64_t d = depths.first; d < depths.last; ++d)
    for (int64_t r = rows.first; r < rows.last; ++r) lines[count++] = line_of(in, d, r);
  channel_blocks<kBytes>(out.channels, [&](auto lane, int64_t c) {
    using Lane = decltype(lane);
    const uint8_t* moved[4] = {lines[0] + c, lines[1] + c, lines[count - 2] + c, lines[count - 1] + c};
    if (count == 2) max_pairs<Lane, 2>(moved, in.column_stride, to + c, out.column_stride, out.columns);
    else max_pairs<Lane, 4>(moved, in.column_stride, to + c, out.column_stride, out.columns);
  });
  return true;
}

template <typename Lane>
typename Lane::Bytes max_window(const View& in, Reach depths, Reach rows, Reach columns, int64_t channel) {
  typename Lane::Bytes most{};
  for (int64_t d = depths.first; d < depths.last; ++d)
    for (int64_t r = rows.first; r < rows.last; ++r) {
      const uint8_t* line = line_of(in, d, r) + channel;
      for (int64_t k = columns.first; k < columns.last; ++k)
        most = larger(most, load<Lane>(line + k * in.column_stride));
    }
  return most;
}

void max_pool(const View& in, const View& out, const Window& window, int64_t first, int64_t last) {
  for (int64_t line = first; line < last; ++line) {
    const Reach depths = reach_of(window, 0, line / out.rows, in.depths);
    const Reach rows = reach_of(window, 1, line % out.rows, in.rows);
    uint8_t* to = line_to(out, line);
    if (max_pool_pairs(in, out, window, depths, rows, to)) continue;
    channel_blocks<kBytes>(out.channels, [&](auto lane, int64_t c) {
      for (int64_t k = 0; k < out.columns; ++k)
        store(to + k * out.column_stride + c,
              max_window<decltype(lane)>(in, depths, rows, reach_of(window, 2, k, in.columns), c));
    });
  }
}

// Means of one output line, whose first window begins at `from`; `Pairs`: two rows and two columns, known when
// compiling.
template <typename Lane, bool Pairs, typename To>
void average_line(const View& in, const View& out, const Window& window, const To requantize, const uint8_t* from,
                  uint8_t* to) {
  const int depths = window.kernel[0], rows = Pairs ? 2 : window.kernel[1], columns = Pairs ? 2 : window.kernel[2];
  const ptrdiff_t in_depth = in.depth_stride, in_row = in.row_stride, in_column = in.column_stride;
  const ptrdiff_t step = window.stride[2] * in_column, out_column = out.column_stride;
  const int64_t count = out.columns;
  for (int64_t k = 0; k < count; ++k) {
    typename Lane::Sums sum{};
    for (int d = 0; d < depths; ++d)
      for (int r = 0; r < rows; ++r)
        for (int j = 0; j < columns; ++j)
          sum += Lane::widen(load<Lane>(from + k * step + d * in_depth + r * in_row + j * in_column));
    store(to + k * out_column, requantize.template apply<Lane>(sum));
  }
}

void avg_pool(const View& in, const View& out, const Window& window, int32_t in_zero_point, const Requantization& to,
              int64_t first, int64_t last) {
  const int64_t voxels = int64_t{window.kernel[0]} * window.kernel[1] * window.kernel[2];
  const bool pairs = window.kernel[1] == 2 && window.kernel[2] == 2;
  const NarrowRequantization narrowly(to, 255 * voxels, in_zero_point * voxels);
  const WideRequantization widely(to, in_zero_point * voxels);
  for (int64_t line = first; line < last; ++line) {
    const uint8_t* from = line_of(in, line / out.rows * window.stride[0], line % out.rows * window.stride[1]);
    uint8_t* written = line_to(out, line);
    if (!narrowly.fits) {
      cover<WideLane>(out.channels, [&](auto lane, int64_t c) {
        average_line<decltype(lane), false>(in, out, window, widely, from + c, written + c);
      });
      continue;
    }
    channel_blocks<kWords>(out.channels, [&](auto lane, int64_t c) {
      using Lane = decltype(lane);
      if (pairs) average_line<Lane, true>(in, out, window, narrowly, from + c, written + c);
      else average_line<Lane, false>(in, out, window, narrowly, from + c, written + c);
    });
  }
}

}  // namespace
}  // namespace mq
