// What a program computes, written from the definition of its operations in 64-bit integers: no layout, no blocks, no tricks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "../src/program.h"

namespace naive {

// (D, I, J, C) with D = 1 for 2D.
struct Tensor {
  int64_t size[3] = {1, 1, 1};
  int64_t channels = 0;
  std::vector<int32_t> values;

  Tensor(int64_t d, int64_t i, int64_t j, int64_t c) : size{d, i, j}, channels(c), values(size_t(d * i * j * c), 0) {}
  int64_t voxels() const { return size[0] * size[1] * size[2]; }
  bool holds(const int64_t (&at)[3]) const {
    return at[0] >= 0 && at[1] >= 0 && at[2] >= 0 && at[0] < size[0] && at[1] < size[1] && at[2] < size[2];
  }
  int32_t* at(const int64_t (&at)[3]) { return values.data() + ((at[0] * size[1] + at[1]) * size[2] + at[2]) * channels; }
  const int32_t* at(const int64_t (&place)[3]) const { return const_cast<Tensor*>(this)->at(place); }
};

// Calls f(place) for every place of a box.
template <class F>
void each_place(const int64_t (&size)[3], F f) {
  for (int64_t d = 0; d < size[0]; ++d)
    for (int64_t i = 0; i < size[1]; ++i)
      for (int64_t j = 0; j < size[2]; ++j) f({d, i, j});
}

// Along three axes, with what a missing depth axis has.
inline void three_axes(const mq::Program& program, const mq::Axes& given, int64_t missing, int64_t (&axes)[3]) {
  for (int a = 0; a < 3; ++a) axes[a] = a < 3 - program.axes ? missing : given[size_t(a - (3 - program.axes))];
}

// x * 2^-shift to the nearest integer, the even one of two.
inline int64_t round_half_even(int64_t x, int32_t shift) {
  if (shift <= 0) {
    for (int32_t i = 0; i < -shift && x > -(int64_t(1) << 50) && x < int64_t(1) << 50; ++i) x *= 2;
    return x;
  }
  if (shift > 40) return 0;
  const int64_t step = int64_t(1) << shift;
  int64_t whole = x / step, rest = x % step;
  if (rest < 0) rest += step, whole -= 1;
  return whole + (2 * rest > step || (2 * rest == step && whole % 2 != 0));
}

// Accumulators of a convolution, beside the (empty) tensor that it writes.
struct Sums {
  Tensor out;
  std::vector<int64_t> values;
};

inline Sums sums_of(const mq::Program& program, const mq::Node& node, const Tensor& in) {
  const mq::Format& read = program.nodes[node.inputs[0]].format;
  int64_t kernel[3], stride[3], padding[3], dilation[3], extra[3], size[3];
  three_axes(program, node.kernel, 1, kernel);
  three_axes(program, node.stride, 1, stride);
  three_axes(program, node.padding, 0, padding);
  three_axes(program, node.dilation, 1, dilation);
  three_axes(program, node.output_padding, 0, extra);
  for (int a = 0; a < 3; ++a) {
    const int64_t span = dilation[a] * (kernel[a] - 1) + 1;
    size[a] = node.transposed ? (in.size[a] - 1) * stride[a] - 2 * padding[a] + span + extra[a]
                              : (in.size[a] + 2 * padding[a] - span) / stride[a] + 1;
  }
  Sums sums{Tensor(size[0], size[1], size[2], node.channels), {}};
  Tensor& out = sums.out;
  sums.values.resize(out.values.size());
  for (size_t i = 0; i < sums.values.size(); ++i) sums.values[i] = node.bias[i % size_t(node.channels)];
  const int64_t taps = kernel[0] * kernel[1] * kernel[2];
  const int64_t ins = node.in_channels / node.groups, outs = node.channels / node.groups;
  // From the side that a step of the kernel starts at: the output, or of a transposed convolution the input.
  each_place(node.transposed ? in.size : out.size, [&](const int64_t (&from)[3]) {
    each_place(kernel, [&](const int64_t (&k)[3]) {
      int64_t to[3];
      for (int a = 0; a < 3; ++a) to[a] = from[a] * stride[a] - padding[a] + k[a] * dilation[a];
      const int64_t tap = (k[0] * kernel[1] + k[1]) * kernel[2] + k[2];
      if (!(node.transposed ? out : in).holds(to)) return;
      const int32_t* q = node.transposed ? in.at(from) : in.at(to);
      int64_t* sum = sums.values.data() + ((node.transposed ? out.at(to) : out.at(from)) - out.values.data());
      for (int64_t o = 0; o < node.channels; ++o) {
        const int64_t group = o / outs;
        for (int64_t c = 0; c < ins; ++c) {
          const int64_t row = node.transposed ? (group * ins + c) * outs + o % outs : o * ins + c;
          sum[o] += int64_t(node.weight[size_t(row * taps + tap)]) * (q[group * ins + c] - read.zero_point);
        }
      }
    });
  });
  return sums;
}

inline Tensor convolution(const mq::Program& program, const mq::Node& node, const Tensor& in) {
  Sums sums = sums_of(program, node, in);
  const int32_t exponent = program.nodes[node.inputs[0]].format.exponent;
  const int64_t lowest = node.relu ? node.format.zero_point : 0, highest = node.format.highest();
  for (size_t i = 0; i < sums.values.size(); ++i) {
    const int64_t sum = sums.values[i];
    if (node.accumulates) {
      sums.out.values[i] = int32_t(node.relu ? std::max<int64_t>(sum, 0) : sum);
      continue;
    }
    const int32_t shift = node.weight_exponents[i % size_t(node.channels)] + exponent - node.format.exponent;
    sums.out.values[i] = int32_t(std::min(highest, std::max(lowest, round_half_even(sum, shift) + node.format.zero_point)));
  }
  return sums.out;
}

inline Tensor max_pool(const mq::Program& program, const mq::Node& node, const Tensor& in) {
  int64_t kernel[3], stride[3];
  three_axes(program, node.kernel, 1, kernel);
  three_axes(program, node.stride, 1, stride);
  Tensor out((in.size[0] - kernel[0]) / stride[0] + 1, (in.size[1] - kernel[1]) / stride[1] + 1, (in.size[2] - kernel[2]) / stride[2] + 1,
             in.channels);
  each_place(out.size, [&](const int64_t (&at)[3]) {
    each_place(kernel, [&](const int64_t (&k)[3]) {
      const int32_t* q = in.at({at[0] * stride[0] + k[0], at[1] * stride[1] + k[1], at[2] * stride[2] + k[2]});
      for (int64_t c = 0; c < in.channels; ++c) out.at(at)[c] = std::max(out.at(at)[c], q[c]);
    });
  });
  return out;
}

inline Tensor upsample(const mq::Program& program, const mq::Node& node, const Tensor& in) {
  const int64_t f = node.factor, along = program.axes == 3 ? f : 1;
  Tensor out(in.size[0] * along, in.size[1] * f, in.size[2] * f, in.channels);
  each_place(out.size, [&](const int64_t (&at)[3]) {
    const int32_t* q = in.at({at[0] / along, at[1] / f, at[2] / f});
    std::copy(q, q + in.channels, out.at(at));
  });
  return out;
}

inline Tensor concat(const mq::Node& node, const std::vector<Tensor>& tensors) {
  const Tensor& first = tensors[node.inputs[0]];
  Tensor out(first.size[0], first.size[1], first.size[2], node.channels);
  int64_t before = 0;
  for (const uint32_t input : node.inputs) {
    const Tensor& in = tensors[input];
    each_place(out.size, [&](const int64_t (&at)[3]) { std::copy(in.at(at), in.at(at) + in.channels, out.at(at) + before); });
    before += in.channels;
  }
  return out;
}

inline int32_t requantized(const mq::Node& node, int64_t sum, int32_t shift, bool relu) {
  const int64_t lowest = relu ? node.format.zero_point : 0, highest = node.format.highest();
  return int32_t(std::min(highest, std::max(lowest, round_half_even(sum, shift) + node.format.zero_point)));
}

inline Tensor average(const mq::Program& program, const mq::Node& node, const Tensor& in) {
  const mq::Format& read = program.nodes[node.inputs[0]].format;
  int64_t kernel[3], stride[3];
  three_axes(program, node.kernel, 1, kernel);
  three_axes(program, node.stride, 1, stride);
  int32_t shift = read.exponent - node.format.exponent;
  for (int64_t voxels = kernel[0] * kernel[1] * kernel[2]; voxels > 1; voxels /= 2) ++shift;
  Tensor out((in.size[0] - kernel[0]) / stride[0] + 1, (in.size[1] - kernel[1]) / stride[1] + 1, (in.size[2] - kernel[2]) / stride[2] + 1,
             in.channels);
  each_place(out.size, [&](const int64_t (&at)[3]) {
    each_place(kernel, [&](const int64_t (&k)[3]) {
      const int32_t* q = in.at({at[0] * stride[0] + k[0], at[1] * stride[1] + k[1], at[2] * stride[2] + k[2]});
      for (int64_t c = 0; c < in.channels; ++c) out.at(at)[c] += q[c] - read.zero_point;
    });
    for (int64_t c = 0; c < in.channels; ++c) out.at(at)[c] = requantized(node, out.at(at)[c], shift, false);
  });
  return out;
}

// Each output lies between two inputs along an axis, three times as near to one of them; beyond the edge is the edge.
inline Tensor linear(const mq::Program& program, const mq::Node& node, const Tensor& in) {
  const mq::Format& read = program.nodes[node.inputs[0]].format;
  const int32_t shift = read.exponent - node.format.exponent + 2 * program.axes;
  const bool volume = program.axes == 3;
  Tensor out(in.size[0] * (volume ? 2 : 1), in.size[1] * 2, in.size[2] * 2, in.channels);
  each_place(out.size, [&](const int64_t (&at)[3]) {
    for (int corner = volume ? 0 : 4; corner < 8; ++corner) {
      int64_t place[3], weight = 1;
      for (int a = 0; a < 3; ++a) {
        const bool near = corner >> (2 - a) & 1, doubled = a > 0 || volume;
        place[a] = !doubled ? at[a] : near ? at[a] / 2 : at[a] / 2 + (at[a] % 2 ? 1 : -1);
        place[a] = std::min(in.size[a] - 1, std::max<int64_t>(0, place[a]));
        if (doubled && near) weight *= 3;
      }
      for (int64_t c = 0; c < in.channels; ++c) out.at(at)[c] += int32_t(weight) * (in.at(place)[c] - read.zero_point);
    }
    for (int64_t c = 0; c < in.channels; ++c) out.at(at)[c] = requantized(node, out.at(at)[c], shift, false);
  });
  return out;
}

inline Tensor relu(const mq::Program& program, const mq::Node& node, Tensor in) {
  for (int32_t& q : in.values) q = std::max(q, program.nodes[node.inputs[0]].format.zero_point);
  return in;
}

inline Tensor addition(const mq::Program& program, const mq::Node& node, const Tensor& a, const Tensor& b) {
  const mq::Format &of_a = program.nodes[node.inputs[0]].format, &of_b = program.nodes[node.inputs[1]].format;
  const int32_t finest = std::max(of_a.exponent, of_b.exponent);
  Tensor out = a;
  for (size_t i = 0; i < out.values.size(); ++i) {
    const int64_t sum = int64_t(a.values[i] - of_a.zero_point) * (int64_t(1) << (finest - of_a.exponent)) +
                        int64_t(b.values[i] - of_b.zero_point) * (int64_t(1) << (finest - of_b.exponent));
    out.values[i] = requantized(node, sum, finest - node.format.exponent, node.relu);
  }
  return out;
}

// What a node writes.
inline Tensor run_node(const mq::Program& program, const mq::Node& node, const std::vector<Tensor>& tensors) {
  const Tensor& in = tensors[node.inputs[0]];
  if (node.kind == mq::Kind::convolution) return convolution(program, node, in);
  if (node.kind == mq::Kind::max_pool) return max_pool(program, node, in);
  if (node.kind == mq::Kind::avg_pool) return average(program, node, in);
  if (node.kind == mq::Kind::upsample) return node.mode == mq::Upsampling::linear ? linear(program, node, in) : upsample(program, node, in);
  if (node.kind == mq::Kind::relu) return relu(program, node, in);
  if (node.kind == mq::Kind::add) return addition(program, node, in, tensors[node.inputs[1]]);
  if (node.kind == mq::Kind::concat) return concat(node, tensors);
  std::abort();
}

// (C, *S) as the engine takes it.
inline Tensor spread(const mq::Program& program, const mq::Axes& image, const uint8_t* bytes) {
  int64_t size[3];
  three_axes(program, image, 1, size);
  Tensor found(size[0], size[1], size[2], program.nodes[0].channels);
  for (int64_t c = 0; c < found.channels; ++c)
    for (int64_t v = 0; v < found.voxels(); ++v) found.values[size_t(v * found.channels + c)] = *bytes++;
  return found;
}

inline Tensor run(const mq::Program& program, Tensor image) {
  std::vector<Tensor> tensors{std::move(image)};
  for (size_t number = 1; number < program.nodes.size(); ++number)
    tensors.push_back(run_node(program, program.nodes[number], tensors));
  return tensors.back();
}

}  // namespace naive
