#include "plan.h"

#include <algorithm>

namespace mq {
namespace {

Requantization requantization(const Node& node, int32_t shift, bool relu) {
  return {shift, node.format.zero_point, relu ? node.format.zero_point : 0, node.format.highest()};
}

int32_t log2_of_window(const Program& program, const Node& node) {
  int64_t voxels = 1;
  for (int a = 0; a < program.axes; ++a) voxels *= node.kernel[size_t(a)];
  int32_t log2 = 0;
  while (int64_t(1) << (log2 + 1) <= voxels) ++log2;
  return log2;
}

}  // namespace

Axes three(const Program& program, const Axes& axes, int32_t missing) {
  Axes found{missing, missing, missing};
  for (int a = 0; a < program.axes; ++a) found[size_t(3 - program.axes + a)] = axes[size_t(a)];
  return found;
}

Plan::Plan(const Prepared& prepared, const Axes& image, int threads)
    : prepared_(prepared), image_(image), threads_(threads), sizes_(infer_sizes(prepared.program, image)) {
  tensors_.resize(sizes_.size());
  expanded_.resize(sizes_.size());
  choose_fused_pools();
  set_lifetimes();
  set_rings();
  set_sizes();
  place();
  // Every thread's buffers for tiles, behind the tensors.
  for (size_t number = 0; number < sizes_.size(); ++number) {
    const Layer* layer = prepared_.layers[number].get();
    if (layer == nullptr || !layer->winograd) continue;
    Winograd job;
    job.channels = layer->channels, job.outputs = padded16(prepared_.program.nodes[number].channels);
    job.depth_taps = layer->depth_taps, job.depth_dilation = layer->depth_dilation;
    job.columns = int32_t(extent(number).of[2]), job.output.in_float = layer->in_float;
    scratch_bytes_ = std::max(scratch_bytes_, prepared_.kernels->winograd_scratch(job));
  }
  scratch_bytes_ = (scratch_bytes_ + 127) / 64 * 64;
  scratch_offset_ = (arena_bytes_ + 63) / 64 * 64;
  arena_bytes_ = scratch_offset_ + scratch_bytes_ * size_t(threads);
}

void Plan::build(uint8_t* arena) {
  arena_ = arena;
  steps_.clear();
  for (Tensor& each : tensors_)
    if (each.stored) each.view.data = arena + each.offset + each.origin;
  const auto& nodes = prepared_.program.nodes;
  for (size_t number = 0; number < nodes.size(); ++number) {
    const Kind kind = nodes[number].kind;
    if (fused_[number] || !prepared_.live[number]) continue;
    if (kind == Kind::image) add_image(number);
    else if (kind == Kind::convolution) prepared_.layers[number]->winograd ? add_winograd(number) : add_direct(number);
    else if (kind != Kind::concat) add_move(number);
    else if (prepared_.materialised[number]) add_concat(number);
  }
  if (!nodes.back().accumulates) add_output(nodes.size() - 1);
}

// --- phases -----------------------------------------------------------------------------------------------------------

Phase Plan::over_lines(int64_t lines, std::function<void(int64_t, int64_t)> work) const {
  const int64_t chunk = std::max<int64_t>(1, lines / (threads_ * kChunksPerThread));
  const int64_t items = (lines + chunk - 1) / chunk;
  return {items, [=](int64_t item, int) { work(item * chunk, std::min(lines, (item + 1) * chunk)); }};
}

// The phase, with the ring around what the node writes filled beside it.
Phase Plan::with_ring(size_t node, Phase phase) const {
  const Tensor& tensor = tensors_[node];
  const Ring& ring = tensor.ring;
  const bool any = std::any_of(ring.before, ring.before + 3, [](int32_t n) { return n > 0; }) ||
                   std::any_of(ring.after, ring.after + 3, [](int32_t n) { return n > 0; });
  if (!tensor.stored || !any) return phase;
  const View view = tensor.view;
  const uint8_t value = uint8_t(prepared_.program.nodes[node].format.zero_point);
  const auto fill = prepared_.kernels->moves->fill_ring;
  const int64_t items = std::max<int64_t>(1, std::min<int64_t>(view.lines(), threads_)), lines = view.lines();
  auto inner = std::move(phase.work);
  auto work = [=](int64_t item, int worker) {
    if (item >= items) return inner(item - items, worker);
    fill(view, ring, value, item * lines / items, (item + 1) * lines / items);
  };
  return {phase.items + items, work};
}

Step& Plan::new_step(size_t node, const char* kind) {
  steps_.emplace_back();
  steps_.back().name = prepared_.program.nodes[node].name;
  steps_.back().kind = kind;
  return steps_.back();
}

// --- steps ------------------------------------------------------------------------------------------------------------

void Plan::add_image(size_t node) {
  if (!tensors_[node].stored) return;
  const View view = tensors_[node].view;
  const auto take = prepared_.kernels->moves->take_image;
  Phase phase = over_lines(view.lines(), [this, view, take](int64_t first, int64_t last) { take(ends.image, view, first, last); });
  new_step(node, "image").phases.push_back(with_ring(node, std::move(phase)));
}

void Plan::add_concat(size_t number) {
  const View whole = tensors_[number].view;
  std::vector<View> from;
  for (const Leaf& leaf : prepared_.reads[number].of) from.push_back(tensors_[leaf.node].view);
  const auto copy = prepared_.kernels->moves->max_pool;
  Phase phase = over_lines(whole.lines(), [=](int64_t first, int64_t last) {
    const Window window{{1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
    View part = whole;
    // In this order: what one writes beyond its channels the next one overwrites.
    for (const View& each : from) {
      part.channels = each.channels;
      copy(each, part, window, first, last);
      part.data += each.channels;
    }
  });
  new_step(number, "concat").phases.push_back(with_ring(number, std::move(phase)));
}

void Plan::add_move(size_t number) {
  const Node& node = prepared_.program.nodes[number];
  const Node& source = prepared_.program.nodes[node.inputs[0]];
  const Moves& moves = *prepared_.kernels->moves;
  const int axes = prepared_.program.axes;
  const View in = tensors_[node.inputs[0]].view, out = tensors_[number].view;
  Window window{};
  const Axes kernel = three(prepared_.program, node.kernel, 1), stride = three(prepared_.program, node.stride, 1);
  const Axes padding = three(prepared_.program, node.padding, 0);
  for (int a = 0; a < 3; ++a) window.kernel[a] = kernel[size_t(a)], window.stride[a] = stride[size_t(a)], window.padding[a] = padding[size_t(a)];
  const int32_t from_zero = source.format.zero_point, finer = source.format.exponent - node.format.exponent;
  std::function<void(int64_t, int64_t)> work;
  const char* kind = "";
  if (node.kind == Kind::max_pool) {
    kind = "max_pool";
    work = [=, &moves](int64_t first, int64_t last) { moves.max_pool(in, out, window, first, last); };
  } else if (node.kind == Kind::avg_pool) {
    kind = "avg_pool";
    const Requantization to = requantization(node, finer + log2_of_window(prepared_.program, node), false);
    work = [=, &moves](int64_t first, int64_t last) { moves.avg_pool(in, out, window, from_zero, to, first, last); };
  } else if (node.kind == Kind::upsample && node.mode == Upsampling::nearest) {
    kind = "nearest";
    const int32_t factor = node.factor;
    work = [=, &moves](int64_t first, int64_t last) { moves.upsample_nearest(in, out, factor, axes, first, last); };
  } else if (node.kind == Kind::upsample) {
    kind = "linear";
    const Requantization to = requantization(node, finer + 2 * axes, false);
    work = [=, &moves](int64_t first, int64_t last) { moves.upsample_linear(in, out, axes, from_zero, to, first, last); };
  } else if (node.kind == Kind::relu) {
    kind = "relu";
    work = [=, &moves](int64_t first, int64_t last) { moves.relu(in, out, from_zero, first, last); };
  } else {
    kind = "add";
    const Format &a = source.format, &b = prepared_.program.nodes[node.inputs[1]].format;
    const View other = tensors_[node.inputs[1]].view;
    const int32_t finest = std::max(a.exponent, b.exponent), za = a.zero_point, zb = b.zero_point;
    const int32_t left_a = finest - a.exponent, left_b = finest - b.exponent;
    const Requantization to = requantization(node, finest - node.format.exponent, node.relu);
    work = [=, &moves](int64_t first, int64_t last) { moves.add(in, other, out, za, zb, left_a, left_b, to, first, last); };
  }
  new_step(number, kind).phases.push_back(with_ring(number, over_lines(out.lines(), std::move(work))));
}

void Plan::add_output(size_t number) {
  const View view = tensors_[number].view;
  const auto give = prepared_.kernels->moves->give_bytes;
  new_step(number, "output").phases.push_back(
      over_lines(view.lines(), [this, view, give](int64_t first, int64_t last) { give(view, ends.output, first, last); }));
}

}  // namespace mq
