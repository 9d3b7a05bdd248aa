// The steps of convolutions: weights expanded, then items of work for the kernels.
#include <algorithm>

#include "plan.h"

namespace mq {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // of input that one item of a direct convolution reads: a share of the L2 cache
constexpr int64_t kItemsPerThread = 8;

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

// Several phases as one: they need not wait for one another.
Phase joined(std::vector<Phase> phases) {
  int64_t items = 0;
  for (const Phase& each : phases) items += each.items;
  auto shared = std::make_shared<std::vector<Phase>>(std::move(phases));
  return {items, [shared](int64_t item, int worker) {
            size_t which = 0;
            while (item >= (*shared)[which].items) item -= (*shared)[which++].items;
            (*shared)[which].work(item, worker);
          }};
}

}  // namespace

Phase Plan::expansion(const Part& part, bool winograd, int64_t steps, uint8_t* to) const {
  const KernelSet& kernels = *prepared_.kernels;
  const StoredWeights stored{part.stored.data(), part.stored_bits, padded16(part.outputs), steps, winograd ? 9 : 1};
  const int64_t all = Blocks{stored.outputs, kernels.lanes}.count() * steps;
  const int64_t chunk = std::max<int64_t>(winograd ? 8 : 64, all / (threads_ * kChunksPerThread));
  const auto expand = winograd ? kernels.expand_winograd : kernels.expand_direct;
  return {(all + chunk - 1) / chunk,
          [=](int64_t item, int) { expand(stored, item * chunk, std::min(all, (item + 1) * chunk), reinterpret_cast<int8_t*>(to)); }};
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

DirectWork Plan::direct_work(size_t number, const Part& part, const PartPlaces& places, uint8_t* expanded) const {
  const Node& node = prepared_.program.nodes[number];
  const auto& leaves = prepared_.reads[number].of;
  const View& view = tensors_[number].view;
  const Extent out = extent(number);
  DirectWork work;
  Direct& job = work.job;
  int64_t line_bytes = 1, place[3];
  for (const RunSpec& run : part.runs) {
    const View& from = tensors_[leaves[size_t(run.leaf)].node].view;
    int64_t at[3];
    for (int a = 0; a < 3; ++a) at[a] = part.in_stride[a] * places.lowest[a] + run.offset[a];
    work.runs.push_back({from.at(at[0], at[1], at[2]) + run.channel, part.in_stride[0] * from.depth_stride,
                         part.in_stride[1] * from.row_stride, part.in_stride[2] * from.column_stride, (run.bytes + 3) / 4});
    line_bytes = std::max<int64_t>(line_bytes, from.row_stride);
  }
  job.run_count = int32_t(work.runs.size()), job.steps = part.steps, job.outputs = part.outputs;
  job.depths = int32_t(places.count[0]), job.rows = int32_t(places.count[1]), job.columns = int32_t(places.count[2]);
  job.weights = reinterpret_cast<const int8_t*>(expanded), job.start = part.start.data();
  job.output = output_of(node, part, prepared_.layers[number]->in_float);
  job.relu = node.relu, job.narrow_steps = prepared_.layers[number]->narrow_steps;
  for (int a = 0; a < 3; ++a) place[a] = part.out_stride[a] * places.lowest[a] + part.phase[a] - part.padding[a];
  if (node.accumulates) {
    work.start = (place[0] * out.of[1] + place[1]) * out.of[2] + place[2] + part.first_output * out.voxels();
    job.depth_stride = part.out_stride[0] * out.of[1] * out.of[2], job.row_stride = part.out_stride[1] * out.of[2];
    job.column_stride = part.out_stride[2], job.channel_stride = out.voxels();
  } else {
    job.bytes = view.at(place[0], place[1], place[2]) + part.first_output;
    job.depth_stride = part.out_stride[0] * view.depth_stride, job.row_stride = part.out_stride[1] * view.row_stride;
    job.column_stride = part.out_stride[2] * view.column_stride;
    job.may_write_padding = part.outputs == node.channels * part.merged;
  }
  work.lines = int64_t(job.depths) * job.rows;
  const int64_t share = std::max<int64_t>(1, work.lines / (threads_ * kChunksPerThread));
  work.chunk = std::max<int64_t>(1, std::min(share, kChunkBytes / (line_bytes * int64_t(leaves.size()))));
  return work;
}

void Plan::add_direct(size_t number) {
  const Node& node = prepared_.program.nodes[number];
  const Layer& layer = *prepared_.layers[number];
  const KernelSet& kernels = *prepared_.kernels;
  const Extent out = extent(number);
  Step& step = new_step(number, node.transposed ? "transposed" : "direct");
  step.multiplications = layer.multiplications * (node.transposed ? extent(node.inputs[0]) : out).voxels();
  std::vector<Phase> expansions;
  auto works = std::make_shared<std::vector<DirectWork>>();
  uint8_t* expanded = arena_ + expanded_[number].offset;
  int64_t items = 0;
  for (const Part& part : layer.parts) {
    const PartPlaces places(part, out);
    if (places.any()) {
      if (part.steps > 0) expansions.push_back(expansion(part, false, part.steps, expanded));
      works->push_back(direct_work(number, part, places, expanded));
      works->back().first_item = items;
      items += works->back().items();
    }
    expanded += expanded_bytes(part, false, part.steps, kernels);
  }
  for (DirectWork& each : *works) each.job.runs = each.runs.data();
  step.phases.push_back(joined(std::move(expansions)));
  const bool accumulates = node.accumulates;
  Phase run{items, [this, works, accumulates, &kernels](int64_t item, int) {
              const auto after = std::upper_bound(works->begin(), works->end(), item,
                                                  [](int64_t i, const DirectWork& work) { return i < work.first_item; });
              const DirectWork& work = *(after - 1);
              const int64_t first = (item - work.first_item) * work.chunk, last = std::min(work.lines, first + work.chunk);
              Direct job = work.job;
              if (accumulates) job.accumulators = ends.output + work.start;
              kernels.direct_run(job, first, last);
            }};
  step.phases.push_back(accumulates ? std::move(run) : with_ring(number, std::move(run)));
}

}  // namespace mq
