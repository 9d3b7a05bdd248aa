// The integer program as the engine reads it: typed nodes, checked once, so that nothing after it has to look again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mq {

// A program that is malformed or that this engine does not compute exactly.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An image that does not fit the program.
struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int kMaxAxes = 3;
using Axes = std::array<int32_t, kMaxAxes>;  // the first `axes` entries count; (I, J) or (I, J, K)

// How an activation's integers are read: (q - zero_point) * 2^-exponent, q in [0, 2^bits - 1].
struct Format {
  int32_t bits = 0;
  int32_t zero_point = 0;
  int32_t exponent = 0;
  int32_t highest() const { return (1 << bits) - 1; }
  int32_t largest_magnitude() const { return zero_point > highest() - zero_point ? zero_point : highest() - zero_point; }
};

enum class Kind : uint32_t { image, convolution, max_pool, avg_pool, upsample, relu, concat, add };
enum class Upsampling : int32_t { nearest, linear };

struct Node {
  Kind kind{};
  std::string name;
  std::vector<uint32_t> inputs;  // indices of earlier nodes
  bool accumulates = false;      // writes 32-bit accumulators: a convolution at the end
  Format format;                 // of what it writes, unless it accumulates
  int32_t channels = 0;          // of what it writes

  // convolution
  int32_t weight_bits = 0, groups = 1;
  bool relu = false, transposed = false;  // relu: of an addition too
  Axes kernel{}, stride{}, padding{}, dilation{}, output_padding{};  // kernel, stride, padding: of pooling too
  int32_t in_channels = 0;
  std::vector<int8_t> weight;  // (out, in/groups, *K), or (in, out/groups, *K) where transposed
  std::vector<int32_t> bias;
  std::vector<int32_t> weight_exponents;

  // up-sampling
  int32_t factor = 0;
  Upsampling mode = Upsampling::nearest;
};

struct Program {
  int axes = 0;  // spatial: 2 or 3
  std::vector<Node> nodes;
};

// Reads and checks a program; weights are copied.
// Throws Refused.
Program read_program(const uint8_t* bytes, size_t count, const int8_t* const* weights, const size_t* weight_sizes,
                     size_t weight_count);

// Spatial size of what each node writes for an image of this size. Throws BadInput where a layer does not fit.
std::vector<Axes> infer_sizes(const Program& program, const Axes& image);

}  // namespace mq
