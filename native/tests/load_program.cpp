// Loads a program as mq_open does and says what came of it, for tests/deploy/test_native_program.py.
//
// Usage: load_program FILE [I J [K]]: "ok" and the nodes, or a refusal; with a size, channels and size of each tensor.
//        load_program -l LIST: the same for each of the files named in LIST, one a line.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "case_file.h"

namespace {

void print_sizes(const mq::Program& program, const mq::Axes& image) {
  const std::vector<mq::Axes> written = mq::infer_sizes(program, image);
  for (size_t node = 0; node < written.size(); ++node) {
    std::printf("%s %d", program.nodes[node].name.c_str(), program.nodes[node].channels);
    for (size_t axis = 0; axis < size_t(program.axes); ++axis) std::printf(" %d", written[node][axis]);
    std::printf("\n");
  }
}

void load(const std::string& path, const mq::Axes* image) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto found = read_case_file(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  if (!found) {
    std::printf("no case: %s\n", path.c_str());
    return;
  }
  try {
    const mq::Program program = found->load();
    std::printf("ok %zu\n", program.nodes.size());
    if (image != nullptr) print_sizes(program, *image);
  } catch (const mq::Refused& refusal) {
    std::printf("refused: %s\n", refusal.what());
  } catch (const mq::BadInput& refusal) {
    std::printf("bad input: %s\n", refusal.what());
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && std::strcmp(arguments[1], "-l") == 0) {
    std::ifstream names(arguments[2]);
    for (std::string path; std::getline(names, path);) load(path, nullptr);
    return 0;
  }
  if (count != 2 && count != 4 && count != 5) {
    std::fprintf(stderr, "usage: load_program FILE [I J [K]], or load_program -l LIST\n");
    return 2;
  }
  mq::Axes image{};
  for (int axis = 0; axis + 2 < count; ++axis) image[size_t(axis)] = std::atoi(arguments[axis + 2]);
  load(arguments[1], count > 2 ? &image : nullptr);
  return 0;
}
