// Programs drawn at random, with what kernels may get wrong drawn often: odd sizes and channel counts, extreme weights, shifts
// beyond float32, concatenations. Layers are scaled by what they write for one image: where everything saturates, no fault is seen.
#pragma once

#include <cstdlib>
#include <random>
#include <string>

#include "naive_network.h"

class RandomNetwork {
 public:
  mq::Program program;
  mq::Axes image{};
  std::vector<uint8_t> first_image;
  std::vector<naive::Tensor> tensors;  // of the first image, by node

  // `cost`: multiplications a layer may have, about.
  RandomNetwork(uint64_t seed, int64_t cost) : generator_(seed), cost_(cost) {
    program.axes = chance(4) ? 3 : 2;
    for (int a = 0; a < program.axes; ++a) image[size_t(a)] = int32_t(between(1, program.axes == 3 ? 12 : 40));
    mq::Node& node = add(mq::Kind::image, {});
    node.channels = some_channels(), node.format = some_format();
    first_image = some_image();
    sizes_.push_back(image);
    tensors.push_back(naive::spread(program, image, first_image.data()));
    const int64_t layers = chance(3) ? 1 : between(2, 6);
    for (int64_t layer = 0; layer < layers; ++layer) grow(layer + 1 == layers);
  }

  std::vector<uint8_t> some_image() {
    const mq::Format& format = program.nodes[0].format;
    int64_t count = program.nodes[0].channels;
    for (int a = 0; a < program.axes; ++a) count *= image[size_t(a)];
    const int64_t style = between(0, 5), same = chance(2) ? format.highest() : chance(2) ? 0 : format.zero_point;
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    for (uint8_t& each : bytes) each = uint8_t(style == 0 ? same : style == 1 ? between(0, 1) * format.highest() : between(0, format.highest()));
    return bytes;
  }

  int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator_); }
  bool chance(int64_t one_in) { return between(1, one_in) == 1; }

 private:
  std::mt19937_64 generator_;
  int64_t cost_;
  std::vector<mq::Axes> sizes_;

  mq::Node& add(mq::Kind kind, std::vector<uint32_t> inputs) {
    mq::Node node;
    node.kind = kind, node.name = "n" + std::to_string(program.nodes.size()), node.inputs = std::move(inputs);
    program.nodes.push_back(std::move(node));
    return program.nodes.back();
  }
  void written(const mq::Axes& size) {
    sizes_.push_back(size);
    tensors.push_back(naive::run_node(program, program.nodes.back(), tensors));
  }
  uint32_t last() const { return uint32_t(program.nodes.size() - 1); }

  int32_t some_channels() {
    static const int32_t usual[] = {1, 3, 12, 16, 17, 31, 32, 33, 48, 64, 80};
    return chance(2) ? usual[between(0, 10)] : int32_t(between(1, 80));
  }
  mq::Format some_format() {
    mq::Format format;
    format.bits = int32_t(chance(2) ? between(1, 6) : between(1, 8));
    format.zero_point = int32_t(chance(3) ? 0 : chance(4) ? format.highest() : between(0, format.highest()));
    format.exponent = int32_t(between(-8, 8));
    return format;
  }

  void grow(bool at_end) {
    const bool small = std::any_of(image.begin(), image.begin() + program.axes, [&](int32_t) { return smallest() < 2; });
    if (!at_end && !small && chance(5)) return pool();
    if (!at_end && largest() <= 20 && chance(8)) return nearest();
    if (chance(4)) return join(at_end);
    convolve(last(), at_end, false, nullptr);
  }
  int32_t smallest() const { return *std::min_element(sizes_.back().begin(), sizes_.back().begin() + program.axes); }
  int32_t largest() const { return *std::max_element(sizes_.back().begin(), sizes_.back().begin() + program.axes); }

  void keep_format(mq::Node& node) {
    node.format = program.nodes[node.inputs[0]].format, node.channels = program.nodes[node.inputs[0]].channels;
  }
  void pool() {
    mq::Node& node = add(mq::Kind::max_pool, {last()});
    keep_format(node);
    mq::Axes size = sizes_.back();
    for (size_t a = 0; a < size_t(program.axes); ++a) {
      const int32_t length = program.axes == 3 && a == 0 && chance(2) ? 1 : 2;
      node.kernel[a] = node.stride[a] = length;
      size[a] /= length;
    }
    written(size);
  }
  void nearest() {
    mq::Node& node = add(mq::Kind::upsample, {last()});
    keep_format(node);
    node.factor = 2;
    mq::Axes size = sizes_.back();
    for (size_t a = 0; a < size_t(program.axes); ++a) size[a] *= 2;
    written(size);
  }

  // Two or three tensors joined: branches that keep the size, and perhaps what they start from; then a convolution of them.
  void join(bool at_end) {
    const uint32_t from = last();
    const mq::Format format = chance(2) ? program.nodes[from].format : some_format();
    std::vector<uint32_t> joined;
    if (format.zero_point == program.nodes[from].format.zero_point && format.exponent == program.nodes[from].format.exponent &&
        program.nodes[from].format.bits <= format.bits)
      joined.push_back(from);
    for (int64_t more = joined.empty() ? between(2, 3) : between(1, 2); more > 0; --more) {
      convolve(from, false, true, &format);
      joined.push_back(last());
    }
    std::shuffle(joined.begin(), joined.end(), generator_);
    mq::Node& node = add(mq::Kind::concat, joined);
    node.format = format;
    for (const uint32_t each : joined) node.channels += program.nodes[each].channels;
    written(mq::Axes(sizes_[from]));
    if (!at_end || chance(3)) return;
    convolve(last(), true, false, nullptr);
  }

  void convolve(uint32_t from, bool at_end, bool keeps_size, const mq::Format* format) {
    const mq::Node& source = program.nodes[from];
    const int32_t in_channels = source.channels;
    const mq::Format read = source.format;
    mq::Node& node = add(mq::Kind::convolution, {from});
    node.in_channels = in_channels, node.channels = some_channels();
    node.accumulates = at_end && chance(2);
    node.relu = chance(2);
    if (!node.accumulates) node.format = format ? *format : some_format();
    choose_groups(node);
    node.kernel.fill(0);
    mq::Axes size;
    do {
      choose_geometry(node, keeps_size);
      size = size_of(node, sizes_[from]);
    } while (!fits(size));
    int64_t voxels = 1, taps = 1;
    for (size_t a = 0; a < size_t(program.axes); ++a) voxels *= std::max(size[a], sizes_[from][a]), taps *= node.kernel[a];
    if (node.groups == 1)
      while (node.channels > 1 && voxels * taps * node.channels * in_channels > cost_) node.channels = (node.channels + 1) / 2;
    choose_weights(node, read, taps);
    written(size);
  }

  void choose_groups(mq::Node& node) {
    node.groups = 1;
    if (!chance(4)) return;
    node.groups = chance(2) ? node.in_channels : int32_t(between(1, 5));
    if (node.in_channels % node.groups != 0) node.groups = 1;
    if (node.groups > 1) node.channels = node.groups * int32_t(node.groups > 40 || chance(2) ? 1 : between(1, 3));
  }
  void choose_geometry(mq::Node& node, bool keeps_size) {
    const bool winograd = chance(2);
    node.transposed = !keeps_size && !winograd && chance(3);
    for (size_t a = 0; a < size_t(program.axes); ++a) {
      node.kernel[a] = int32_t(winograd ? 3 : between(1, 5)), node.stride[a] = 1, node.dilation[a] = 1, node.output_padding[a] = 0;
      node.padding[a] = int32_t(between(0, 2));
      if (program.axes == 3 && a == 0 && chance(3)) node.kernel[a] = 1;
      if (keeps_size) {
        node.kernel[a] |= 1, node.dilation[a] = int32_t(chance(6) ? 2 : 1);
        node.padding[a] = node.dilation[a] * (node.kernel[a] / 2);
      } else if (!winograd) {
        node.stride[a] = int32_t(between(1, 3)), node.dilation[a] = int32_t(chance(4) ? between(2, 3) : 1);
        if (node.transposed) node.output_padding[a] = int32_t(between(0, std::max(node.stride[a], node.dilation[a]) - 1));
      }
    }
  }
  mq::Axes size_of(const mq::Node& node, const mq::Axes& in) const {
    mq::Axes size{};
    for (size_t a = 0; a < size_t(program.axes); ++a) {
      const int32_t span = node.dilation[a] * (node.kernel[a] - 1) + 1;
      size[a] = node.transposed ? (in[a] - 1) * node.stride[a] - 2 * node.padding[a] + span + node.output_padding[a]
                : in[a] + 2 * node.padding[a] < span ? 0 : (in[a] + 2 * node.padding[a] - span) / node.stride[a] + 1;
    }
    return size;
  }
  bool fits(const mq::Axes& size) const {
    return std::all_of(size.begin(), size.begin() + program.axes, [](int32_t s) { return s >= 1 && s <= 48; });
  }

  void choose_weights(mq::Node& node, const mq::Format& read, int64_t taps) {
    node.weight_bits = int32_t(chance(3) ? 4 : between(1, 8));
    const int64_t half = int64_t(1) << (node.weight_bits - 1), lowest = -half, highest = node.weight_bits == 1 ? 1 : half - 1;
    const int64_t style = between(0, 9);
    const int64_t terms = taps * (node.in_channels / node.groups);
    node.weight.resize(size_t(node.channels * terms));
    for (int8_t& w : node.weight) {
      w = int8_t(style == 0 ? highest : style == 1 ? lowest : style == 2 ? 0 : style == 3 ? (chance(2) ? lowest : highest) : between(lowest, highest));
      if (node.weight_bits == 1 && w == 0) w = 1;
    }
    node.bias.assign(size_t(node.channels), 0);
    node.weight_exponents.assign(size_t(node.channels), int32_t(between(-3, 3)));
    // No sum of this layer is larger, whatever the weights.
    const int64_t room = INT32_MAX - 1 - terms * half * (read.highest() + read.zero_point);
    const naive::Sums sums = naive::sums_of(program, node, tensors[node.inputs[0]]);
    const int64_t scaling = between(0, 9);
    for (int32_t c = 0; c < node.channels; ++c) {
      int64_t least = INT64_MAX, most = INT64_MIN;
      for (size_t i = size_t(c); i < sums.values.size(); i += size_t(node.channels))
        least = std::min(least, sums.values[i]), most = std::max(most, sums.values[i]);
      int32_t shift = 0;
      const int64_t bias = scaling == 0 ? extreme(room, shift) : least == most ? near_tie(node, -least, shift) : centred(node, least, most, shift);
      node.bias[size_t(c)] = int32_t(std::max(-room, std::min(room, bias)));
      if (!node.accumulates) node.weight_exponents[size_t(c)] = shift - read.exponent + node.format.exponent;
    }
  }
  int64_t extreme(int64_t room, int32_t& shift) {
    shift = int32_t(chance(2) ? between(-40, 110) : between(22, 30));
    return chance(2) ? room : -room;
  }
  // Just beside the middle between two integers: where the sum has more bits than float32, it would be taken for the middle.
  int64_t near_tie(const mq::Node& node, int64_t before, int32_t& shift) {
    shift = int32_t(between(1, 28));
    const int64_t whole = between(0, node.accumulates ? 1 : node.format.highest());
    return before + (2 * whole + 1 - 2 * node.format.zero_point) * (int64_t(1) << (shift - 1)) + between(-1, 1);
  }
  // Sums that fill the range of the output, more or less.
  int64_t centred(const mq::Node& node, int64_t least, int64_t most, int32_t& shift) {
    const int64_t range = std::max(1, node.format.highest());
    while (((most - least) >> shift) > range) ++shift;
    while (shift <= 0 && shift > -8 && most - least < (range >> -shift)) --shift;
    shift += int32_t(between(-1, 1));
    const int64_t middle = (least + most) / 2, offset = node.format.highest() / 2 - node.format.zero_point;
    const int64_t shifted = shift > 0 ? offset * (int64_t(1) << shift) : offset / (int64_t(1) << -shift);
    return shifted - middle + between(-(most - least) / 4, (most - least) / 4);
  }
};
