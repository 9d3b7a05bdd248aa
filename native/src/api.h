// The C interface of the native engine: what Python's ctypes, the sanitizer runs and the fuzzer call.
//
// A program is handed over as one block of bytes (docs/native.md gives its layout) and its weights as arrays of signed bytes,
// one for each convolution, in the order of the program. Nothing is kept of either after mq_open returns.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MQ_EXPORT __declspec(dllexport)
#else
#define MQ_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define MQ_ABI 1

typedef struct mq_engine mq_engine;

// What a function returns; everything but MQ_OK leaves a message in `error`, ended by a zero byte, cut to its size.
enum {
  MQ_OK = 0,
  MQ_REFUSED = 1,  // the program is malformed, or not one that this engine computes exactly
  MQ_INPUT = 2,    // the image does not fit the program
  MQ_MEMORY = 3,   // there is not enough memory
  MQ_FAILED = 4,   // anything else
};

MQ_EXPORT int mq_abi(void);

// Names of the kernel sets this processor can run, the fastest first, separated by commas: "avx512vnni,avxvnni,avx2,portable".
MQ_EXPORT const char* mq_kernels(void);

// Checks a program, packs its weights to 4 or 8 bits, starts the threads.
// `kernels`: "auto" or one of mq_kernels(). `threads`: those used, the caller's among them, at least 1.
MQ_EXPORT int mq_open(const uint8_t* program, size_t program_bytes, const int8_t* const* weights, const size_t* weight_sizes,
                      size_t weight_count, const char* kernels, int threads, mq_engine** engine, char* error, size_t error_bytes);

// Shape of the output (N, outputs, *S) for an image of shape (N, C, *S); both have `axes` entries.
MQ_EXPORT int mq_output_shape(mq_engine* engine, const int64_t* shape, size_t axes, int64_t* output_shape, char* error,
                              size_t error_bytes);

// Runs one batch: `image` is uint8 (N, C, *S), contiguous; `output` int32 (N, outputs, *S), of `output_values` values.
MQ_EXPORT int mq_run(mq_engine* engine, const uint8_t* image, const int64_t* shape, size_t axes, int32_t* output,
                     size_t output_values, char* error, size_t error_bytes);

// As mq_run for a program that ends in accumulators or integers, decided: class numbers, uint8 (N, *S).
// Equal values go to the lower class; with one output, 1 where it is above real zero.
MQ_EXPORT int mq_decide(mq_engine* engine, const uint8_t* image, const int64_t* shape, size_t axes, uint8_t* mask,
                        size_t mask_values, char* error, size_t error_bytes);

// With `on`, every step of a run is timed (wall clock of the step, all threads).
MQ_EXPORT void mq_set_timing(mq_engine* engine, int on);

// Writes a JSON text on the engine: kernel set, threads, bytes of weights and of the arena, and for each step of the last shape
// its name, kind, multiplications and nanoseconds of the last timed run. Returns the bytes needed, the zero byte included.
MQ_EXPORT size_t mq_describe(mq_engine* engine, char* text, size_t text_bytes);

MQ_EXPORT void mq_close(mq_engine* engine);

#ifdef __cplusplus
}
#endif
