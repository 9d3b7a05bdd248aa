// Every kernel set of this processor against the definition, over random networks: whole programs through mq::Engine.
//
// Random graphs of all kinds of nodes follow, each in an arena filled with noise, and the edge cases.
//
// Usage: kernels_test COUNT [FIRST] [COST]: networks number FIRST to FIRST + COUNT. Exit code 1 and a line for each that differs.
#include <cstdio>
#include <cstdlib>

#include "../src/engine.h"
#include "../src/kernels.h"
#include "edge_cases.h"
#include "random_graph.h"
#include "random_network.h"

namespace {

int64_t failures = 0, comparisons = 0, arenas = 0, winograd_layers = 0, direct_layers = 0;

void append(std::vector<int32_t>& to, const naive::Tensor& tensor) {
  for (int64_t c = 0; c < tensor.channels; ++c)
    for (int64_t v = 0; v < tensor.voxels(); ++v) to.push_back(tensor.values[size_t(v * tensor.channels + c)]);
}

void count_layers(const mq::Engine& engine) {
  const std::string text = engine.describe();
  for (size_t at = 0; (at = text.find("\"kind\": \"", at)) != std::string::npos; at += 9) {
    if (text.compare(at + 9, 8, "winograd") == 0) ++winograd_layers;
    if (text.compare(at + 9, 6, "direct") == 0 || text.compare(at + 9, 10, "transposed") == 0) ++direct_layers;
  }
}

void compare(uint64_t number, const mq::KernelSet& kernels, const std::vector<int32_t>& expected, const std::vector<int32_t>& found) {
  ++comparisons;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (found[i] == expected[i]) continue;
    std::printf("network %llu, %s: value %zu of %zu is %d, expected %d\n", static_cast<unsigned long long>(number), kernels.name, i,
                expected.size(), found[i], expected[i]);
    ++failures;
    return;
  }
}

// What an arena held before is nobody's input, and what lies in it is needed until its last reader has run: the results are the same
// whatever it is filled with, from one run to the next.
void run_graph(uint64_t number) {
  RandomGraph graph(number);
  std::vector<int32_t> expected;
  append(expected, graph.tensors.back());
  const int threads = int(number % 3) + 1;
  for (const mq::KernelSet* kernels : mq::kernel_sets()) {
    const mq::Prepared prepared = mq::prepare(graph.program, *kernels);
    mq::Plan plan(prepared, graph.image, threads);
    mq::Pool pool(threads);
    // Of the very size: a sanitizer sees what is read or written beyond.
    std::vector<uint8_t> memory(plan.arena_bytes() + 63);
    uint8_t* arena = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    memory.resize(size_t(arena - memory.data()) + plan.arena_bytes());
    std::mt19937_64 noise(number);
    for (size_t i = 0; i < plan.arena_bytes(); ++i) arena[i] = uint8_t(noise());
    plan.build(arena);
    for (int run = 0; run < 2; ++run) {
      std::vector<int32_t> found(expected.size(), -987654321);
      plan.ends = {graph.bytes.data(), found.data()};
      for (const mq::Step& step : plan.steps())
        for (const mq::Phase& phase : step.phases) pool.run(phase.items, phase.work);
      ++arenas, --comparisons;
      compare(number, *kernels, expected, found);
    }
  }
}

void run_network(uint64_t number, int64_t cost) {
  RandomNetwork network(number, cost);
  const int64_t batch = network.chance(3) ? 2 : 1;
  std::vector<uint8_t> images;
  std::vector<int32_t> expected;
  std::vector<int64_t> shape{batch, network.program.nodes[0].channels};
  shape.insert(shape.end(), network.image.begin(), network.image.begin() + network.program.axes);
  for (int64_t n = 0; n < batch; ++n) {
    const std::vector<uint8_t> image = n == 0 ? network.first_image : network.some_image();
    images.insert(images.end(), image.begin(), image.end());
    append(expected, n == 0 ? network.tensors.back() : naive::run(network.program, naive::spread(network.program, network.image, image.data())));
  }
  const int threads = int(network.between(1, 3));
  for (const mq::KernelSet* kernels : mq::kernel_sets()) {
    // What a kernel does not write shall not look right.
    std::vector<int32_t> found(expected.size(), -987654321);
    mq::Engine engine(network.program, *kernels, threads);
    engine.run(images.data(), shape.data(), shape.size(), found.data(), found.size());
    compare(number, *kernels, expected, found);
    count_layers(engine);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 4) {
    std::fprintf(stderr, "usage: kernels_test COUNT [FIRST] [COST]\n");
    return 2;
  }
  const uint64_t networks = std::strtoull(arguments[1], nullptr, 10), first = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  const int64_t cost = count > 3 ? std::atoll(arguments[3]) : 1000000;
  for (uint64_t number = first; number < first + networks; ++number) run_network(number, cost), run_graph(number);
  failures += failed_edge_cases();
  std::printf("%zu sets:", mq::kernel_sets().size());
  for (const mq::KernelSet* each : mq::kernel_sets()) std::printf(" %s", each->name);
  std::printf("\n%lld comparisons, %lld winograd and %lld direct layers, %lld runs in filled arenas, %lld failures\n",
              static_cast<long long>(comparisons), static_cast<long long>(winograd_layers), static_cast<long long>(direct_layers),
              static_cast<long long>(arenas), static_cast<long long>(failures));
  return failures > 0;
}
