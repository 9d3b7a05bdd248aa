// A pool of threads of the engine's own: items of work are claimed one by one, so that a thread that loses its processor to
// another process delays only the item it holds.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace mq {

class Pool {
 public:
  // Throws std::runtime_error where the system does not give so many.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  // Between these two calls work follows upon work: threads that wait stay awake for it.
  void begin() { active_.store(true, std::memory_order_relaxed); }
  void end() { active_.store(false, std::memory_order_relaxed); }

  // Calls work(item, worker) for every item in [0, items), the caller taking part as worker 0; returns when all are done.
  void run(int64_t items, const std::function<void(int64_t, int)>& work);

 private:
  void stop();
  void serve(int worker);
  void take_items(int worker);
  int looks() const;
  void help(int worker);
  bool wait_for_work(uint64_t& seen);

  std::vector<std::thread> workers_;
  const std::function<void(int64_t, int)>* work_ = nullptr;
  std::atomic<int64_t> next_{0}, left_{0};
  int64_t items_ = 0;
  std::atomic<uint64_t> round_{0};
  // A thread counts itself in before it looks at the work, and the work goes only when it is closed and nobody is in: one that
  // wakes up late finds it closed, and nobody waits for it.
  std::atomic<bool> open_{false};
  std::atomic<int> inside_{0};
  std::atomic<bool> stopping_{false}, active_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace mq
