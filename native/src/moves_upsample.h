// Up-sampling: copies, and linear by 2. Included by moves_impl.h only.
#pragma once

#include "lanes.h"
#include "moves.h"

namespace mq {
namespace {

template <typename Lane, int Factor>
void repeat_columns(const uint8_t* from, ptrdiff_t in_stride, uint8_t* to, ptrdiff_t out_stride, int64_t columns,
                    int32_t factor) {
  const int32_t times = Factor > 0 ? Factor : factor;
  for (int64_t k = 0; k < columns; ++k) {
    const auto x = load<Lane>(from + k * in_stride);
    for (int32_t t = 0; t < times; ++t) store(to + (k * times + t) * out_stride, x);
  }
}

void upsample_nearest(const View& in, const View& out, int32_t factor, int axes, int64_t first, int64_t last) {
  for (int64_t line = first; line < last; ++line) {
    const int64_t depth = line / out.rows, row = line % out.rows;
    const uint8_t* from = line_of(in, axes == 3 ? depth / factor : depth, row / factor);
    uint8_t* to = line_to(out, line);
    channel_blocks<kBytes>(out.channels, [&](auto lane, int64_t c) {
      using Lane = decltype(lane);
      if (factor == 2) repeat_columns<Lane, 2>(from + c, in.column_stride, to + c, out.column_stride, in.columns, 2);
      else repeat_columns<Lane, 0>(from + c, in.column_stride, to + c, out.column_stride, in.columns, factor);
    });
  }
}

// The two input positions that an output position lies between: weights 3 and 1.
struct Neighbours {
  int64_t nearer, farther;
};

Neighbours neighbours(int64_t place, int64_t length) {
  const int64_t nearer = place / 2;
  return {nearer, place % 2 ? smaller<int64_t>(nearer + 1, length - 1) : larger<int64_t>(nearer - 1, 0)};
}

// Input lines of an output line, times 3 and 1 along the rows; the second pair, in 3D, of the farther depth.
struct LinearLines {
  const uint8_t* nearer[2];
  const uint8_t* farther[2];
};

template <typename Lane, bool Volume>
typename Lane::Sums across_lines(const LinearLines& lines, int64_t offset) {
  using Sums = typename Lane::Sums;
  const auto blend = [offset](const uint8_t* const* pair) -> Sums {
    const Sums x = Lane::widen(load<Lane>(pair[0] + offset));
    return x + x + x + Lane::widen(load<Lane>(pair[1] + offset));
  };
  const Sums x = blend(lines.nearer);
  if constexpr (Volume) return x + x + x + blend(lines.farther);
  return x;
}

// Every input column's lines are combined once and kept, in registers, for the four outputs it takes part in.
template <typename Lane, bool Volume, typename To>
void linear_line(const LinearLines& lines, const View& in, const View& out, const To& requantize, int64_t channel,
                 uint8_t* to) {
  using Sums = typename Lane::Sums;
  const ptrdiff_t in_stride = in.column_stride, out_stride = out.column_stride;
  const int64_t columns = in.columns;
  const To local = requantize;
  Sums here = across_lines<Lane, Volume>(lines, channel);
  Sums before = here;
  for (int64_t k = 0; k < columns; ++k) {
    const Sums after = across_lines<Lane, Volume>(lines, channel + smaller<int64_t>(k + 1, columns - 1) * in_stride);
    const Sums tripled = here + here + here;
    store(to + 2 * k * out_stride + channel, local.template apply<Lane>(tripled + before));
    store(to + (2 * k + 1) * out_stride + channel, local.template apply<Lane>(tripled + after));
    before = here;
    here = after;
  }
}

void upsample_linear(const View& in, const View& out, int axes, int32_t in_zero_point, const Requantization& to,
                     int64_t first, int64_t last) {
  const int64_t weights = axes == 3 ? 64 : 16;
  const NarrowRequantization narrowly(to, 255 * weights, weights * in_zero_point);
  const WideRequantization widely(to, weights * in_zero_point);
  for (int64_t line = first; line < last; ++line) {
    const int64_t depth = line / out.rows;
    const Neighbours d = axes == 3 ? neighbours(depth, in.depths) : Neighbours{depth, depth};
    const Neighbours r = neighbours(line % out.rows, in.rows);
    const LinearLines lines = {{line_of(in, d.nearer, r.nearer), line_of(in, d.nearer, r.farther)},
                               {line_of(in, d.farther, r.nearer), line_of(in, d.farther, r.farther)}};
    uint8_t* written = line_to(out, line);
    const auto compute = [&](auto lane, const auto& requantize, int64_t c) {
      using Lane = decltype(lane);
      if (axes == 3) linear_line<Lane, true>(lines, in, out, requantize, c, written);
      else linear_line<Lane, false>(lines, in, out, requantize, c, written);
    };
    if (narrowly.fits) channel_blocks<kWords>(out.channels, [&](auto lane, int64_t c) { compute(lane, narrowly, c); });
    else cover<WideLane>(out.channels, [&](auto lane, int64_t c) { compute(lane, widely, c); });
  }
}

}  // namespace
}  // namespace mq
