// Loads a program as mq_open would and says what came of it, for tests/deploy/test_native_program.py.
//
// Usage: load_program [-l] FILE [I J [K]]. A file holds u32 number of weight arrays, for each u32 size and the weights, then
// the block. With -l the argument is a text file that names one such file a line. With a size: what each node writes.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "../src/program.h"

namespace {

struct Damaged {};

struct Case {
  std::vector<std::vector<int8_t>> weights;
  std::vector<uint8_t> block;
};

uint32_t take_number(const std::vector<char>& bytes, size_t& at) {
  if (bytes.size() - at < 4) throw Damaged{};
  uint32_t found = 0;
  for (int byte = 3; byte >= 0; --byte) found = found << 8 | static_cast<uint8_t>(bytes[at + size_t(byte)]);
  at += 4;
  return found;
}

// The arrays are copied each into memory of its own size: a sanitizer then sees whatever is read beyond it.
Case read_case(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Damaged{};
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  Case found;
  size_t at = 0;
  for (uint32_t left = take_number(bytes, at); left > 0; --left) {
    const uint32_t size = take_number(bytes, at);
    if (bytes.size() - at < size) throw Damaged{};
    found.weights.emplace_back(bytes.begin() + ptrdiff_t(at), bytes.begin() + ptrdiff_t(at + size));
    at += size;
  }
  found.block.assign(bytes.begin() + ptrdiff_t(at), bytes.end());
  return found;
}

void load(const std::string& path, const mq::Axes* image) {
  try {
    const Case read = read_case(path);
    std::vector<const int8_t*> weights;
    std::vector<size_t> sizes;
    for (const auto& each : read.weights) weights.push_back(each.data()), sizes.push_back(each.size());
    const mq::Program program =
        mq::read_program(read.block.data(), read.block.size(), weights.data(), sizes.data(), weights.size());
    std::printf("ok %zu\n", program.nodes.size());
    if (image == nullptr) return;
    const std::vector<mq::Axes> written = mq::infer_sizes(program, *image);
    for (size_t node = 0; node < written.size(); ++node) {
      std::printf("%s %d", program.nodes[node].name.c_str(), program.nodes[node].channels);
      for (int axis = 0; axis < program.axes; ++axis) std::printf(" %d", written[node][size_t(axis)]);
      std::printf("\n");
    }
  } catch (const mq::Refused& refusal) {
    std::printf("refused: %s\n", refusal.what());
  } catch (const mq::BadInput& refusal) {
    std::printf("bad input: %s\n", refusal.what());
  } catch (const Damaged&) {
    std::printf("no such file, or not one of a test\n");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const bool list = count == 3 && std::strcmp(arguments[1], "-l") == 0;
  if (!list && count != 2 && count != 4 && count != 5) {
    std::fprintf(stderr, "usage: load_program [-l] FILE [I J [K]]\n");
    return 2;
  }
  if (list) {
    std::ifstream names(arguments[2]);
    for (std::string path; std::getline(names, path);) load(path, nullptr);
    return 0;
  }
  mq::Axes image{};
  for (int axis = 0; axis + 2 < count; ++axis) image[size_t(axis)] = std::atoi(arguments[axis + 2]);
  load(arguments[1], count > 2 ? &image : nullptr);
  return 0;
}
