// Programs whose nodes read whatever was written before: one tensor by many, nobody, twice in one concatenation, the image among
// them. Every kind of node is drawn, so that what the plan joins, drops or keeps in place is met in all orders.
#pragma once

#include <random>
#include <string>

#include "naive_network.h"

class RandomGraph {
 public:
  mq::Program program;
  mq::Axes image{};
  std::vector<uint8_t> bytes;          // of the image
  std::vector<naive::Tensor> tensors;  // by node

  explicit RandomGraph(uint64_t seed) : generator_(seed) {
    program.axes = chance(3) ? 3 : 2;
    for (int a = 0; a < program.axes; ++a) image[size_t(a)] = int32_t(chance(8) ? 1 : between(1, program.axes == 3 ? 6 : 14));
    common_.bits = int32_t(between(4, 6)), common_.zero_point = int32_t(between(0, 15)), common_.exponent = int32_t(between(-3, 3));
    mq::Node& node = add(mq::Kind::image, {});
    node.channels = some_channels(), node.format = common_;
    int64_t count = node.channels;
    for (int a = 0; a < program.axes; ++a) count *= image[size_t(a)];
    for (int64_t i = 0; i < count; ++i) bytes.push_back(uint8_t(between(0, common_.highest())));
    tensors.push_back(naive::spread(program, image, bytes.data()));
    for (int64_t nodes = between(0, 12); nodes > 0; --nodes) grow(nodes == 1);
  }

 private:
  std::mt19937_64 generator_;
  mq::Format common_;

  int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator_); }
  bool chance(int64_t one_in) { return between(1, one_in) == 1; }
  int32_t some_channels() {
    static const int32_t usual[] = {1, 3, 4, 11, 12, 16, 17, 32, 33};
    return usual[between(0, 8)];
  }
  // Of late: long chains give tensors that lie where others were.
  uint32_t some_node() {
    const int64_t last = int64_t(program.nodes.size()) - 1;
    return uint32_t(chance(3) ? between(0, last) : between(std::max<int64_t>(0, last - 2), last));
  }
  mq::Node& add(mq::Kind kind, std::vector<uint32_t> inputs) {
    mq::Node node;
    node.kind = kind, node.name = "n" + std::to_string(program.nodes.size()), node.inputs = std::move(inputs);
    node.format = common_;
    if (!node.inputs.empty()) node.channels = program.nodes[node.inputs[0]].channels;
    program.nodes.push_back(std::move(node));
    return program.nodes.back();
  }
  void written() { tensors.push_back(naive::run_node(program, program.nodes.back(), tensors)); }
  bool same_size(uint32_t a, uint32_t b) const { return std::equal(tensors[a].size, tensors[a].size + 3, tensors[b].size); }
  bool halves(uint32_t from) const {
    return tensors[from].size[1] > 1 && tensors[from].size[2] > 1 && (program.axes == 2 || tensors[from].size[0] > 1);
  }

  void grow(bool at_end) {
    const uint32_t from = some_node();
    switch (between(0, 9)) {
      case 0: return halves(from) ? pool(from, mq::Kind::max_pool) : convolve(from, at_end);
      case 1: return halves(from) && chance(2) ? pool(from, mq::Kind::avg_pool) : rectify(from);
      case 2: return tensors[from].voxels() <= 200 ? enlarge(from) : convolve(from, at_end);
      case 3: return sum(from);
      case 4:
      case 5: return join(from);
      default: return convolve(from, at_end);
    }
  }
  void rectify(uint32_t from) {
    add(mq::Kind::relu, {from});
    written();
  }
  void pool(uint32_t from, mq::Kind kind) {
    mq::Node& node = add(kind, {from});
    const bool flat = program.axes == 3 && chance(2);
    for (int a = 0; a < program.axes; ++a) node.kernel[size_t(a)] = node.stride[size_t(a)] = flat && a == 0 ? 1 : 2;
    if (chance(4)) node.stride[size_t(program.axes - 1)] = 1;
    written();
  }
  void enlarge(uint32_t from) {
    mq::Node& node = add(mq::Kind::upsample, {from});
    node.factor = int32_t(chance(2) ? 2 : between(1, 3));
    node.mode = node.factor == 2 && chance(2) ? mq::Upsampling::linear : mq::Upsampling::nearest;
    written();
  }
  uint32_t partner(uint32_t of) {
    for (int tries = 0; tries < 8; ++tries) {
      const uint32_t other = some_node();
      if (same_size(of, other)) return other;
    }
    return of;
  }
  void sum(uint32_t from) {
    uint32_t other = partner(from);
    if (program.nodes[other].channels != program.nodes[from].channels) other = from;
    add(mq::Kind::add, {from, other}).relu = chance(2);
    written();
  }
  void join(uint32_t from) {
    std::vector<uint32_t> joined{from};
    int32_t channels = program.nodes[from].channels;
    for (int64_t more = between(0, 3); more > 0; --more) {
      const uint32_t other = partner(from);
      if (channels + program.nodes[other].channels > 100) break;
      joined.push_back(other), channels += program.nodes[other].channels;
    }
    std::shuffle(joined.begin(), joined.end(), generator_);
    add(mq::Kind::concat, joined).channels = channels;
    written();
  }
  void convolve(uint32_t from, bool at_end) {
    const mq::Format read = program.nodes[from].format;
    const int32_t in_channels = program.nodes[from].channels;
    mq::Node& node = add(mq::Kind::convolution, {from});
    node.in_channels = in_channels, node.channels = some_channels(), node.weight_bits = 4;
    node.accumulates = at_end && chance(2), node.relu = chance(2), node.transposed = chance(8);
    if (node.accumulates) node.format = mq::Format{};
    int64_t taps = 1;
    const int32_t side = chance(4) ? 1 : 3;
    for (size_t a = 0; a < size_t(program.axes); ++a) {
      node.kernel[a] = node.transposed ? 2 : program.axes == 3 && a == 0 && chance(2) ? 1 : side;
      node.stride[a] = node.transposed ? 2 : 1, node.dilation[a] = 1, node.padding[a] = node.transposed ? 0 : node.kernel[a] / 2;
      taps *= node.kernel[a];
    }
    if (node.transposed && tensors[from].voxels() > 200) return drop();
    node.weight.resize(size_t(node.channels * taps * in_channels));
    for (int8_t& w : node.weight) w = int8_t(between(-8, 7));
    node.bias.resize(size_t(node.channels));
    node.weight_exponents.resize(size_t(node.channels));
    for (int32_t c = 0; c < node.channels; ++c) {
      node.bias[size_t(c)] = int32_t(between(-300, 300));
      node.weight_exponents[size_t(c)] = int32_t(between(2, 6)) + (node.accumulates ? 0 : node.format.exponent - read.exponent);
    }
    written();
  }
  void drop() {
    program.nodes.pop_back();
    rectify(uint32_t(program.nodes.size() - 1));
  }
};
