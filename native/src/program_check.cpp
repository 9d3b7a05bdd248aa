#include "program_check.h"

#include <algorithm>
#include <cstdlib>

#include "refusal.h"

namespace mq {
namespace {

const Node& source(const Program& earlier, const Node& node, size_t input = 0) {
  return earlier.nodes[node.inputs[input]];
}

void check_inputs(const Program& earlier, const Node& node) {
  const size_t found = node.inputs.size();
  const bool first = earlier.nodes.empty();
  if (first != (node.kind == Kind::image)) {
    refuse(node, first ? "the first node, expected the image" : "a second image, expected one, as the first node");
  }
  const size_t least = node.kind == Kind::image ? 0 : node.kind == Kind::add ? 2 : 1;
  if (node.kind == Kind::concat ? found < least : found != least) {
    refuse(node, found, " inputs, expected ", node.kind == Kind::concat ? "at least " : "", least);
  }
  for (const uint32_t input : node.inputs) {
    if (input >= earlier.nodes.size()) {
      refuse(node, "reads node ", input, ", expected one of the ", earlier.nodes.size(), " before it");
    }
  }
}

void check_format(const Node& node) {
  const Format& format = node.format;
  if (node.accumulates) {
    if (format.bits != 0 || format.zero_point != 0 || format.exponent != 0) {
      refuse(node, "accumulators with a format of ", format.bits, " bits, expected zeros there");
    }
    return;
  }
  if (format.bits < 1 || format.bits > 8) refuse(node, "a format of ", format.bits, " bits, expected 1 to 8");
  if (format.zero_point < 0 || format.zero_point > format.highest()) {
    refuse(node, "zero point ", format.zero_point, ", expected 0 to ", format.highest(), " in ", format.bits, " bits");
  }
  if (format.exponent < kLowestExponent || format.exponent > kHighestExponent) {
    refuse(node, "exponent ", format.exponent, ", expected ", kLowestExponent, " to ", kHighestExponent);
  }
}

void check_range(const Node& node, const char* what, int64_t found, int64_t lowest, int64_t highest) {
  if (found < lowest || found > highest) refuse(node, what, " ", found, ", expected ", lowest, " to ", highest);
}

void check_axes(const Node& node, int axes, const char* what, const Axes& found, int32_t lowest, int32_t highest) {
  for (int axis = 0; axis < axes; ++axis) check_range(node, what, found[axis], lowest, highest);
}

void check_window(const Node& node, int axes) {
  check_axes(node, axes, "kernel", node.kernel, 1, kMostGeometry);
  check_axes(node, axes, "stride", node.stride, 1, kMostGeometry);
  check_axes(node, axes, "padding", node.padding, 0, kMostGeometry);
}

void check_convolution(const Program& earlier, const Node& node) {
  check_range(node, "weight bits", node.weight_bits, 1, 8);
  check_window(node, earlier.axes);
  check_axes(node, earlier.axes, "dilation", node.dilation, 1, kMostGeometry);
  check_axes(node, earlier.axes, "output padding", node.output_padding, 0, node.transposed ? kMostGeometry : 0);
  check_range(node, "output channels", node.channels, 1, kMostChannels);
  check_range(node, "input channels", node.in_channels, 1, kMostChannels);
  check_range(node, "groups", node.groups, 1, kMostChannels);
  if (node.channels % node.groups != 0 || node.in_channels % node.groups != 0) {
    refuse(node, node.groups, " groups do not divide ", node.in_channels, " input and ", node.channels,
           " output channels");
  }
  const int32_t read = source(earlier, node).channels;
  if (read != node.in_channels) {
    refuse(node, "weights for ", node.in_channels, " channels, and its input has ", read);
  }
}

// Voxels of a window; at most 2^45.
uint64_t window_voxels(const Node& node, int axes) {
  uint64_t voxels = 1;
  for (int axis = 0; axis < axes; ++axis) voxels *= uint64_t(node.kernel[axis]);
  return voxels;
}

void check_max_pool(const Node& node, int axes) {
  check_window(node, axes);
  for (int axis = 0; axis < axes; ++axis) {
    // Otherwise a window may lie in the padding alone, where nothing can win.
    if (2 * node.padding[axis] > node.kernel[axis]) {
      refuse(node, "padding ", node.padding[axis], ", expected at most half of the window of ", node.kernel[axis]);
    }
  }
}

void check_average(const Node& node, int axes) {
  check_window(node, axes);
  const uint64_t voxels = window_voxels(node, axes);
  if ((voxels & (voxels - 1)) != 0) {
    refuse(node, "averages over ", voxels, " voxels, expected a power of two");
  }
}

void check_addition(const Program& earlier, const Node& node) {
  const int32_t first = source(earlier, node, 0).channels, second = source(earlier, node, 1).channels;
  if (first != second) refuse(node, "adds ", first, " channels and ", second, ", expected equal numbers");
}

[[noreturn]] void refuse_sums(const Node& node, const char* what, uint64_t bound) {
  throw Refused(joined(what, " of ", shown(node.name), " reach ", bound,
                       ", beyond 32 bits; use engine torch or reference"));
}

std::string described(const Format& format) {
  return joined(format.bits, " bits, zero point ", format.zero_point, ", exponent ", format.exponent);
}

void check_kept_format(const Program& earlier, const Node& node) {
  const Format& written = node.format;
  for (const uint32_t input : node.inputs) {
    const Format& read = earlier.nodes[input].format;
    if (read.zero_point != written.zero_point || read.exponent != written.exponent || read.bits > written.bits) {
      refuse(node, "moves integers of ", shown(earlier.nodes[input].name), " (", described(read),
             ") into another format (", described(written), ")");
    }
  }
}

void check_addition_sums(const Program& earlier, const Node& node) {
  const Format &first = source(earlier, node, 0).format, &second = source(earlier, node, 1).format;
  const int32_t finer = std::max(first.exponent, second.exponent);
  uint64_t bound = 0;
  for (const Format* read : {&first, &second}) {
    // 31 places are too many already, and the shift must stay within 64 bits.
    bound += uint64_t(read->largest_magnitude()) << std::min(finer - read->exponent, 31);
  }
  if (bound >= kAccumulatorLimit) refuse_sums(node, "sums", bound);
}

void check_weights(const Node& node) {
  const bool signs = node.weight_bits == 1;
  const int half = 1 << (node.weight_bits - 1);
  const int lowest = -half, highest = signs ? 1 : half - 1;
  for (const int8_t value : node.weight) {
    if (value < lowest || value > highest || (signs && value == 0)) {
      refuse(node, "weight ", int(value), ", expected ", lowest, " to ", highest, signs ? " without 0" : "",
             " in ", node.weight_bits, " bits");
    }
  }
  for (const int32_t exponent : node.weight_exponents) {
    check_range(node, "weight exponent", exponent, kLowestExponent, kHighestExponent);
  }
}

// Sum of |weight| for each output channel over all taps, which bounds each voxel of a transposed convolution too.
std::vector<uint64_t> weight_sums(const Node& node, int axes) {
  std::vector<uint64_t> sums(size_t(node.channels), 0);
  const size_t taps = size_t(window_voxels(node, axes));
  const size_t rows = size_t(node.transposed ? node.in_channels : node.channels);
  const size_t columns = node.weight.size() / rows / taps;
  const size_t rows_in_group = rows / size_t(node.groups);
  const int8_t* value = node.weight.data();
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < columns; ++column) {
      uint64_t& sum = sums[node.transposed ? row / rows_in_group * columns + column : row];
      for (size_t tap = 0; tap < taps; ++tap) sum += uint64_t(std::abs(int(*value++)));
    }
  }
  return sums;
}

// Kernels sum weights times bytes, the zero point still in them, and take the zero point's share off with the bias.
// This bounds every such sum. The bound of the accumulators, sum|w| * largest |q - z| + |bias|, is never more.
void check_accumulators(const Program& earlier, const Node& node) {
  const Format& read = source(earlier, node).format;
  const std::vector<uint64_t> sums = weight_sums(node, earlier.axes);
  uint64_t bound = 0;
  for (size_t channel = 0; channel < sums.size(); ++channel) {
    const uint64_t bias = uint64_t(std::llabs(node.bias[channel]));
    bound = std::max(bound, sums[channel] * uint64_t(read.highest() + read.zero_point) + bias);
  }
  if (bound >= kAccumulatorLimit) refuse_sums(node, "accumulators", bound);
}

}  // namespace

void check_head(const Program& earlier, const Node& node, bool last) {
  check_inputs(earlier, node);
  if (node.accumulates && (!last || node.kind != Kind::convolution)) {
    refuse(node, "writes accumulators, which only a convolution at the end may do");
  }
  check_format(node);
}

void check_geometry(const Program& earlier, const Node& node) {
  switch (node.kind) {
    case Kind::image:
      return check_range(node, "channels", node.channels, 1, kMostChannels);
    case Kind::convolution:
      return check_convolution(earlier, node);
    case Kind::max_pool:
      return check_max_pool(node, earlier.axes);
    case Kind::avg_pool:
      return check_average(node, earlier.axes);
    case Kind::upsample:
      if (node.mode == Upsampling::linear) return check_range(node, "factor of linear up-sampling", node.factor, 2, 2);
      return check_range(node, "factor", node.factor, 1, kMostGeometry);
    case Kind::add:
      return check_addition(earlier, node);
    case Kind::relu:
    case Kind::concat:
      return;
  }
}

void check_arithmetic(const Program& earlier, const Node& node) {
  switch (node.kind) {
    case Kind::convolution:
      check_weights(node);
      return check_accumulators(earlier, node);
    case Kind::avg_pool: {
      const uint64_t bound = window_voxels(node, earlier.axes) * uint64_t(source(earlier, node).format.highest());
      if (bound >= kAccumulatorLimit) refuse_sums(node, "sums", bound);
      return;
    }
    case Kind::add:
      return check_addition_sums(earlier, node);
    case Kind::upsample:
      if (node.mode == Upsampling::linear) return;
      return check_kept_format(earlier, node);
    case Kind::max_pool:
    case Kind::relu:
    case Kind::concat:
      return check_kept_format(earlier, node);
    case Kind::image:
      return;
  }
}

uint64_t weight_values(const Node& node, int axes) {
  // Channels come to at most 2^40 and a window to at most 2^45 voxels, so one product can leave 64 bits.
  const uint64_t pairs = uint64_t(node.channels) * uint64_t(node.in_channels / node.groups);
  const uint64_t voxels = window_voxels(node, axes);
  if (voxels > UINT64_MAX / pairs) refuse(node, pairs, " kernels of ", voxels, " voxels: more than 64 bits count");
  return pairs * voxels;
}

}  // namespace mq
