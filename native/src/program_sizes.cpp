// How large every tensor is for an image, without computing any of them; the rules are medquant/quant/shapes.py's.
#include <limits>

#include "program.h"
#include "refusal.h"

namespace mq {
namespace {

// Far above any memory, and far enough below 64 bits for whoever adds rings and strides to it.
constexpr int64_t kMostValues = int64_t(1) << 40;
constexpr int64_t kLongest = std::numeric_limits<int32_t>::max();

using Lengths = std::array<int64_t, kMaxAxes>;

template <class Numbers>
std::string spelt(const Numbers& size, int axes) {
  std::string text = joined(size[0]);
  for (int axis = 1; axis < axes; ++axis) text += joined(" x ", size[axis]);
  return text;
}

int64_t windows(int64_t length, int64_t reach, int64_t stride, int64_t padding) {
  const int64_t room = length + 2 * padding - reach;
  return room < 0 ? 0 : room / stride + 1;
}

// Lengths have 31 bits and everything about a node 15, so that no product here leaves 64.
int64_t length_of(const Node& node, int64_t length, int axis) {
  switch (node.kind) {
    case Kind::convolution: {
      const int64_t reach = int64_t(node.dilation[axis]) * (node.kernel[axis] - 1) + 1;
      if (!node.transposed) return windows(length, reach, node.stride[axis], node.padding[axis]);
      return (length - 1) * node.stride[axis] - 2 * int64_t(node.padding[axis]) + reach + node.output_padding[axis];
    }
    case Kind::max_pool:
    case Kind::avg_pool:
      return windows(length, node.kernel[axis], node.stride[axis], node.padding[axis]);
    case Kind::upsample:
      return length * node.factor;
    default:
      return length;
  }
}

void check_length(const Program& program, const Node& node, const Lengths& size, const Axes& image) {
  int64_t values = node.channels;
  for (int axis = 0; axis < program.axes; ++axis) {
    if (size[axis] < 1) {
      throw BadInput(joined(shown(node.name), " leaves nothing of an image of ", spelt(image, program.axes), " (",
                            spelt(size, program.axes), "); use a larger image"));
    }
    if (size[axis] > kLongest || size[axis] > kMostValues / values) {
      throw BadInput(joined(shown(node.name), " would write ", spelt(size, program.axes), " voxels of ", node.channels,
                            " channels for an image of ", spelt(image, program.axes), "; use a smaller image"));
    }
    values *= size[axis];
  }
}

void check_equal(const Program& program, const Node& node, const std::vector<Axes>& sizes) {
  const Axes& first = sizes[node.inputs[0]];
  for (const uint32_t input : node.inputs) {
    if (sizes[input] != first) {
      throw BadInput(joined(shown(node.name), node.kind == Kind::add ? " adds" : " joins",
                            " tensors of different sizes: ", shown(program.nodes[node.inputs[0]].name), " has ",
                            spelt(first, program.axes), " and ", shown(program.nodes[input].name), " ",
                            spelt(sizes[input], program.axes),
                            "; use an image whose sides are multiples of the network's stride"));
    }
  }
}

}  // namespace

std::vector<Axes> infer_sizes(const Program& program, const Axes& image) {
  std::vector<Axes> sizes;
  sizes.reserve(program.nodes.size());
  for (const Node& node : program.nodes) {
    if (node.kind == Kind::concat || node.kind == Kind::add) check_equal(program, node, sizes);
    const Axes& read = node.kind == Kind::image ? image : sizes[node.inputs[0]];
    Lengths written{};
    for (int axis = 0; axis < program.axes; ++axis) written[axis] = length_of(node, read[axis], axis);
    check_length(program, node, written, image);
    Axes kept{};
    for (int axis = 0; axis < program.axes; ++axis) kept[axis] = int32_t(written[axis]);
    sizes.push_back(kept);
  }
  return sizes;
}

}  // namespace mq
