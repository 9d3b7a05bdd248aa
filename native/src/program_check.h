// What a program must be, so that nothing after the loader has to look again. Each function throws Refused.
#pragma once

#include "program.h"

namespace mq {

// Limits of the format. Exponents have a byte, as in a model file: the shift of a requantization, which is the sum of a
// weight's and an input's exponent less the output's, lies well within 16 bits whatever a window adds to it.
constexpr int32_t kLowestExponent = -128, kHighestExponent = 127;
constexpr int32_t kMostChannels = 1 << 20;
constexpr int32_t kMostGeometry = (1 << 15) - 1;
constexpr uint64_t kAccumulatorLimit = uint64_t(1) << 31;

// What every node has: its inputs among the `earlier` ones, its format, and whether it may write accumulators.
void check_head(const Program& earlier, const Node& node, bool last);

// What its kind asks for, before its channels are counted and the weights of a convolution are there.
void check_geometry(const Program& earlier, const Node& node);

// That its integers fit: formats that are kept, sums that stay below 2^31, weights within their width.
void check_arithmetic(const Program& earlier, const Node& node);

// Values the weights of a convolution must have; Refused where they are more than 64 bits count.
uint64_t weight_values(const Node& node, int axes);

}  // namespace mq
