// What this processor can do at most: byte products a second, and bytes a second read from each level of memory.
//
// Arguments: threads, milliseconds of one measurement. Prints one line a measurement: name, billions a second of all
// threads together (of operations, two a product; of bytes read).
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

#ifdef __AVX512VNNI__
using Register = __m512i;
Register zero() { return _mm512_setzero_si512(); }
Register ones() { return _mm512_set1_epi8(1); }
// Written out: a compiler joins sums that are equal and copies registers about.
#define MQ_DOT "vpdpbusd %2, %1, %0"
Register either(Register a, Register b) { return _mm512_or_si512(a, b); }
Register load(const void* from) { return _mm512_load_si512(from); }
#else
using Register = __m256i;
Register zero() { return _mm256_setzero_si256(); }
Register ones() { return _mm256_set1_epi8(1); }
#define MQ_DOT "%{vex%} vpdpbusd %2, %1, %0"
Register either(Register a, Register b) { return _mm256_or_si256(a, b); }
Register load(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }
#endif

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// As many sums as hide the instruction's latency; the smaller register file holds 12 beside the operands.
constexpr int kSums = sizeof(Register) == 64 ? 24 : 12;

constexpr double kWindow = 0.002;  // seconds, less than a job's turn on a processor

double products() {
  Register sums[kSums];
#pragma GCC unroll 24
  for (int n = 0; n < kSums; ++n) sums[n] = zero();
  const Register x = ones(), w = ones();
  constexpr int64_t kTurns = 20000;
  for (int64_t turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 24
    for (int n = 0; n < kSums; ++n) asm volatile(MQ_DOT : "+v"(sums[n]) : "v"(x), "v"(w));
  }
  Register all = zero();
#pragma GCC unroll 24
  for (int n = 0; n < kSums; ++n) all = either(all, sums[n]);
  asm volatile("" : : "v"(all));
  return double(kTurns) * kSums * 2 * sizeof(Register);
}

double read_all(const uint8_t* data, size_t bytes) {
  Register found[4] = {zero(), zero(), zero(), zero()};
  for (size_t at = 0; at < bytes; at += 4 * sizeof(Register))
    for (int n = 0; n < 4; ++n) found[n] = either(found[n], load(data + at + size_t(n) * sizeof(Register)));
  Register all = either(either(found[0], found[1]), either(found[2], found[3]));
  asm volatile("" : : "v"(all));
  return double(bytes);
}

// All threads at once for a while: what they did in a second, each in its best window, so that another job's turn does
// not count.
template <class Work>
double rate(int threads, double seconds, const Work& work) {
  std::atomic<int> ready{0};
  std::vector<double> rates(size_t(threads), 0.0);
  auto one = [&](int number) {
    work(number);
    ++ready;
    while (ready < threads) std::this_thread::yield();
    for (const double end = seconds_now() + seconds; seconds_now() < end;) {
      const double start = seconds_now();
      double done = 0, took = 0;
      do done += work(number);
      while ((took = seconds_now() - start) < kWindow);
      rates[size_t(number)] = std::max(rates[size_t(number)], done / took);
    }
  };
  std::vector<std::thread> others;
  for (int number = 1; number < threads; ++number) others.emplace_back(one, number);
  one(0);
  for (auto& each : others) each.join();
  double all = 0;
  for (const double each : rates) all += each;
  return all / 1e9;
}

void measure_reading(const char* name, size_t bytes, int threads, double seconds) {
  constexpr size_t kPiece = size_t(256) << 10;
  std::vector<uint8_t*> places;
  std::vector<size_t> at(size_t(threads), 0);
  for (int number = 0; number < threads; ++number) {
    auto* place = static_cast<uint8_t*>(std::aligned_alloc(4096, bytes));
    if (place == nullptr) return;
    for (size_t byte = 0; byte < bytes; byte += 64) place[byte] = uint8_t(byte);
    places.push_back(place);
  }
  auto next_piece = [&](int number) {
    size_t& from = at[size_t(number)];
    const double done = read_all(places[size_t(number)] + from, kPiece);
    from = (from + kPiece) % bytes;
    return done;
  };
  std::printf("%s %.3f\n", name, rate(threads, seconds, next_piece));
  for (uint8_t* place : places) std::free(place);
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : 1;
  const double seconds = (count > 2 ? std::atoi(arguments[2]) : 200) / 1000.0;
  if (threads < 1) return 2;
  std::printf("products %.3f\n", rate(threads, seconds, [](int) { return products(); }));
  measure_reading("L2", size_t(512) << 10, threads, seconds);
  measure_reading("L3", size_t(6) << 20, threads, seconds);
  measure_reading("memory", size_t(256) << 20, threads, seconds);
}
