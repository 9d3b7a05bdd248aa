// Numbers at the ends of their types, each with what must come of it.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

#include "../src/engine.h"
#include "../src/kernels.h"

#if defined(__linux__)
#include <sys/resource.h>
#endif

namespace edge {

// One convolution of an image; every weight is 1.
inline mq::Program one_convolution(int32_t in_channels, int32_t channels, int32_t side, int32_t stride, bool transposed) {
  mq::Program program;
  program.axes = 2;
  mq::Node image;
  image.kind = mq::Kind::image, image.name = "image", image.channels = in_channels, image.format = {6, 0, 0};
  mq::Node node;
  node.kind = mq::Kind::convolution, node.name = "convolution", node.inputs = {0}, node.in_channels = in_channels;
  node.channels = channels, node.weight_bits = 4, node.format = {6, 0, 0}, node.transposed = transposed;
  for (size_t a = 0; a < 2; ++a) node.kernel[a] = side, node.stride[a] = stride, node.dilation[a] = 1, node.padding[a] = side / 2;
  node.weight.assign(size_t(channels * in_channels * side * side), 1);
  node.bias.assign(size_t(channels), 0), node.weight_exponents.assign(size_t(channels), 0);
  program.nodes = {image, node};
  return program;
}

template <class Error, class Work>
int must_throw(const char* what, Work work) {
  try {
    work();
  } catch (const Error& error) {
    return 0;
  }
  std::printf("%s: no error\n", what);
  return 1;
}

// The longest side there is, with a ring beyond it: the arena holds both tensors.
inline int longest_line(const mq::KernelSet& kernels) {
  const mq::Prepared prepared = mq::prepare(one_convolution(12, 16, 3, 1, false), kernels);
  const mq::Plan plan(prepared, {1, INT32_MAX}, 1);
  const size_t least = size_t(2) * 16 * INT32_MAX;
  if (plan.arena_bytes() >= least && plan.arena_bytes() < 8 * least) return 0;
  std::printf("%s, longest line: an arena of %zu bytes, expected %zu and some rings\n", kernels.name, plan.arena_bytes(), least);
  return 1;
}

// Values of a batch that are counted modulo 2^64 would come to none.
inline int largest_batch(const mq::KernelSet& kernels) {
  mq::Engine engine(one_convolution(1, 4, 1, 1, false), kernels, 1);
  const int64_t shape[] = {int64_t(1) << 62, 1, 1, 1};
  return must_throw<mq::BadInput>("largest batch", [&] { engine.run(nullptr, shape, 4, nullptr, 0); });
}

inline int many_classes(const mq::KernelSet& kernels) {
  mq::Engine engine(one_convolution(1, 257, 1, 1, false), kernels, 1);
  const int64_t shape[] = {1, 1, 1, 1};
  const uint8_t image = 0;
  uint8_t mask = 0;
  return must_throw<mq::BadInput>("257 classes", [&] { engine.decide(&image, shape, 4, &mask, 1); });
}

inline int many_phases(const mq::KernelSet& kernels) {
  return must_throw<mq::Refused>("many phases", [&] { mq::prepare(one_convolution(1, 1, 1, 257, true), kernels); });
}

// Each concatenation joins the one before it with itself.
inline int many_leaves(const mq::KernelSet& kernels) {
  mq::Program program = one_convolution(1, 1, 1, 1, false);
  program.nodes.pop_back();
  for (uint32_t number = 1; number <= 20; ++number) {
    mq::Node node;
    node.kind = mq::Kind::concat, node.name = "join", node.inputs = {number - 1, number - 1}, node.format = {6, 0, 0};
    node.channels = 2 * program.nodes.back().channels;
    program.nodes.push_back(node);
  }
  return must_throw<mq::Refused>("many leaves", [&] { mq::prepare(program, kernels); });
}

// Threads already started are joined when the system gives no more of them.
inline int too_many_threads() {
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  rlimit before;
  getrlimit(RLIMIT_AS, &before);
  rlimit little = before;
  little.rlim_cur = rlim_t(1) << 30;
  setrlimit(RLIMIT_AS, &little);
  const int failed = must_throw<std::runtime_error>("too many threads", [] { mq::Pool pool(100000); });
  setrlimit(RLIMIT_AS, &before);
  return failed;
#else
  return 0;
#endif
}

}  // namespace edge

inline int64_t failed_edge_cases() {
  int64_t failed = edge::too_many_threads();
  for (const mq::KernelSet* kernels : mq::kernel_sets()) {
    failed += edge::longest_line(*kernels) + edge::largest_batch(*kernels) + edge::many_classes(*kernels) + edge::many_phases(*kernels) +
              edge::many_leaves(*kernels);
  }
  return failed;
}
