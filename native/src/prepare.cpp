// From a program to what is run, whatever the size of the image.
#include "plan.h"
#include "refusal.h"

namespace mq {
namespace {

// Images of few channels stay as they come, a voxel after another; everything else gets room for whole groups of 16 channels.
constexpr int32_t kPackedBelow = 12;
// Of all nodes together: concatenations of concatenations multiply what is read.
constexpr size_t kMostLeaves = size_t(1) << 20;

void append_leaves(const Prepared& prepared, uint32_t number, std::vector<Leaf>& to) {
  const Node& node = prepared.program.nodes[number];
  if (node.kind == Kind::concat && !prepared.materialised[number]) {
    for (const Leaf& each : prepared.reads[number].of) to.push_back(each);
    return;
  }
  to.push_back({number, node.channels, node.kind == Kind::image && node.channels < kPackedBelow});
}

}  // namespace

Prepared prepare(Program program, const KernelSet& kernels) {
  Prepared prepared;
  prepared.kernels = &kernels;
  prepared.program = std::move(program);
  auto& nodes = prepared.program.nodes;
  prepared.live.assign(nodes.size(), false);
  prepared.live.back() = true;
  for (size_t number = nodes.size(); number-- > 0;)
    if (prepared.live[number])
      for (uint32_t input : nodes[number].inputs) prepared.live[input] = true;
  prepared.materialised.assign(nodes.size(), false);
  for (size_t number = 0; number < nodes.size(); ++number) {
    const Node& node = nodes[number];
    const bool last = number + 1 == nodes.size();
    if (last && node.kind == Kind::concat) prepared.materialised[number] = true;
    if (node.kind == Kind::convolution || node.kind == Kind::concat || !prepared.live[number]) continue;
    for (uint32_t input : node.inputs)
      if (nodes[input].kind == Kind::concat) prepared.materialised[input] = true;
  }
  prepared.reads.resize(nodes.size());
  prepared.layers.resize(nodes.size());
  size_t leaves = 0;
  for (size_t number = 0; number < nodes.size(); ++number) {
    for (uint32_t input : nodes[number].inputs) append_leaves(prepared, input, prepared.reads[number].of);
    leaves += prepared.reads[number].of.size();
    if (leaves > kMostLeaves) refuse(nodes[number], "concatenations join ", leaves, " tensors in all, expected at most ", kMostLeaves);
    if (nodes[number].kind != Kind::convolution || !prepared.live[number]) continue;
    prepared.layers[number] = std::make_unique<Layer>(prepare_layer(prepared.program, nodes[number], prepared.reads[number], kernels));
    // The layer holds them in their stored width.
    std::vector<int8_t>().swap(nodes[number].weight);
  }
  return prepared;
}

}  // namespace mq
