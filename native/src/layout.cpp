// Where tensors lie: rings wide enough for every reader, and one arena whose bytes are used again as soon as nobody needs them.
#include <algorithm>
#include <new>

#include "plan.h"

namespace mq {
namespace {

constexpr size_t kAlignment = 64;
// Kernels read whole groups of bytes: a few beyond the last voxel.
constexpr size_t kSlack = 64;
constexpr double kMostBytes = 1e13;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t ceil_divide(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// The 2x2 windows of Winograd's tiles are those of this pooling.
bool pools_tiles(const Program& program, const Node& node) {
  if (node.kind != Kind::max_pool) return false;
  const int planar = program.axes - 2;
  for (int a = 0; a < program.axes; ++a) {
    const int32_t length = a < planar ? 1 : 2;
    if (node.kernel[a] != length || node.stride[a] != length || node.padding[a] != 0) return false;
  }
  return true;
}

}  // namespace

PartPlaces::PartPlaces(const Part& part, const Extent& out) {
  for (int a = 0; a < 3; ++a) {
    const int64_t stride = part.out_stride[a], shift = int64_t(part.padding[a]) - part.phase[a];
    lowest[a] = ceil_divide(shift, stride);
    count[a] = floor_divide(out.of[a] - 1 + shift, stride) - lowest[a] + 1;
  }
}

size_t expanded_bytes(const Part& part, bool winograd, int64_t steps, const KernelSet& kernels) {
  const Blocks blocks{padded16(part.outputs), kernels.lanes};
  return aligned(size_t(blocks.count() * steps * (winograd ? 16 : 1) * 2 * kernels.lanes * 4));
}

Extent Plan::extent(size_t node) const {
  Extent found;
  const int axes = prepared_.program.axes;
  for (int a = 0; a < axes; ++a) found.of[3 - axes + a] = sizes_[node][size_t(a)];
  return found;
}

void Plan::choose_fused_pools() {
  const auto& nodes = prepared_.program.nodes;
  pooled_into_.assign(nodes.size(), -1);
  fused_.assign(nodes.size(), false);
  for (size_t number = 0; number < nodes.size(); ++number) {
    if (!prepared_.live[number] || !pools_tiles(prepared_.program, nodes[number])) continue;
    const uint32_t source = nodes[number].inputs[0];
    const Layer* layer = prepared_.layers[source].get();
    if (layer == nullptr || !layer->winograd || pooled_into_[source] >= 0) continue;
    pooled_into_[source] = int64_t(number);
    fused_[number] = true;
  }
}

void Plan::set_lifetimes() {
  const auto& nodes = prepared_.program.nodes;
  for (size_t number = 0; number < nodes.size(); ++number) {
    const bool joined_in_place = nodes[number].kind == Kind::concat && !prepared_.materialised[number];
    if (prepared_.live[number] && !joined_in_place && !fused_[number]) {
      for (const Leaf& leaf : prepared_.reads[number].of) {
        tensors_[leaf.node].stored = true;
        tensors_[leaf.node].last = std::max(tensors_[leaf.node].last, number);
      }
    }
    tensors_[number].first = fused_[number] ? nodes[number].inputs[0] : number;
    tensors_[number].last = std::max(tensors_[number].last, tensors_[number].first);
  }
  tensors_.back().stored = !nodes.back().accumulates;
}

void Plan::widen_ring(size_t node, int axis, int64_t lowest, int64_t highest) {
  Ring& ring = tensors_[node].ring;
  const int64_t beyond = highest - (extent(node).of[axis] - 1);
  ring.before[axis] = int32_t(std::max<int64_t>(ring.before[axis], -lowest));
  ring.after[axis] = int32_t(std::max<int64_t>(ring.after[axis], beyond));
}

void Plan::set_rings() {
  const auto& nodes = prepared_.program.nodes;
  const int axes = prepared_.program.axes;
  for (size_t number = 0; number < nodes.size(); ++number) {
    const Layer* layer = prepared_.layers[number].get();
    if (layer == nullptr) continue;
    const Extent out = extent(number);
    const auto& leaves = prepared_.reads[number].of;
    if (layer->winograd) {
      for (int a = 0; a < 3; ++a) {
        const int64_t padding = a < 3 - axes ? 0 : nodes[number].padding[size_t(a - (3 - axes))];
        const int64_t reach = a == 0 ? out.of[0] - 1 + int64_t(layer->depth_dilation) * (layer->depth_taps - 1) : (out.of[a] + 1) / 2 * 2 + 1;
        for (const Leaf& leaf : leaves) widen_ring(leaf.node, a, -padding, reach - padding);
      }
      continue;
    }
    for (const Part& part : layer->parts) {
      const PartPlaces places(part, out);
      if (!places.any()) continue;
      for (const RunSpec& run : part.runs)
        for (int a = 0; a < 3; ++a) {
          const int64_t first = part.in_stride[a] * places.lowest[a] + run.offset[a];
          const int64_t last = first + part.in_stride[a] * (places.count[a] - 1) + (a == 2 ? run.reach - 1 : 0);
          widen_ring(leaves[size_t(run.leaf)].node, a, first, last);
        }
    }
  }
}

void Plan::set_sizes() {
  const auto& nodes = prepared_.program.nodes;
  const KernelSet& kernels = *prepared_.kernels;
  for (size_t number = 0; number < nodes.size(); ++number) {
    Tensor& tensor = tensors_[number];
    const Extent size = extent(number);
    // As leaves are described to the kernels: see append_leaves.
    const bool packed = nodes[number].kind == Kind::image && nodes[number].channels < 12;
    View& view = tensor.view;
    view.channels = nodes[number].channels;
    view.depths = int32_t(size.of[0]), view.rows = int32_t(size.of[1]), view.columns = int32_t(size.of[2]);
    view.column_stride = packed ? view.channels : padded16(view.channels);
    const Ring& ring = tensor.ring;
    // What no machine holds must not wrap around to what it does.
    double bytes = double(view.column_stride);
    for (int a = 0; a < 3; ++a) bytes *= double(size.of[a]) + ring.before[a] + ring.after[a];
    if (bytes > kMostBytes) throw std::bad_alloc();
    // The first voxel of every line begins a cache line.
    const size_t before = aligned(size_t(ring.before[2]) * size_t(view.column_stride));
    view.row_stride = ptrdiff_t(aligned(before + size_t(view.column_stride) * size_t(int64_t(view.columns) + ring.after[2])));
    view.depth_stride = view.row_stride * (int64_t(view.rows) + ring.before[1] + ring.after[1]);
    tensor.bytes = size_t(view.depth_stride) * size_t(int64_t(view.depths) + ring.before[0] + ring.after[0]) + kSlack;
    tensor.origin = size_t(ring.before[0] * view.depth_stride + ring.before[1] * view.row_stride) + before;
    const Layer* layer = prepared_.layers[number].get();
    if (layer == nullptr) continue;
    Tensor& expanded = expanded_[number];
    expanded.stored = true;
    expanded.first = expanded.last = number;
    if (layer->winograd) expanded.bytes = expanded_bytes(layer->whole, true, layer->channels / 4, kernels);
    for (const Part& part : layer->parts) expanded.bytes += expanded_bytes(part, false, part.steps, kernels);
  }
}

void Plan::place() {
  std::vector<Tensor*> waiting, placed;
  for (auto* group : {&tensors_, &expanded_})
    for (Tensor& each : *group)
      if (each.stored) waiting.push_back(&each);
  // The largest first, each at the lowest place that nobody needs while it is needed.
  std::stable_sort(waiting.begin(), waiting.end(), [](const Tensor* a, const Tensor* b) { return a->bytes > b->bytes; });
  for (Tensor* tensor : waiting) {
    std::vector<const Tensor*> beside;
    for (const Tensor* other : placed)
      if (other->first <= tensor->last && tensor->first <= other->last) beside.push_back(other);
    std::sort(beside.begin(), beside.end(), [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; });
    size_t offset = 0;
    for (const Tensor* other : beside) {
      if (offset + tensor->bytes <= other->offset) break;
      offset = std::max(offset, aligned(other->offset + other->bytes));
    }
    tensor->offset = offset;
    placed.push_back(tensor);
    arena_bytes_ = std::max(arena_bytes_, offset + tensor->bytes);
  }
}

}  // namespace mq
