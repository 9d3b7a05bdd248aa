// One image size: where every tensor lies in the arena, and what is run in which order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "layers.h"
#include "program.h"
#include "views.h"

namespace mq {

// A program made ready: what every node reads, and its convolutions.
struct Prepared {
  Program program;
  const KernelSet* kernels = nullptr;
  std::vector<Leaves> reads;                   // by node
  std::vector<bool> live;                      // by node: whether the output depends on it
  std::vector<bool> materialised;              // by node: concatenations that something else than a convolution reads
  std::vector<std::unique_ptr<Layer>> layers;  // by node, null where it is no convolution
};

// Throws Refused.
Prepared prepare(Program program, const KernelSet& kernels);

// Part of a step whose items are independent of one another.
struct Phase {
  int64_t items = 0;
  std::function<void(int64_t item, int worker)> work;
};

struct Step {
  std::string name, kind;
  int64_t multiplications = 0;
  int64_t nanoseconds = 0;  // of the last timed run
  std::vector<Phase> phases;
};

// The two ends of a run.
struct Ends {
  const uint8_t* image = nullptr;  // (C, *S)
  int32_t* output = nullptr;       // (outputs, *S)
};

// Depth, row, column.
struct Extent {
  int64_t of[3] = {1, 1, 1};
  int64_t lines() const { return of[0] * of[1]; }
  int64_t voxels() const { return lines() * of[2]; }
};

// Places of the output that one part of a direct convolution computes: m in [lowest, lowest + count) along each axis.
struct PartPlaces {
  int64_t lowest[3], count[3];
  PartPlaces(const Part& part, const Extent& out);
  bool any() const { return count[0] > 0 && count[1] > 0 && count[2] > 0; }
};

// A part of a direct convolution and how its lines are shared out.
struct DirectWork {
  Direct job;
  std::vector<Run> runs;
  int64_t lines = 0, chunk = 1, first_item = 0;
  int64_t start = 0;  // of accumulators: where the output lies is known when the image comes
  int64_t items() const { return (lines + chunk - 1) / chunk; }
};

class Plan {
 public:
  // Throws BadInput where the image does not fit.
  Plan(const Prepared& prepared, const Axes& image, int threads);

  const Axes& image() const { return image_; }
  const Axes& output_size() const { return sizes_.back(); }
  size_t arena_bytes() const { return arena_bytes_; }
  std::vector<Step>& steps() { return steps_; }

  // Writes the steps for an arena of arena_bytes(), aligned to 64.
  void build(uint8_t* arena);

  Ends ends;

 private:
  struct Tensor {
    View view;  // its data is null until built
    Ring ring;
    bool stored = false;
    size_t first = 0, last = 0;  // nodes between which it is needed
    size_t offset = 0, bytes = 0, origin = 0;
  };

  Extent extent(size_t node) const;
  int32_t channels_of(size_t node) const { return prepared_.program.nodes[node].channels; }

  // Layout (layout.cpp)
  void choose_fused_pools();
  void set_lifetimes();
  void set_rings();
  void widen_ring(size_t node, int axis, int64_t lowest, int64_t highest);
  void set_sizes();
  void place();

  // Steps (plan.cpp)
  Phase over_lines(int64_t lines, std::function<void(int64_t first, int64_t last)> work) const;
  Phase with_ring(size_t node, Phase phase) const;
  void add_image(size_t node);
  void add_winograd(size_t node);
  void add_direct(size_t node);
  DirectWork direct_work(size_t node, const Part& part, const PartPlaces& places, uint8_t* expanded) const;
  void add_concat(size_t node);
  void add_move(size_t node);
  void add_output(size_t node);
  Phase expansion(const Part& part, bool winograd, int64_t steps, uint8_t* to) const;
  Step& new_step(size_t node, const char* kind);

  const Prepared& prepared_;
  Axes image_;
  int threads_;
  std::vector<Axes> sizes_;
  std::vector<Tensor> tensors_;      // by node
  std::vector<Tensor> expanded_;     // by node: its weights, expanded for the kernel
  std::vector<int64_t> pooled_into_; // by node: the max pooling written along with it, -1 for none
  std::vector<bool> fused_;          // by node: written by another node's step
  std::vector<Step> steps_;
  size_t arena_bytes_ = 0, scratch_offset_ = 0, scratch_bytes_ = 0;
  uint8_t* arena_ = nullptr;
};

// Sizes along depth, row, column; `missing` along a depth that is not there.
Axes three(const Program& program, const Axes& axes, int32_t missing);

// Items a thread should find in a phase, so that one that is slower leaves some to the others.
constexpr int64_t kChunksPerThread = 4;

size_t expanded_bytes(const Part& part, bool winograd, int64_t steps, const KernelSet& kernels);

}  // namespace mq
