// libFuzzer target: any bytes are a program or are refused, and what is accepted has sizes or does not fit the image.
//
// clang++ -std=c++17 -g -O1 -fsanitize=address,undefined,fuzzer fuzz_program.cpp ../src/program*.cpp
// Seeds: python tests/deploy/native_cases.py FOLDER, from the root.
#include <cstdlib>

#include "case_file.h"

namespace {

// What the rest of the engine relies on.
void check_sizes(const mq::Program& program, const mq::Axes& image) {
  try {
    const std::vector<mq::Axes> sizes = mq::infer_sizes(program, image);
    if (sizes.size() != program.nodes.size()) std::abort();
    for (size_t node = 0; node < sizes.size(); ++node) {
      int64_t values = program.nodes[node].channels;
      for (size_t axis = 0; axis < size_t(program.axes); ++axis) {
        if (sizes[node][axis] < 1 || __builtin_mul_overflow(values, int64_t(sizes[node][axis]), &values)) std::abort();
      }
    }
  } catch (const mq::BadInput&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  const auto file = read_case_file(bytes, count);
  if (!file) return 0;
  try {
    const mq::Program program = file->load();
    for (const int32_t side : {1, 16, 100000, INT32_MAX, 0, -1, INT32_MIN}) check_sizes(program, {side, side, side});
    check_sizes(program, {1, INT32_MAX, 7});
  } catch (const mq::Refused& refusal) {
    if (refusal.what()[0] == 0) std::abort();
  }
  return 0;
}
