#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
#include <sstream>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mq {
namespace {

constexpr size_t kPage = 4096;
// Values of one image stay below 2^40, those of a batch within 64 bits.
constexpr int64_t kMostImages = int64_t(1) << 22;
constexpr int64_t kMostClasses = 256;  // of a mask of bytes
constexpr size_t kHugePage = size_t(2) << 20;

int64_t nanoseconds_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string text_of(const int64_t* shape, size_t axes) {
  std::string text = "(";
  for (size_t a = 0; a < axes; ++a) text += (a ? ", " : "") + std::to_string(shape[a]);
  return text + ")";
}

// As numpy shifts 64 bits, by which a mask is defined: what leaves them at the top is lost.
int64_t shifted(int32_t value, int32_t left) { return left < 64 ? int64_t(uint64_t(int64_t(value)) << left) : 0; }

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) out += ' ';
    else out += c;
  }
  return out + "\"";
}

}  // namespace

// --- memory -----------------------------------------------------------------------------------------------------------

Arena::~Arena() {
#if defined(__linux__)
  if (memory_) munmap(memory_, bytes_);
#else
  std::free(memory_);
#endif
}

uint8_t* Arena::reserve(size_t bytes) {
  if (bytes <= bytes_) return static_cast<uint8_t*>(memory_);
  const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
#if defined(__linux__)
  if (memory_) munmap(memory_, bytes_);
  memory_ = nullptr, bytes_ = 0;
  void* found = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  // Fewer entries for the address translation to keep; a small arena would only grow by it.
  if (rounded >= 4 * kHugePage) madvise(found, rounded, MADV_HUGEPAGE);
#else
  std::free(memory_);
  memory_ = nullptr, bytes_ = 0;
  void* found = std::aligned_alloc(kPage, rounded);
  if (found == nullptr) throw std::bad_alloc();
#endif
  memory_ = found, bytes_ = rounded;
  return static_cast<uint8_t*>(memory_);
}

// --- running ----------------------------------------------------------------------------------------------------------

Engine::Engine(Program program, const KernelSet& kernels, int threads) : prepared_(prepare(std::move(program), kernels)), pool_(threads) {}

Plan& Engine::plan_for(const int64_t* shape, size_t axes) {
  const Program& program = prepared_.program;
  const bool right_axes = axes == size_t(program.axes) + 2;
  if (!right_axes || shape[1] != program.nodes[0].channels || shape[0] < 0)
    throw BadInput("the program reads images of " + std::to_string(program.nodes[0].channels) + " channel(s) with " +
                   std::to_string(program.axes) + " spatial axes as (N, C, *S); found the shape " + text_of(shape, axes));
  if (shape[0] > kMostImages) throw BadInput("a batch of " + std::to_string(shape[0]) + " images; use several");
  Axes size{};
  for (int a = 0; a < program.axes; ++a) {
    if (shape[a + 2] < 1 || shape[a + 2] >= (int64_t(1) << 31)) throw BadInput("an image of shape " + text_of(shape, axes) + " cannot be run");
    size[size_t(a)] = int32_t(shape[a + 2]);
  }
  if (plan_ && plan_->image() == size) return *plan_;
  auto plan = std::make_unique<Plan>(prepared_, size, pool_.threads());
  plan_.reset();
  plan->build(arena_.reserve(plan->arena_bytes()));
  plan_ = std::move(plan);
  return *plan_;
}

void Engine::output_shape(const int64_t* shape, size_t axes, int64_t* output) {
  const Plan& plan = plan_for(shape, axes);
  output[0] = shape[0];
  output[1] = outputs();
  for (int a = 0; a < prepared_.program.axes; ++a) output[2 + a] = plan.output_size()[size_t(a)];
}

void Engine::run_one(Plan& plan, const uint8_t* image, int32_t* output) {
  plan.ends = {image, output};
  pool_.begin();
  for (Step& step : plan.steps()) {
    const int64_t start = timing_ ? nanoseconds_now() : 0;
    for (const Phase& phase : step.phases) pool_.run(phase.items, phase.work);
    if (timing_) step.nanoseconds = nanoseconds_now() - start;
  }
  pool_.end();
}

int64_t Engine::planned_voxels(const Plan& plan) const {
  int64_t voxels = 1;
  for (int a = 0; a < prepared_.program.axes; ++a) voxels *= plan.output_size()[size_t(a)];
  return voxels;
}

void Engine::run(const uint8_t* image, const int64_t* shape, size_t axes, int32_t* output, size_t values) {
  Plan& plan = plan_for(shape, axes);
  const int64_t out = planned_voxels(plan) * outputs();
  int64_t in = shape[1];
  for (size_t a = 2; a < axes; ++a) in *= shape[a];
  if (values != size_t(out * shape[0])) throw BadInput("the output has " + std::to_string(out * shape[0]) + " values, found room for " + std::to_string(values));
  for (int64_t n = 0; n < shape[0]; ++n) run_one(plan, image + n * in, output + n * out);
}

void Engine::decide(const uint8_t* image, const int64_t* shape, size_t axes, uint8_t* mask, size_t values) {
  if (outputs() > kMostClasses)
    throw BadInput("a mask holds 256 classes, and the program has " + std::to_string(outputs()) + "; decide from its outputs");
  Plan& plan = plan_for(shape, axes);
  const int64_t voxels = planned_voxels(plan);
  int64_t in = shape[1];
  for (size_t a = 2; a < axes; ++a) in *= shape[a];
  if (values != size_t(voxels * shape[0])) throw BadInput("the mask has " + std::to_string(voxels * shape[0]) + " values, found room for " + std::to_string(values));
  sums_.resize(size_t(voxels * outputs()));
  for (int64_t n = 0; n < shape[0]; ++n) {
    run_one(plan, image + n * in, sums_.data());
    decide_one(sums_.data(), mask + n * voxels, voxels);
  }
}

void Engine::decide_one(const int32_t* output, uint8_t* mask, int64_t voxels) {
  const Node& last = prepared_.program.nodes.back();
  const int32_t count = last.channels;
  // Accumulators of different exponents are brought to the finest grid first.
  std::vector<int32_t> left(size_t(count), 0);
  if (last.accumulates) {
    const int32_t finest = *std::max_element(last.weight_exponents.begin(), last.weight_exponents.end());
    for (int32_t c = 0; c < count; ++c) left[size_t(c)] = finest - last.weight_exponents[size_t(c)];
  }
  const int64_t zero_point = last.accumulates ? 0 : last.format.zero_point;
  constexpr int64_t kChunk = 4096;
  pool_.run((voxels + kChunk - 1) / kChunk, [&](int64_t item, int) {
    for (int64_t v = item * kChunk, end = std::min(voxels, v + kChunk); v < end; ++v) {
      if (count == 1) {
        mask[v] = output[v] > zero_point;
        continue;
      }
      int64_t best = shifted(output[v], left[0]);
      uint8_t chosen = 0;
      for (int32_t c = 1; c < count; ++c) {
        const int64_t value = shifted(output[c * voxels + v], left[size_t(c)]);
        if (value > best) best = value, chosen = uint8_t(c);
      }
      mask[v] = chosen;
    }
  });
}

std::string Engine::describe() const {
  size_t weights = 0;
  for (const auto& layer : prepared_.layers) {
    if (!layer) continue;
    weights += layer->whole.stored.size();
    for (const Part& part : layer->parts) weights += part.stored.size();
  }
  std::ostringstream text;
  text << "{\"kernels\": " << quoted(prepared_.kernels->name) << ", \"threads\": " << pool_.threads() << ", \"weight_bytes\": " << weights
       << ", \"arena_bytes\": " << arena_.bytes() << ", \"steps\": [";
  bool first = true;
  if (plan_)
    for (const Step& step : plan_->steps()) {
      text << (first ? "" : ", ") << "{\"name\": " << quoted(step.name) << ", \"kind\": " << quoted(step.kind)
           << ", \"multiplications\": " << step.multiplications << ", \"nanoseconds\": " << step.nanoseconds << "}";
      first = false;
    }
  text << "]}";
  return text.str();
}

}  // namespace mq
