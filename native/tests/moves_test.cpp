// Every function of moves.h against its definition in 64-bit integers, voxel by voxel, over random shapes, layouts and
// shifts.
//
// A buffer is compared whole: what a function may not write (guards, ring, the channels of another tensor, other lines)
// is expected to be as it was. Exit code 1 and a line on the first differences.
#include <stdio.h>
#include <stdlib.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../src/moves_impl.h"

namespace {

using mq::Requantization;
using mq::Ring;
using mq::View;
using mq::Window;

std::mt19937 generator(20260731);

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

// A tensor with its ring, guards and perhaps other channels; in a vector of its own, so that sanitizers see its ends.
struct Tensor {
  std::vector<uint8_t> bytes;
  View view;
  Ring ring;

  Tensor(int channels, int depths, int rows, int columns, int ringed = 1, int gaps = 1) {
    for (int axis = 0; axis < 3; ++axis) {
      ring.before[axis] = static_cast<int32_t>(between(0, 2) * ringed);
      ring.after[axis] = static_cast<int32_t>(between(0, 2) * ringed);
    }
    const int64_t before = gaps * between(0, 1) * between(0, 17), behind = gaps * between(0, 1) * between(0, 17);
    view.channels = channels;
    view.depths = depths;
    view.rows = rows;
    view.columns = columns;
    view.column_stride = before + channels + behind;
    view.row_stride = view.column_stride * (ring.before[2] + columns + ring.after[2]) + between(0, 1) * between(0, 9);
    view.depth_stride = view.row_stride * (ring.before[1] + rows + ring.after[1]);
    bytes.resize(static_cast<size_t>(view.depth_stride * (ring.before[0] + depths + ring.after[0])));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(between(0, 3) ? between(0, 255) : between(0, 1) * 255);
    view.data = bytes.data() + ring.before[0] * view.depth_stride + ring.before[1] * view.row_stride +
                ring.before[2] * view.column_stride + before;
  }
  Tensor(const Tensor& other) = delete;

  size_t index(int64_t d, int64_t r, int64_t k, int64_t c) const {
    return static_cast<size_t>(view.data - bytes.data() + d * view.depth_stride + r * view.row_stride +
                               k * view.column_stride + c);
  }
  int64_t value(int64_t d, int64_t r, int64_t k, int64_t c) const { return bytes.at(index(d, r, k, c)); }
};

int64_t requantized(__int128 sum, const Requantization& to) {
  __int128 x = sum;
  if (to.shift <= 0) {
    for (int i = 0; i < -to.shift && i < 60; ++i) x *= 2;
  } else {
    const __int128 step = static_cast<__int128>(1) << to.shift;
    __int128 whole = x / step, rest = x % step;
    if (rest < 0) {
      rest += step;
      whole -= 1;
    }
    x = whole + (2 * rest > step || (2 * rest == step && whole % 2 != 0) ? 1 : 0);
  }
  x += to.zero_point;
  return static_cast<int64_t>(x < to.lowest ? to.lowest : x > to.highest ? to.highest : x);
}

Requantization any_requantization() {
  Requantization to;
  to.shift = static_cast<int32_t>(between(0, 9) == 0 ? 40 : between(0, 1) ? between(-3, 20) : between(0, 7));
  to.highest = static_cast<int32_t>((1 << between(1, 8)) - 1);
  to.zero_point = static_cast<int32_t>(between(0, 1) * between(0, to.highest));
  to.lowest = between(0, 1) ? to.zero_point : 0;
  return to;
}

int any_length(bool one) { return one ? 1 : static_cast<int>(between(0, 5) ? between(1, 9) : between(10, 70)); }
int any_channels() { return static_cast<int>(between(0, 2) ? between(1, 80) : 1 << between(0, 6)); }

int failures = 0, comparisons = 0;

// Runs `compute` on lines [first, last) of `out` and compares with `expected` of each value there, all else as before.
void check(const char* name, Tensor& out, const std::function<void(int64_t, int64_t)>& compute,
           const std::function<int64_t(int64_t, int64_t, int64_t, int64_t)>& expected) {
  const View& view = out.view;
  const int64_t lines = int64_t{view.depths} * view.rows;
  const int64_t first = between(0, 2) ? 0 : between(0, lines), last = between(0, 2) ? lines : between(first, lines);
  std::vector<uint8_t> wanted = out.bytes;
  for (int64_t line = first; line < last; ++line)
    for (int64_t k = 0; k < view.columns; ++k)
      for (int64_t c = 0; c < view.channels; ++c) {
        const int64_t d = line / view.rows, r = line % view.rows;
        wanted.at(out.index(d, r, k, c)) = static_cast<uint8_t>(expected(d, r, k, c));
      }
  compute(first, last);
  ++comparisons;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i] != out.bytes[i]) {
      if (++failures <= 20)
        printf("%s: byte %zu is %d, expected %d; output (%d, %d, %d, %d), stride %td, lines %lld to %lld\n", name, i,
               out.bytes[i], wanted[i], view.depths, view.rows, view.columns, view.channels, view.column_stride,
               static_cast<long long>(first), static_cast<long long>(last));
      return;
    }
}

int64_t pooled_length(int64_t length, const Window& window, int axis) {
  return (length + 2 * window.padding[axis] - window.kernel[axis]) / window.stride[axis] + 1;
}

void test_max_pool() {
  const bool flat = between(0, 1), usual = between(0, 1);
  Window window;
  for (int axis = 0; axis < 3; ++axis) {
    const bool none = flat && axis == 0;
    window.kernel[axis] = none ? 1 : usual ? 2 : static_cast<int32_t>(between(1, 4));
    window.stride[axis] = none ? 1 : usual ? 2 : static_cast<int32_t>(between(1, 3));
    window.padding[axis] = none || usual ? 0 : static_cast<int32_t>(between(0, window.kernel[axis] / 2));
  }
  int lengths[3];
  for (int axis = 0; axis < 3; ++axis) {
    lengths[axis] = any_length(flat && axis == 0);
    if (lengths[axis] < window.kernel[axis]) lengths[axis] = window.kernel[axis];
  }
  const int channels = any_channels();
  const Tensor in(channels, lengths[0], lengths[1], lengths[2]);
  Tensor out(channels, static_cast<int>(pooled_length(lengths[0], window, 0)),
             static_cast<int>(pooled_length(lengths[1], window, 1)),
             static_cast<int>(pooled_length(lengths[2], window, 2)));
  check(
      "max_pool", out,
      [&](int64_t first, int64_t last) { mq::kMoves.max_pool(in.view, out.view, window, first, last); },
      [&](int64_t d, int64_t r, int64_t k, int64_t c) {
        int64_t most = -1;
        for (int64_t x = 0; x < window.kernel[0]; ++x)
          for (int64_t y = 0; y < window.kernel[1]; ++y)
            for (int64_t z = 0; z < window.kernel[2]; ++z) {
              const int64_t i = d * window.stride[0] - window.padding[0] + x,
                            j = r * window.stride[1] - window.padding[1] + y;
              const int64_t l = k * window.stride[2] - window.padding[2] + z;
              if (i < 0 || j < 0 || l < 0 || i >= lengths[0] || j >= lengths[1] || l >= lengths[2]) continue;
              const int64_t value = in.value(i, j, l, c);
              if (value > most) most = value;
            }
        return most;
      });
}

void test_avg_pool() {
  const bool flat = between(0, 1), usual = between(0, 1);
  Window window = {};
  int lengths[3], pooled[3];
  for (int axis = 0; axis < 3; ++axis) {
    const bool none = flat && axis == 0;
    window.kernel[axis] = none ? 1 : usual ? 2 : 1 << between(0, between(0, 5) ? 2 : 3);
    window.stride[axis] = none ? 1 : usual ? 2 : static_cast<int32_t>(between(1, 3));
    lengths[axis] = any_length(none);
    if (lengths[axis] < window.kernel[axis]) lengths[axis] = window.kernel[axis];
    pooled[axis] = static_cast<int>(pooled_length(lengths[axis], window, axis));
  }
  const int channels = any_channels();
  const Tensor in(channels, lengths[0], lengths[1], lengths[2]);
  Tensor out(channels, pooled[0], pooled[1], pooled[2]);
  const auto zero = static_cast<int32_t>(between(0, 255));
  const Requantization to = any_requantization();
  check(
      "avg_pool", out,
      [&](int64_t first, int64_t last) { mq::kMoves.avg_pool(in.view, out.view, window, zero, to, first, last); },
      [&](int64_t d, int64_t r, int64_t k, int64_t c) {
        int64_t sum = 0;
        for (int64_t x = 0; x < window.kernel[0]; ++x)
          for (int64_t y = 0; y < window.kernel[1]; ++y)
            for (int64_t z = 0; z < window.kernel[2]; ++z)
              sum += in.value(d * window.stride[0] + x, r * window.stride[1] + y, k * window.stride[2] + z, c) - zero;
        return requantized(sum, to);
      });
}

void test_upsample_nearest() {
  const bool flat = between(0, 1);
  const int depths = any_length(flat) % 10 + 1, rows = any_length(false) % 20 + 1, columns = any_length(false),
            channels = any_channels();
  const int factor = static_cast<int>(between(0, 1) ? 2 : between(1, 4)), by_depth = flat ? 1 : factor;
  const Tensor in(channels, depths, rows, columns);
  Tensor out(channels, depths * by_depth, rows * factor, columns * factor);
  check(
      "upsample_nearest", out,
      [&](int64_t first, int64_t last) {
        mq::kMoves.upsample_nearest(in.view, out.view, factor, flat ? 2 : 3, first, last);
      },
      [&](int64_t d, int64_t r, int64_t k, int64_t c) { return in.value(d / by_depth, r / factor, k / factor, c); });
}

// Weighted positions of an output position of linear up-sampling: half-voxel centres, edges repeated.
void linear_places(int64_t place, int64_t length, int64_t (&places)[2]) {
  places[0] = place / 2;
  places[1] = place % 2 ? places[0] + 1 : places[0] - 1;
  if (places[1] < 0) places[1] = 0;
  if (places[1] >= length) places[1] = length - 1;
}

void test_upsample_linear() {
  const bool flat = between(0, 1);
  const int depths = any_length(flat) % 10 + 1, rows = any_length(false) % 20 + 1, columns = any_length(false),
            channels = any_channels();
  const Tensor in(channels, depths, rows, columns);
  Tensor out(channels, flat ? depths : 2 * depths, 2 * rows, 2 * columns);
  const auto zero = static_cast<int32_t>(between(0, 255));
  const Requantization to = any_requantization();
  const int64_t weights[2] = {3, 1};
  check(
      "upsample_linear", out,
      [&](int64_t first, int64_t last) {
        mq::kMoves.upsample_linear(in.view, out.view, flat ? 2 : 3, zero, to, first, last);
      },
      [&](int64_t d, int64_t r, int64_t k, int64_t c) {
        int64_t i[2] = {d, d}, j[2], l[2], sum = 0;
        if (!flat) linear_places(d, depths, i);
        linear_places(r, rows, j);
        linear_places(k, columns, l);
        for (int x = 0; x < (flat ? 1 : 2); ++x)
          for (int y = 0; y < 2; ++y)
            for (int z = 0; z < 2; ++z)
              sum += (flat ? 1 : weights[x]) * weights[y] * weights[z] * (in.value(i[x], j[y], l[z], c) - zero);
        return requantized(sum, to);
      });
}

void test_add() {
  const int depths = any_length(between(0, 1)) % 10 + 1, rows = any_length(false) % 20 + 1, columns = any_length(false);
  const int channels = any_channels();
  const Tensor a(channels, depths, rows, columns);
  Tensor b(channels, depths, rows, columns), apart(channels, depths, rows, columns);
  const auto za = static_cast<int32_t>(between(0, 255)), zb = static_cast<int32_t>(between(0, 255));
  int32_t left_a = static_cast<int32_t>(between(0, 2) * between(0, 3)), left_b = 0;
  if (between(0, 9) == 0) left_a = static_cast<int32_t>(between(6, 45));
  if (between(0, 1)) std::swap(left_a, left_b);
  const Requantization to = any_requantization();
  Tensor& out = between(0, 1) ? apart : b;
  const std::vector<uint8_t> b_before = b.bytes;
  check(
      "add", out,
      [&](int64_t first, int64_t last) {
        mq::kMoves.add(a.view, b.view, out.view, za, zb, left_a, left_b, to, first, last);
      },
      [&](int64_t d, int64_t r, int64_t k, int64_t c) {
        const int64_t x = a.value(d, r, k, c) - za, y = b_before.at(b.index(d, r, k, c)) - zb;
        return requantized(x * (static_cast<__int128>(1) << left_a) + y * (static_cast<__int128>(1) << left_b), to);
      });
}

void test_relu() {
  const int depths = any_length(between(0, 1)) % 10 + 1, rows = any_length(false) % 20 + 1, columns = any_length(false);
  const int channels = any_channels();
  Tensor in(channels, depths, rows, columns), apart(channels, depths, rows, columns);
  const std::vector<uint8_t> before = in.bytes;
  const auto zero = static_cast<int32_t>(between(0, 255));
  Tensor& out = between(0, 1) ? apart : in;
  check(
      "relu", out, [&](int64_t first, int64_t last) { mq::kMoves.relu(in.view, out.view, zero, first, last); },
      [&](int64_t d, int64_t r, int64_t k, int64_t c) {
        const int64_t value = before.at(in.index(d, r, k, c));
        return value > zero ? value : int64_t{zero};
      });
}

// Threads fill parts of the ring; together, each voxel outside the tensor and none inside.
void test_fill_ring() {
  Tensor out(any_channels(), any_length(between(0, 1)) % 7 + 1, any_length(false) % 20 + 1, any_length(false));
  const View& view = out.view;
  const auto byte = static_cast<uint8_t>(between(0, 255));
  std::vector<uint8_t> wanted = out.bytes;
  for (int64_t d = -out.ring.before[0]; d < view.depths + out.ring.after[0]; ++d)
    for (int64_t r = -out.ring.before[1]; r < view.rows + out.ring.after[1]; ++r)
      for (int64_t k = -out.ring.before[2]; k < view.columns + out.ring.after[2]; ++k)
        if (d < 0 || r < 0 || k < 0 || d >= view.depths || r >= view.rows || k >= view.columns)
          for (int64_t c = 0; c < view.channels; ++c) wanted.at(out.index(d, r, k, c)) = byte;
  const int64_t lines = int64_t{view.depths} * view.rows;
  for (int64_t first = 0; first < lines;) {
    const int64_t last = between(first + 1, lines);
    mq::kMoves.fill_ring(view, out.ring, byte, first, last);
    first = last;
  }
  ++comparisons;
  if (out.bytes != wanted && ++failures <= 20)
    printf("fill_ring: tensor (%d, %d, %d, %d), stride %td\n", view.depths, view.rows, view.columns, view.channels,
           view.column_stride);
}

int any_few_channels() { return static_cast<int>(between(0, 1) ? between(1, 4) : any_channels()); }

// Also as some channels of voxels of four bytes, which is what an image may be padded to.
void test_take_image() {
  const bool voxels_of_four = between(0, 2) == 0;
  Tensor out(voxels_of_four ? 4 : any_few_channels(), any_length(between(0, 1)) % 7 + 1, any_length(false) % 20 + 1,
             any_length(false), static_cast<int>(between(0, 1)), voxels_of_four ? 0 : 1);
  if (voxels_of_four) {
    const int64_t start = between(0, 3);
    out.view.data += start;
    out.view.channels = static_cast<int32_t>(between(1, 4 - start));
  }
  const View& view = out.view;
  const int64_t plane = int64_t{view.depths} * view.rows * view.columns;
  std::vector<uint8_t> image(static_cast<size_t>(plane * view.channels));
  for (uint8_t& byte : image) byte = static_cast<uint8_t>(between(0, 255));
  check(
      "take_image", out, [&](int64_t first, int64_t last) { mq::kMoves.take_image(image.data(), view, first, last); },
      [&](int64_t d, int64_t r, int64_t k, int64_t c) {
        return image.at(static_cast<size_t>(c * plane + (d * view.rows + r) * view.columns + k));
      });
}

void test_give_bytes() {
  Tensor in(any_few_channels(), any_length(between(0, 1)) % 7 + 1, any_length(false) % 20 + 1, any_length(false));
  const View& view = in.view;
  const int64_t lines = int64_t{view.depths} * view.rows, plane = lines * view.columns;
  std::vector<int32_t> output(static_cast<size_t>(plane * view.channels), -7), wanted = output;
  const int64_t first = between(0, lines), last = between(first, lines);
  for (int64_t c = 0; c < view.channels; ++c)
    for (int64_t line = first; line < last; ++line)
      for (int64_t k = 0; k < view.columns; ++k)
        wanted.at(static_cast<size_t>(c * plane + line * view.columns + k)) =
            static_cast<int32_t>(in.value(line / view.rows, line % view.rows, k, c));
  mq::kMoves.give_bytes(view, output.data(), first, last);
  ++comparisons;
  if (output != wanted && ++failures <= 20)
    printf("give_bytes: tensor (%d, %d, %d, %d), stride %td\n", view.depths, view.rows, view.columns, view.channels,
           view.column_stride);
}

// Halves go to the even neighbour: counted by hand, so that the definition above is itself held to something.
void test_ties_by_hand() {
  struct Case {
    int sum, shift, expected;
  };
  const Case cases[] = {{1, 1, 10}, {3, 1, 12}, {5, 1, 12}, {-1, 1, 10}, {-3, 1, 8},
                        {-5, 1, 8}, {2, 2, 10}, {6, 2, 12}, {3, -2, 22}};
  for (const Case& one : cases) {
    Requantization to;
    to.shift = one.shift;
    to.zero_point = 10;
    const uint8_t a = static_cast<uint8_t>(100 + one.sum), b = 50;
    uint8_t written = 0;
    const auto view = [](const uint8_t* at) { return View{const_cast<uint8_t*>(at), 1, 1, 1, 1, 1, 1, 1}; };
    mq::kMoves.add(view(&a), view(&b), view(&written), 100, 50, 0, 0, to, 0, 1);
    ++comparisons;
    if ((written != one.expected || requantized(one.sum, to) != one.expected) && ++failures <= 20)
      printf("%d * 2^-%d + 10: %d, expected %d\n", one.sum, one.shift, written, one.expected);
  }
}

}  // namespace

int main(int count, char** words) {
  const int rounds = count > 1 ? atoi(words[1]) : 1000;
  test_ties_by_hand();
  for (int round = 0; round < rounds; ++round)
    for (auto test : {test_max_pool, test_avg_pool, test_upsample_nearest, test_upsample_linear, test_add, test_relu,
                      test_fill_ring, test_take_image, test_give_bytes})
      test();
  printf("%d comparisons, %d failures\n", comparisons, failures);
  return failures == 0 ? 0 : 1;
}
