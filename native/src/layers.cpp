#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "refusal.h"

namespace mq {
namespace {

constexpr int64_t kFloatLimit = int64_t(1) << 24, kScaledLimit = int64_t(1) << 22, kSumLimit = (int64_t(1) << 31) - 1;
constexpr int kG[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
constexpr int kA[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};

// A convolution seen along three axes (depth, row, column); 2D has one tap along the depth.
struct Taps {
  int32_t kernel[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, padding[3] = {0, 0, 0}, dilation[3] = {1, 1, 1};
  Taps(const Program& program, const Node& node) {
    const int first = 3 - program.axes;
    for (int a = 0; a < program.axes; ++a) {
      kernel[first + a] = node.kernel[a], stride[first + a] = node.stride[a];
      padding[first + a] = node.padding[a], dilation[first + a] = node.dilation[a];
    }
  }
  int64_t count() const { return int64_t(kernel[0]) * kernel[1] * kernel[2]; }
};

// Weight of an output and an input channel (both counted over all groups of one group) at a tap.
struct Weights {
  const Node& node;
  int64_t taps;
  int32_t ins, outs;  // of one group
  int8_t operator()(int32_t group, int32_t out, int32_t in, int64_t tap) const {
    const int64_t row = node.transposed ? (int64_t(group) * ins + in) * outs + out : (int64_t(group) * outs + out) * ins + in;
    return node.weight[size_t(row * taps + tap)];
  }
};

bool fits_four_bits(const Node& node) {
  return std::all_of(node.weight.begin(), node.weight.end(), [](int8_t w) { return w >= -8 && w <= 7; });
}

int32_t narrow_steps(const Program& program, const Node& node) {
  int32_t largest = 1;
  for (int8_t w : node.weight) largest = std::max(largest, std::abs(int32_t(w)));
  return INT16_MAX / (2 * largest * program.nodes[node.inputs[0]].format.highest());
}

// Whether a layer's requantization is exact in float32: sums below 2^24, products with 2^-shift below 2^22, see Simd::rounded.
bool exact_in_float(const Program& program, const Node& node, const Weights& weights) {
  const Format& read = program.nodes[node.inputs[0]].format;
  for (int32_t o = 0; o < weights.outs * node.groups; ++o) {
    int64_t sum = 0;
    for (int32_t in = 0; in < weights.ins; ++in)
      for (int64_t tap = 0; tap < weights.taps; ++tap) sum += std::abs(int(weights(o / weights.outs, o % weights.outs, in, tap)));
    const int64_t bound = sum * read.largest_magnitude() + std::llabs(node.bias[size_t(o)]);
    if (bound >= kFloatLimit) return false;
    if (node.accumulates) continue;
    const int32_t shift = node.weight_exponents[size_t(o)] + read.exponent - node.format.exponent;
    if (shift < -22 || shift > 100 || (shift >= 0 ? bound >> std::min(shift, 63) : bound << -shift) >= kScaledLimit - 1) return false;
  }
  return true;
}

// Where lanes of the padded outputs find their channel; -1 beyond the true ones.
std::vector<int32_t> lane_channels(int32_t outputs, int32_t lanes) {
  const Blocks blocks{padded16(outputs), lanes};
  std::vector<int32_t> channels(size_t(padded16(outputs)), -1);
  for (int32_t b = 0; b < blocks.count(); ++b)
    for (int32_t r = 0; r < blocks.registers(b); ++r)
      for (int32_t l = 0; l < lanes; ++l) {
        const int32_t channel = blocks.first(b) + channel_of_lane(blocks.registers(b), r, l);
        if (channel < outputs) channels[size_t(blocks.first(b) + r * lanes + l)] = channel;
      }
  return channels;
}

// Fills what the writer needs of each lane. `first` is the first output channel among those of the node.
void set_output(Part& part, const Program& program, const Node& node, int32_t extra_shift, const KernelSet& kernels) {
  const auto channels = lane_channels(part.outputs, kernels.lanes);
  part.scale.assign(channels.size(), 0.0f);
  part.shift.assign(channels.size(), 0);
  if (node.accumulates) return;
  for (size_t lane = 0; lane < channels.size(); ++lane) {
    if (channels[lane] < 0) continue;
    const int32_t exponent = node.weight_exponents[size_t(part.first_output + channels[lane] % (part.outputs / part.merged))];
    part.shift[lane] = exponent + program.nodes[node.inputs[0]].format.exponent - node.format.exponent;
    part.scale[lane] = std::ldexp(1.0f, std::max(-120, std::min(120, -(part.shift[lane] + extra_shift))));
  }
}

// Writes weights of (step, tap, lane, byte) where the kernels read them; see StoredWeights.
struct Store {
  Part& part;
  int32_t lanes, taps;
  int64_t steps;
  Blocks blocks;

  Store(Part& p, int64_t s, int32_t t, const KernelSet& kernels)
      : part(p), lanes(kernels.lanes), taps(t), steps(s), blocks{padded16(p.outputs), kernels.lanes} {
    const int64_t registers = part.stored_bits == 8 ? 2 : 1;
    part.stored.assign(size_t(blocks.count() * steps * taps * registers * lanes * 4), 0);
  }
  void put(int32_t output, int64_t step, int32_t tap, int32_t byte, int8_t weight) {
    const int32_t block = output / (2 * lanes), within = output % (2 * lanes);
    const int32_t registers = blocks.registers(block);
    const int32_t reg = registers == 1 ? 0 : within % 8 / 4;
    const int32_t lane = registers == 1 ? within : within / 8 * 4 + within % 4;
    if (part.stored_bits == 8) {
      const int64_t at = block * steps * taps * 2 + (step * taps + tap) * registers + reg;
      part.stored[size_t(at * lanes * 4 + lane * 4 + byte)] = uint8_t(weight);
      return;
    }
    const int64_t at = (block * steps + step) * taps + tap;
    part.stored[size_t(at * lanes * 4 + lane * 4 + byte)] |= uint8_t((weight & 15) << (4 * reg));
  }
};

// --- Winograd ---------------------------------------------------------------------------------------------------------

// Sums of the columns of |kG|: no transformed filter is larger in sum than its weights times these of both axes.
constexpr int kColumnSums[3] = {4, 2, 4};

// Whether the transformed filter fits a signed byte and can be negated.
bool transform_fits(const Weights& weights, int32_t out, int32_t in, int64_t first_tap) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      int sum = 0;
      for (int p = 0; p < 3; ++p)
        for (int q = 0; q < 3; ++q) sum += kG[i][p] * kG[j][q] * weights(0, out, in, first_tap + 3 * p + q);
      if (sum < -127 || sum > 127) return false;
    }
  return true;
}

// What the 128 on top of fifteen positions adds to the four outputs of a tile. The transform is linear: the sum of all filters of an
// output stands for each of them.
void add_corrections(const int64_t (&summed)[9], int64_t (&correction)[2][2]) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      if (i == 1 && j == 1) continue;  // the only position without
      int64_t u = 0;
      for (int p = 0; p < 3; ++p)
        for (int q = 0; q < 3; ++q) u += kG[i][p] * kG[j][q] * summed[3 * p + q];
      for (int a = 0; a < 2; ++a)
        for (int b = 0; b < 2; ++b) correction[a][b] += 128 * u * kA[a][i] * kA[b][j];
    }
}

bool winograd_shape(const Node& node, const Taps& taps, const Format& read) {
  const bool square = taps.kernel[1] == 3 && taps.kernel[2] == 3;
  const bool plain = std::all_of(taps.stride, taps.stride + 3, [](int32_t s) { return s == 1; }) && taps.dilation[1] == 1 &&
                     taps.dilation[2] == 1 && node.groups == 1 && !node.transposed && !node.accumulates;
  return square && plain && read.highest() <= 63;
}

// Fills the layer as a Winograd convolution; false where its numbers do not fit 8-bit products and 32-bit sums.
bool prepare_winograd(Layer& layer, const Program& program, const Node& node, const Leaves& reads, const Taps& taps,
                      const Weights& weights, const KernelSet& kernels) {
  const int32_t zero_point = program.nodes[node.inputs[0]].format.zero_point;
  Part& part = layer.whole;
  part.outputs = node.channels;
  part.stored_bits = fits_four_bits(node) ? 4 : 8;
  for (const Leaf& leaf : reads.of) layer.channels += padded16(leaf.channels);
  layer.channels *= taps.kernel[0];
  layer.depth_taps = taps.kernel[0], layer.depth_dilation = taps.dilation[0];
  Store store(part, layer.channels / 4, 9, kernels);
  const Blocks& blocks = store.blocks;
  part.start.assign(size_t(blocks.count()) * 8 * size_t(kernels.lanes), 0);
  for (int32_t out = 0; out < node.channels; ++out) {
    int64_t summed[9] = {}, magnitude = 0, place = 0;
    for (int32_t depth = 0; depth < taps.kernel[0]; ++depth) {
      int32_t before = 0;
      for (const Leaf& leaf : reads.of) {
        for (int32_t c = 0; c < leaf.channels; ++c) {
          if (part.stored_bits == 8 && !transform_fits(weights, out, before + c, 9 * depth)) return false;
          for (int32_t tap = 0; tap < 9; ++tap) {
            const int8_t weight = weights(0, out, before + c, 9 * depth + tap);
            summed[tap] += weight;
            magnitude += std::abs(int(weight)) * kColumnSums[tap / 3] * kColumnSums[tap % 3];
            store.put(out, (place + c) / 4, tap, int32_t((place + c) % 4), weight);
          }
        }
        before += leaf.channels;
        place += padded16(leaf.channels);
      }
    }
    int64_t sum = 0, correction[2][2] = {};
    for (int64_t each : summed) sum += each;
    add_corrections(summed, correction);
    const int64_t bias = 4 * (node.bias[size_t(out)] - zero_point * sum);
    if (255 * magnitude + 2 * std::llabs(bias) + 256 * magnitude >= kSumLimit) return false;
    const int32_t block = out / (2 * kernels.lanes), within = out % (2 * kernels.lanes), registers = blocks.registers(block);
    const int32_t reg = registers == 1 ? 0 : within % 8 / 4;
    const int32_t lane = registers == 1 ? within : within / 8 * 4 + within % 4;
    for (int a = 0; a < 2; ++a) {
      // What the sum and the difference of the two first sums of a row shall begin with; both are even.
      const int64_t of_sum = bias - correction[a][0], of_difference = bias - correction[a][1];
      int32_t* start = part.start.data() + block * 8 * kernels.lanes + a * 2 * registers * kernels.lanes + reg * kernels.lanes + lane;
      start[0] = int32_t((of_sum + of_difference) / 2);
      start[registers * kernels.lanes] = int32_t((of_sum - of_difference) / 2);
    }
  }
  set_output(part, program, node, 2, kernels);
  return true;
}

// --- direct -----------------------------------------------------------------------------------------------------------

struct AxisTap {
  int32_t tap, offset;
};

// Taps of one axis that take part, with the input's offset; of a transposed convolution those of one phase.
std::vector<AxisTap> axis_taps(const Node& node, const Taps& taps, int axis, int32_t phase) {
  std::vector<AxisTap> found;
  for (int32_t k = 0; k < taps.kernel[axis]; ++k) {
    const int32_t at = taps.dilation[axis] * k;
    if (!node.transposed) found.push_back({k, at - taps.padding[axis]});
    else if (at % taps.stride[axis] == phase) found.push_back({k, -(at - phase) / taps.stride[axis]});
  }
  return found;
}

// Windows that do not overlap along the columns, and voxels without padding bytes between them.
bool merges_columns(const Node& node, const Taps& taps, int axes) {
  return node.transposed && node.groups == 1 && !node.accumulates && node.channels % 16 == 0 && taps.kernel[2] == taps.stride[2] &&
         taps.padding[2] == 0 && taps.dilation[2] == 1 && node.output_padding[size_t(axes - 1)] == 0;
}

// Each phase takes memory of its own, with or without weights: strides alone must not ask for any amount.
void check_phases(const Node& node, const Taps& taps) {
  constexpr int64_t kMostParts = 1 << 16;
  const int64_t phases = node.transposed ? int64_t(taps.stride[0]) * taps.stride[1] * taps.stride[2] : 1;
  if (phases > 1 && phases > kMostParts / node.groups)
    refuse(node, "strides and groups of ", phases, " times ", node.groups, " parts, expected at most ", kMostParts);
}

struct GroupRun {
  RunSpec spec;
  std::vector<std::pair<int32_t, int64_t>> bytes;  // input channel of the group and tap of each byte
};

// The runs of one group and phase, in the order their weights are stored.
std::vector<GroupRun> make_runs(const Leaves& reads, const Taps& taps, const std::vector<AxisTap> (&along)[3], int32_t first, int32_t count) {
  std::vector<GroupRun> runs;
  auto tap_number = [&](int32_t d, int32_t r, int32_t c) { return (int64_t(d) * taps.kernel[1] + r) * taps.kernel[2] + c; };
  const auto& columns = along[2];
  const bool adjacent = columns.size() > 1 && columns[1].offset == columns[0].offset + 1;
  for (const AxisTap& depth : along[0])
    for (const AxisTap& row : along[1]) {
      int32_t before = 0;
      for (size_t number = 0; number < reads.of.size(); before += reads.of[number].channels, ++number) {
        const Leaf& leaf = reads.of[number];
        const int32_t low = std::max(first, before), high = std::min(first + count, before + leaf.channels);
        if (low >= high) continue;
        const bool whole = high - low == leaf.channels && (leaf.packed || leaf.channels % 16 == 0) && adjacent;
        for (size_t c = 0; c < columns.size(); c += whole ? columns.size() : 1) {
          GroupRun run;
          run.spec = {int32_t(number), {depth.offset, row.offset, columns[c].offset}, low - before, 1, 0};
          for (size_t k = c; k < (whole ? columns.size() : c + 1); ++k)
            for (int32_t channel = low; channel < high; ++channel)
              run.bytes.push_back({channel - first, tap_number(depth.tap, row.tap, columns[k].tap)});
          run.spec.reach = whole ? int32_t(columns.size()) : 1;
          run.spec.bytes = int32_t(run.bytes.size());
          runs.push_back(std::move(run));
        }
      }
    }
  return runs;
}

Part prepare_part(const Program& program, const Node& node, const Leaves& reads, const Taps& taps, const Weights& weights, int32_t group,
                  const int32_t (&phase)[3], int32_t merged, const KernelSet& kernels) {
  Part part;
  part.merged = merged;
  part.outputs = weights.outs * merged;
  part.first_output = group * weights.outs;
  part.stored_bits = fits_four_bits(node) ? 4 : 8;
  std::vector<AxisTap> along[3];
  for (int a = 0; a < 3; ++a) {
    along[a] = axis_taps(node, taps, a, phase[a]);
    part.phase[a] = phase[a];
    (node.transposed ? part.out_stride : part.in_stride)[a] = taps.stride[a];
    part.padding[a] = node.transposed ? taps.padding[a] : 0;
  }
  const auto runs = make_runs(reads, taps, along, group * weights.ins, weights.ins);
  for (const GroupRun& run : runs) part.steps += (run.spec.bytes + 3) / 4;
  Store store(part, part.steps, 1, kernels);
  std::vector<int64_t> sums(size_t(part.outputs), 0);
  int64_t step = 0;
  for (const GroupRun& run : runs) {
    part.runs.push_back(run.spec);
    for (size_t byte = 0; byte < run.bytes.size(); ++byte)
      for (int32_t out = 0; out < part.outputs; ++out) {
        // Of merged phases the first one's tap is given; the others' follow it.
        const int8_t weight = weights(group, out % weights.outs, run.bytes[byte].first, run.bytes[byte].second + out / weights.outs);
        sums[size_t(out)] += weight;
        store.put(out, step + int64_t(byte / 4), 0, int32_t(byte % 4), weight);
      }
    step += (run.spec.bytes + 3) / 4;
  }
  const auto channels = lane_channels(part.outputs, kernels.lanes);
  part.start.assign(channels.size(), 0);
  const int32_t zero_point = program.nodes[node.inputs[0]].format.zero_point;
  for (size_t lane = 0; lane < channels.size(); ++lane)
    if (channels[lane] >= 0)
      part.start[lane] = int32_t(node.bias[size_t(part.first_output + channels[lane] % weights.outs)] - zero_point * sums[size_t(channels[lane])]);
  set_output(part, program, node, 0, kernels);
  return part;
}

}  // namespace

Layer prepare_layer(const Program& program, const Node& node, const Leaves& reads, const KernelSet& kernels) {
  const Taps taps(program, node);
  const Weights weights{node, taps.count(), node.in_channels / node.groups, node.channels / node.groups};
  Layer layer;
  layer.in_float = node.accumulates || exact_in_float(program, node, weights);
  layer.narrow_steps = narrow_steps(program, node);
  layer.multiplications = taps.count() * weights.ins * node.channels;
  // Few input channels leave most of Winograd's 16 empty.
  if (kernels.winograd && node.in_channels >= 12 && winograd_shape(node, taps, program.nodes[node.inputs[0]].format)) {
    layer.winograd = prepare_winograd(layer, program, node, reads, taps, weights, kernels);
    if (layer.winograd) return layer;
    layer.channels = 0, layer.whole = Part{};
  }
  const int32_t merged = merges_columns(node, taps, program.axes) ? taps.stride[2] : 1;
  check_phases(node, taps);
  for (int32_t group = 0; group < node.groups; ++group) {
    int32_t phases[3];
    for (int a = 0; a < 3; ++a) phases[a] = node.transposed ? taps.stride[a] : 1;
    phases[2] /= merged;
    for (int32_t d = 0; d < phases[0]; ++d)
      for (int32_t r = 0; r < phases[1]; ++r)
        for (int32_t c = 0; c < phases[2]; ++c) 
            layer.parts.push_back(prepare_part(program, node, reads, taps, weights, group, {d, r, c}, merged, kernels));
  }
  return layer;
}

}  // namespace mq
