#include "api.h"

#include <cstring>

// Being written: the interface stands, the engine behind it follows.
struct mq_engine {};

namespace {
int refuse(char* error, size_t bytes) {
  if (bytes > 0) std::strncpy(error, "the native engine is not there yet", bytes - 1), error[bytes - 1] = 0;
  return MQ_FAILED;
}
}  // namespace

int mq_abi(void) { return MQ_ABI; }
const char* mq_kernels(void) { return "portable"; }
int mq_open(const uint8_t*, size_t, const int8_t* const*, const size_t*, size_t, const char*, int, mq_engine**, char* e, size_t n) {
  return refuse(e, n);
}
int mq_output_shape(mq_engine*, const int64_t*, size_t, int64_t*, char* e, size_t n) { return refuse(e, n); }
int mq_run(mq_engine*, const uint8_t*, const int64_t*, size_t, int32_t*, size_t, char* e, size_t n) { return refuse(e, n); }
int mq_decide(mq_engine*, const uint8_t*, const int64_t*, size_t, uint8_t*, size_t, char* e, size_t n) { return refuse(e, n); }
void mq_set_timing(mq_engine*, int) {}
size_t mq_describe(mq_engine*, char*, size_t) { return 0; }
void mq_close(mq_engine*) {}
