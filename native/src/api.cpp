#include "api.h"

#include <cstring>
#include <new>

#include "engine.h"

struct mq_engine {
  mq::Engine engine;
};

namespace {

int report(int code, const std::string& message, char* error, size_t bytes) {
  if (error != nullptr && bytes > 0) {
    const size_t length = message.size() < bytes - 1 ? message.size() : bytes - 1;
    std::memcpy(error, message.data(), length);
    error[length] = 0;
  }
  return code;
}

// No exception leaves the library.
template <class Work>
int guarded(char* error, size_t bytes, Work work) {
  try {
    work();
    return MQ_OK;
  } catch (const mq::Refused& refused) {
    return report(MQ_REFUSED, refused.what(), error, bytes);
  } catch (const mq::BadInput& bad) {
    return report(MQ_INPUT, bad.what(), error, bytes);
  } catch (const std::bad_alloc&) {
    return report(MQ_MEMORY, "there is not enough memory for an image of this size", error, bytes);
  } catch (const std::exception& other) {
    return report(MQ_FAILED, other.what(), error, bytes);
  } catch (...) {
    return report(MQ_FAILED, "an unknown failure", error, bytes);
  }
}

const mq::KernelSet& choose(const std::string& wanted) {
  const auto& sets = mq::kernel_sets();
  for (const mq::KernelSet* each : sets)
    if (wanted == "auto" || wanted == each->name) return *each;
  throw mq::Refused("this processor has no kernels called '" + wanted + "'; it has " + mq_kernels());
}

}  // namespace

int mq_abi(void) { return MQ_ABI; }

const char* mq_kernels(void) {
  static const std::string names = [] {
    std::string all;
    for (const mq::KernelSet* each : mq::kernel_sets()) all += (all.empty() ? "" : ",") + std::string(each->name);
    return all;
  }();
  return names.c_str();
}

int mq_open(const uint8_t* program, size_t program_bytes, const int8_t* const* weights, const size_t* weight_sizes, size_t weight_count,
            const char* kernels, int threads, mq_engine** engine, char* error, size_t error_bytes) {
  *engine = nullptr;
  return guarded(error, error_bytes, [&] {
    const mq::KernelSet& set = choose(kernels);
    auto read = mq::read_program(program, program_bytes, weights, weight_sizes, weight_count);
    *engine = new mq_engine{mq::Engine(std::move(read), set, threads < 1 ? 1 : threads)};
  });
}

int mq_output_shape(mq_engine* engine, const int64_t* shape, size_t axes, int64_t* output_shape, char* error, size_t error_bytes) {
  return guarded(error, error_bytes, [&] { engine->engine.output_shape(shape, axes, output_shape); });
}

int mq_run(mq_engine* engine, const uint8_t* image, const int64_t* shape, size_t axes, int32_t* output, size_t output_values, char* error,
           size_t error_bytes) {
  return guarded(error, error_bytes, [&] { engine->engine.run(image, shape, axes, output, output_values); });
}

int mq_decide(mq_engine* engine, const uint8_t* image, const int64_t* shape, size_t axes, uint8_t* mask, size_t mask_values, char* error,
              size_t error_bytes) {
  return guarded(error, error_bytes, [&] { engine->engine.decide(image, shape, axes, mask, mask_values); });
}

void mq_set_timing(mq_engine* engine, int on) { engine->engine.set_timing(on != 0); }

size_t mq_describe(mq_engine* engine, char* text, size_t text_bytes) {
  const std::string all = engine->engine.describe();
  report(0, all, text, text_bytes);
  return all.size() + 1;
}

void mq_close(mq_engine* engine) { delete engine; }
