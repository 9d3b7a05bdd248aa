// Convolutions made ready once, when a program is opened: which kernel runs them, weights in their stored width, what sums start with.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "program.h"

namespace mq {

// A tensor of its own that a node reads: a concatenation is read in place, as the list of what it joins.
struct Leaf {
  uint32_t node = 0;
  int32_t channels = 0;
  bool packed = false;  // voxels follow one another without padding bytes: the image of few channels
};

// What `node` reads through its input: the leaves of a concatenation that is not materialised, or the tensor itself.
struct Leaves {
  std::vector<Leaf> of;
  int32_t channels() const {
    int32_t all = 0;
    for (const Leaf& each : of) all += each.channels;
    return all;
  }
};

// Consecutive bytes of a leaf, seen from the voxel at `stride * output place + offset`.
struct RunSpec {
  int32_t leaf = 0;
  int32_t offset[3] = {0, 0, 0};  // depth, row, column
  int32_t channel = 0;
  int32_t reach = 1;              // voxels along the column axis it covers
  int32_t bytes = 0;
};

// One direct convolution: a group, or a phase of a transposed convolution.
struct Part {
  std::vector<RunSpec> runs;
  int64_t steps = 0;
  // Of a transposed convolution whose windows do not overlap, the phases along the columns are outputs side by side:
  // `merged` times the channels, phase by phase, which is how their bytes follow one another in memory.
  int32_t outputs = 0, first_output = 0, merged = 1;
  int32_t in_stride[3] = {1, 1, 1};
  // Places of the tensor it writes: first[a] + out_stride[a] * (m - lowest[a]) for m in [lowest, highest] along axis a,
  // found from the size of the output.
  int32_t out_stride[3] = {1, 1, 1};
  int32_t phase[3] = {0, 0, 0}, padding[3] = {0, 0, 0};
  std::vector<uint8_t> stored;
  int32_t stored_bits = 8;
  std::vector<int32_t> start;
  std::vector<float> scale;
  std::vector<int32_t> shift;
};

struct Layer {
  bool winograd = false;
  bool in_float = true;
  int32_t narrow_steps = 0;  // see Direct
  // Winograd: pieces are the leaves, once for each tap along the depth axis.
  int32_t channels = 0, depth_taps = 1, depth_dilation = 1;
  Part whole;               // Winograd: stored weights, start, scale, shift
  std::vector<Part> parts;  // direct
  int64_t multiplications = 0;  // a voxel of the output, as a direct convolution (of a transposed one: a voxel of the input)
};

// Throws Refused where the layer cannot be computed in 32 bits.
Layer prepare_layer(const Program& program, const Node& node, const Leaves& reads, const KernelSet& kernels);

}  // namespace mq
