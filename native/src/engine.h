// A program opened for running: its weights, its threads, and the plan of the image size last seen.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "plan.h"
#include "threads.h"

namespace mq {

// Memory for tensors: whole pages, given back to the system when it goes.
class Arena {
 public:
  ~Arena();
  // At least so many bytes, aligned to 64; what was there may be lost. Throws std::bad_alloc.
  uint8_t* reserve(size_t bytes);
  size_t bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

class Engine {
 public:
  // Throws Refused.
  Engine(Program program, const KernelSet& kernels, int threads);

  // (N, outputs, *S) for an image (N, C, *S). Throws BadInput.
  void output_shape(const int64_t* shape, size_t axes, int64_t* output);
  void run(const uint8_t* image, const int64_t* shape, size_t axes, int32_t* output, size_t values);
  void decide(const uint8_t* image, const int64_t* shape, size_t axes, uint8_t* mask, size_t values);
  void set_timing(bool on) { timing_ = on; }
  std::string describe() const;

 private:
  Plan& plan_for(const int64_t* shape, size_t axes);
  void run_one(Plan& plan, const uint8_t* image, int32_t* output);
  int64_t planned_voxels(const Plan& plan) const;
  void decide_one(const int32_t* output, uint8_t* mask, int64_t voxels);
  int64_t outputs() const { return prepared_.program.nodes.back().channels; }

  Prepared prepared_;
  Pool pool_;
  Arena arena_;
  std::unique_ptr<Plan> plan_;
  std::vector<int32_t> sums_;  // outputs to be decided
  bool timing_ = false;
};

}  // namespace mq
