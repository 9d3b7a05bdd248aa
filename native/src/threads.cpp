#include "threads.h"

#include <stdexcept>
#include <string>
#include <system_error>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace mq {
namespace {

// How often a thread looks for work before it sleeps, some 100 microseconds: steps follow one another closely, but what waits
// longer should leave the processor to other processes.
constexpr int kLooks = 8000;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) {
  try {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
  } catch (const std::system_error&) {
    const std::string started = std::to_string(this->threads());
    // One that is not joined would end the process.
    stop();
    throw std::runtime_error("the system gives only " + started + " of " + std::to_string(threads) + " threads; use fewer");
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    ++round_;
  }
  wake_.notify_all();
  for (auto& each : workers_) each.join();
}

void Pool::run(int64_t items, const std::function<void(int64_t, int)>& work) {
  if (workers_.empty() || items <= 1) {
    for (int64_t item = 0; item < items; ++item) work(item, 0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    items_ = items;
    next_.store(0, std::memory_order_relaxed);
    left_.store(items, std::memory_order_relaxed);
    open_.store(true);
    round_.fetch_add(1);
  }
  wake_.notify_all();
  take_items(0);
  // What is left is in the hands of threads at work, or of one that lost its processor in the middle of an item.
  for (int64_t look = 0; left_.load(std::memory_order_acquire) > 0; ++look) look < kLooks ? pause() : std::this_thread::yield();
  open_.store(false);
  for (int64_t look = 0; inside_.load() > 0; ++look) look < kLooks ? pause() : std::this_thread::yield();
}

void Pool::take_items(int worker) {
  for (int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) {
    (*work_)(item, worker);
    left_.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::help(int worker) {
  inside_.fetch_add(1);
  if (open_.load()) take_items(worker);
  inside_.fetch_sub(1);
}

int Pool::looks() const { return active_.load(std::memory_order_relaxed) ? kLooks : 0; }

bool Pool::wait_for_work(uint64_t& seen) {
  for (int look = 0; look < looks(); ++look) {
    if (round_.load(std::memory_order_acquire) != seen) break;
    pause();
  }
  if (round_.load(std::memory_order_acquire) == seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
  }
  seen = round_.load(std::memory_order_acquire);
  return !stopping_;
}

void Pool::serve(int worker) {
  for (uint64_t seen = 0; wait_for_work(seen);) help(worker);
}

}  // namespace mq
