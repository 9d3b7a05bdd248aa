// The functions of moves.h, compiled with the flags of the file that includes this: kMoves is that kernel set's own.
//
// Nothing is written but the channels of the lines asked for, so that an output may be some channels of a wider tensor.
// add and relu may write over an input that lies as their output does.
#pragma once

#include "moves_copy.h"
#include "moves_pool.h"
#include "moves_upsample.h"

namespace mq {
namespace {

bool dense(const View& view) { return view.column_stride == view.channels; }

template <typename Lane, typename To>
MQ_INLINE inline void add_block(const uint8_t* a, const uint8_t* b, uint8_t* out, int16_t left_a, int16_t left_b,
                                const To& requantize) {
  using Sums = typename Lane::Sums;
  const Sums x = Lane::widen(load<Lane>(a)), y = Lane::widen(load<Lane>(b));
  const Sums sum = (x << left_a) + (y << left_b);
  store(out, requantize.template apply<Lane>(sum));
}

void add(const View& a, const View& b, const View& out, int32_t za, int32_t zb, int32_t left_a, int32_t left_b,
         const Requantization& to, int64_t first, int64_t last) {
  // Formats whose steps are further apart would need more than 64 bits.
  const auto by_a = static_cast<int16_t>(smaller<int32_t>(left_a, 53)),
             by_b = static_cast<int16_t>(smaller<int32_t>(left_b, 53));
  const int64_t bias = (int64_t{za} << by_a) + (int64_t{zb} << by_b);
  const NarrowRequantization narrowly(to, (int64_t{255} << by_a) + (int64_t{255} << by_b), bias);
  const WideRequantization widely(to, bias);
  const bool run = dense(a) && dense(b) && dense(out);
  const int64_t columns = run ? 1 : out.columns, channels = run ? int64_t{out.columns} * out.channels : out.channels;
  const ptrdiff_t stride_a = a.column_stride, stride_b = b.column_stride, stride = out.column_stride;
  for (int64_t line = first; line < last; ++line) {
    const uint8_t *from_a = line_to(a, line), *from_b = line_to(b, line);
    uint8_t* written = line_to(out, line);
    const auto compute = [&](auto lane, const auto& requantize, int64_t k, int64_t c) MQ_INLINE {
      add_block<decltype(lane)>(from_a + k * stride_a + c, from_b + k * stride_b + c, written + k * stride + c, by_a,
                                by_b, requantize);
    };
    if (narrowly.fits) {
      each_value<kWords>(columns, channels,
                         [&](auto lane, int64_t k, int64_t c) MQ_INLINE { compute(lane, narrowly, k, c); });
      continue;
    }
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t c = 0; c < channels; ++c) compute(WideLane{}, widely, k, c);
  }
}

void relu(const View& in, const View& out, int32_t zero_point, int64_t first, int64_t last) {
  const uint8_t zero = static_cast<uint8_t>(zero_point);
  const bool run = dense(in) && dense(out);
  const int64_t columns = run ? 1 : out.columns, channels = run ? int64_t{out.columns} * out.channels : out.channels;
  const ptrdiff_t in_stride = in.column_stride, stride = out.column_stride;
  for (int64_t line = first; line < last; ++line) {
    const uint8_t* from = line_to(in, line);
    uint8_t* to = line_to(out, line);
    each_value<kBytes>(columns, channels, [&](auto lane, int64_t k, int64_t c) MQ_INLINE {
      using Lane = decltype(lane);
      using Bytes = typename Lane::Bytes;
      const Bytes low = static_cast<Bytes>(Bytes{} + zero);
      store(to + k * stride + c, larger<Bytes>(load<Lane>(from + k * in_stride + c), low));
    });
  }
}

constexpr Moves kMoves = {max_pool, avg_pool,  upsample_nearest, upsample_linear, add,
                          relu,     fill_ring, take_image,       give_bytes};

}  // namespace
}  // namespace mq
