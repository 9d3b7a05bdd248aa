#include "plan.h"

#include <algorithm>

namespace mq {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // of input that one item of a direct convolution reads: a share of the L2 cache
constexpr int64_t kChunksPerThread = 4;
constexpr int64_t kItemsPerThread = 8;

Axes three(const Program& program, const Axes& axes, int32_t missing) {
  Axes found{missing, missing, missing};
  for (int a = 0; a < program.axes; ++a) found[size_t(3 - program.axes + a)] = axes[size_t(a)];
  return found;
}

Requantization requantization(const Node& node, int32_t shift, bool relu) {
  return {shift, node.format.zero_point, relu ? node.format.zero_point : 0, node.format.highest()};
}

Output output_of(const Node& node, const Part& part, bool in_float) {
  Output output;
  output.scale = part.scale.data();
  output.shift = part.shift.data();
  output.in_float = in_float;
  output.zero_point = node.format.zero_point;
  output.lowest = node.relu ? node.format.zero_point : 0;
  output.highest = node.format.highest();
  return output;
}

int32_t log2_of_window(const Program& program, const Node& node) {
  int64_t voxels = 1;
  for (int a = 0; a < program.axes; ++a) voxels *= node.kernel[size_t(a)];
  int32_t log2 = 0;
  while (int64_t(1) << (log2 + 1) <= voxels) ++log2;
  return log2;
}

}  // namespace

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

Phase Plan::expansion(const Part& part, bool winograd, int64_t steps, uint8_t* to) const {
  const KernelSet& kernels = *prepared_.kernels;
  const StoredWeights stored{part.stored.data(), part.stored_bits, padded16(part.outputs), steps, winograd ? 9 : 1};
  const int64_t all = Blocks{stored.outputs, kernels.lanes}.count() * steps;
  const int64_t chunk = std::max<int64_t>(winograd ? 8 : 64, all / (threads_ * kChunksPerThread));
  const auto expand = winograd ? kernels.expand_winograd : kernels.expand_direct;
  return {(all + chunk - 1) / chunk,
          [=](int64_t item, int) { expand(stored, item * chunk, std::min(all, (item + 1) * chunk), reinterpret_cast<int8_t*>(to)); }};
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

void Plan::add_winograd(size_t number) {
  const Node& node = prepared_.program.nodes[number];
  const Layer& layer = *prepared_.layers[number];
  const KernelSet& kernels = *prepared_.kernels;
  const Axes padding = three(prepared_.program, node.padding, 0);
  uint8_t* expanded = arena_ + expanded_[number].offset;
  auto pieces = std::make_shared<std::vector<Piece>>();
  for (int32_t tap = 0; tap < layer.depth_taps; ++tap)
    for (const Leaf& leaf : prepared_.reads[number].of) {
      const View& view = tensors_[leaf.node].view;
      const int64_t depth = int64_t(tap) * layer.depth_dilation - padding[0];
      pieces->push_back({view.at(depth, -padding[1], -padding[2]), view.depth_stride, view.row_stride, view.column_stride,
                         padded16(leaf.channels)});
    }
  const Extent out = extent(number);
  Winograd job;
  job.pieces = pieces->data(), job.piece_count = int32_t(pieces->size());
  job.channels = layer.channels, job.outputs = padded16(node.channels);
  job.depth_taps = layer.depth_taps, job.depth_dilation = layer.depth_dilation;
  job.depths = int32_t(out.of[0]), job.rows = int32_t(out.of[1]), job.columns = int32_t(out.of[2]);
  job.weights = reinterpret_cast<const int8_t*>(expanded), job.start = layer.whole.start.data();
  job.output = output_of(node, layer.whole, layer.in_float);
  job.output.accumulators_shift = 2;
  if (tensors_[number].stored) job.out = tensors_[number].view;
  const int64_t pooled = pooled_into_[number];
  if (pooled >= 0 && tensors_[size_t(pooled)].stored) job.pooled = tensors_[size_t(pooled)].view;

  // Items of several blocks of tiles, as many as the threads can share evenly.
  const int64_t group = kernels.tile_unit(job), groups = (job.tiles() + group - 1) / group;
  const int64_t most = std::max<int64_t>(1, kernels.tiles_at_once(job) / group);
  int64_t blocks = std::min((groups + most - 1) / most, threads_ * kItemsPerThread);
  blocks = std::min(groups, (blocks + threads_ - 1) / threads_ * threads_);
  auto scratch = [this](int worker) { return arena_ + scratch_offset_ + size_t(worker) * scratch_bytes_; };
  Phase run{blocks, [=, &kernels](int64_t item, int worker) {
              const int64_t first = item * groups / blocks * group, last = std::min(job.tiles(), (item + 1) * groups / blocks * group);
              (void)pieces;  // kept alive
              kernels.winograd_run(job, first, last, scratch(worker));
            }};
  Step& step = new_step(number, "winograd");
  step.multiplications = layer.multiplications * out.voxels();
  step.phases.push_back(expansion(layer.whole, true, layer.channels / 4, expanded));
  run = with_ring(number, std::move(run));
  if (pooled >= 0) run = with_ring(size_t(pooled), std::move(run));
  step.phases.push_back(std::move(run));
}

void Plan::add_direct(size_t number) {
  const Node& node = prepared_.program.nodes[number];
  const Layer& layer = *prepared_.layers[number];
  const KernelSet& kernels = *prepared_.kernels;
  const auto& leaves = prepared_.reads[number].of;
  const View& view = tensors_[number].view;
  const Extent out = extent(number);
  uint8_t* expanded = arena_ + expanded_[number].offset;
  Step& step = new_step(number, node.transposed ? "transposed" : "direct");
  step.multiplications = layer.multiplications * (node.transposed ? extent(node.inputs[0]) : out).voxels();
  std::vector<Phase> unpack;
  struct Work {
    Direct job;
    std::vector<Run> runs;
    int64_t lines = 0, chunk = 1, first_item = 0;
    int64_t start = 0;  // of accumulators: where the output lies is known when the image comes
  };
  auto all = std::make_shared<std::vector<std::unique_ptr<Work>>>();
  int64_t items = 0;
  for (const Part& part : layer.parts) {
    uint8_t* to = expanded;
    expanded += expanded_bytes(part, false, part.steps, kernels);
    const PartPlaces places(part, out);
    if (!places.any()) continue;
    if (part.steps > 0) unpack.push_back(expansion(part, false, part.steps, to));
    auto work = std::make_unique<Work>();
    Direct& job = work->job;
    for (const RunSpec& run : part.runs) {
      const View& from = tensors_[leaves[size_t(run.leaf)].node].view;
      int64_t at[3];
      for (int a = 0; a < 3; ++a) at[a] = part.in_stride[a] * places.lowest[a] + run.offset[a];
      work->runs.push_back({from.at(at[0], at[1], at[2]) + run.channel, part.in_stride[0] * from.depth_stride,
                            part.in_stride[1] * from.row_stride, part.in_stride[2] * from.column_stride, (run.bytes + 3) / 4});
    }
    job.runs = work->runs.data(), job.run_count = int32_t(work->runs.size()), job.steps = part.steps;
    job.outputs = part.outputs;
    job.depths = int32_t(places.count[0]), job.rows = int32_t(places.count[1]), job.columns = int32_t(places.count[2]);
    job.weights = reinterpret_cast<const int8_t*>(to), job.start = part.start.data();
    job.output = output_of(node, part, layer.in_float);
    job.relu = node.relu;
    int64_t place[3];
    for (int a = 0; a < 3; ++a) place[a] = part.out_stride[a] * places.lowest[a] + part.phase[a] - part.padding[a];
    if (node.accumulates) {
      work->start = (place[0] * out.of[1] + place[1]) * out.of[2] + place[2] + part.first_output * out.voxels();
      job.depth_stride = part.out_stride[0] * out.of[1] * out.of[2], job.row_stride = part.out_stride[1] * out.of[2];
      job.column_stride = part.out_stride[2], job.channel_stride = out.voxels();
    } else {
      job.bytes = view.at(place[0], place[1], place[2]) + part.first_output;
      job.depth_stride = part.out_stride[0] * view.depth_stride, job.row_stride = part.out_stride[1] * view.row_stride;
      job.column_stride = part.out_stride[2] * view.column_stride;
      job.may_write_padding = part.outputs == node.channels * part.merged;
    }
    work->lines = int64_t(job.depths) * job.rows;
    int64_t line_bytes = 0;
    for (const RunSpec& run : part.runs) line_bytes = std::max<int64_t>(line_bytes, tensors_[leaves[size_t(run.leaf)].node].view.row_stride);
    const int64_t share = std::max<int64_t>(1, work->lines / (threads_ * kChunksPerThread));
    work->chunk = std::max<int64_t>(1, std::min(share, kChunkBytes / std::max<int64_t>(1, line_bytes * int64_t(leaves.size()))));
    work->first_item = items;
    items += (work->lines + work->chunk - 1) / work->chunk;
    all->push_back(std::move(work));
  }
  // One phase for all expansions.
  int64_t unpacking = 0;
  for (const Phase& each : unpack) unpacking += each.items;
  auto shared = std::make_shared<std::vector<Phase>>(std::move(unpack));
  step.phases.push_back({unpacking, [shared](int64_t item, int worker) {
                           size_t which = 0;
                           while (item >= (*shared)[which].items) item -= (*shared)[which++].items;
                           (*shared)[which].work(item, worker);
                         }});
  const bool accumulates = node.accumulates;
  Phase run{items, [this, all, accumulates, &kernels](int64_t item, int) {
              const auto after = std::upper_bound(all->begin(), all->end(), item,
                                                  [](int64_t i, const std::unique_ptr<Work>& work) { return i < work->first_item; });
              const Work& work = **(after - 1);
              const int64_t first = (item - work.first_item) * work.chunk, last = std::min(work.lines, first + work.chunk);
              if (!accumulates) return kernels.direct_run(work.job, first, last);
              Direct job = work.job;
              job.accumulators = ends.output + work.start;
              kernels.direct_run(job, first, last);
            }};
  step.phases.push_back(node.accumulates ? std::move(run) : with_ring(number, std::move(run)));
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
