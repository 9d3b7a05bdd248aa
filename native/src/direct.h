// Direct convolution in byte products: sums over runs of consecutive input bytes, a block of voxels by a block of outputs.
#pragma once

#include "kernels.h"
#include "requantize.h"

namespace mq {
namespace {

constexpr int64_t kDirectBytes = Simd::kLanes * 4;

// The runs of one line of output, its first voxel: what would otherwise be computed for every block of voxels.
struct LineRuns {
  static constexpr int kMost = 128;
  const Direct& job;
  int64_t depth = 0, row = 0;
  const uint8_t* first[kMost];

  explicit LineRuns(const Direct& j) : job(j) {}
  void move_to(int64_t to_depth, int64_t to_row) {
    depth = to_depth, row = to_row;
    for (int32_t n = 0; n < job.run_count && n < kMost; ++n) first[n] = from_start(n);
  }
  const uint8_t* at(int32_t n, int64_t column) const { return (n < kMost ? first[n] : from_start(n)) + column * job.runs[n].column_step; }

 private:
  const uint8_t* from_start(int32_t n) const { return job.runs[n].data + depth * job.runs[n].depth_step + row * job.runs[n].row_step; }
};

// kVoxels voxels of one line. Three of them share a pointer: more would not fit the registers for addresses.
template <int kRegisters, int kVoxels>
__attribute__((always_inline)) inline void sum_voxels(const Direct& job, const LineRuns& runs, int64_t column, const int8_t* weights,
                                                      const int32_t* start, Simd::Int (&sums)[kVoxels][kRegisters]) {
  using Int = Simd::Int;
  constexpr int kPointers = (kVoxels + 2) / 3;
#pragma GCC unroll 16
  for (int v = 0; v < kVoxels; ++v) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; ++r) sums[v][r] = Simd::load(start + r * Simd::kLanes);
  }
  for (int32_t number = 0; number < job.run_count; ++number) {
    const Run& run = job.runs[number];
    const ptrdiff_t next = run.column_step;
    const uint8_t* at[kPointers];
#pragma GCC unroll 8
    for (int p = 0; p < kPointers; ++p) at[p] = runs.at(number, column + 3 * p);
    for (int32_t step = 0; step < run.steps; ++step) {
      Int w[kRegisters];
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) w[r] = Simd::load(weights + r * kDirectBytes);
      weights += kRegisters * kDirectBytes;
#pragma GCC unroll 16
      for (int v = 0; v < kVoxels; ++v) {
        const Int x = Simd::broadcast4(at[v / 3] + (v % 3) * next);
#pragma GCC unroll 2
        for (int r = 0; r < kRegisters; ++r) sums[v][r] = Simd::dot(sums[v][r], x, w[r]);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kPointers; ++p) {
        at[p] += 4;
        // Kept as pointers of their own.
        asm("" : "+r"(at[p]));
      }
    }
  }
}

// --- writing ----------------------------------------------------------------------------------------------------------

// Sums of `voxels` neighbours, (voxels, lanes), channel after channel.
inline void write_accumulators(const Direct& job, int32_t first_channel, int32_t registers, const int32_t* sums, int voxels, int32_t* to) {
  const int32_t width = registers * Simd::kLanes;
  for (int32_t lane = 0; lane < width; ++lane) {
    const int32_t channel = first_channel + channel_of_lane(registers, lane / Simd::kLanes, lane % Simd::kLanes);
    if (channel >= job.outputs) continue;
    int32_t* there = to + channel * job.channel_stride;
    for (int v = 0; v < voxels; ++v) {
      const int32_t sum = sums[v * width + lane];
      there[v * job.column_stride] = job.relu && sum < 0 ? 0 : sum;
    }
  }
}

// One voxel whose numbers need more than float32, or of which fewer than a whole block of channels may be written.
inline void write_voxel_slowly(const Direct& job, int32_t first_channel, int32_t registers, const int32_t* sums, uint8_t* to) {
  for (int32_t lane = 0; lane < registers * Simd::kLanes; ++lane) {
    const int32_t channel = first_channel + channel_of_lane(registers, lane / Simd::kLanes, lane % Simd::kLanes);
    if (channel >= job.outputs) continue;
    const int64_t q = rounded_shift(sums[lane], job.output.shift[first_channel + lane]) + job.output.zero_point;
    to[channel] = uint8_t(q < job.output.lowest ? job.output.lowest : q > job.output.highest ? job.output.highest : q);
  }
}

struct DirectWriter {
  const Direct& job;
  int32_t first_channel;
  const Simd::Clamp clamp;
  const Simd::Int rounding;
  Simd::Float scale[2];

  DirectWriter(const Direct& j, int32_t first, int32_t registers)
      : job(j), first_channel(first), clamp(j.output.lowest, j.output.highest), rounding(Simd::rounding(j.output.zero_point)) {
    if (job.bytes)
      for (int r = 0; r < registers; ++r) scale[r] = Simd::load_float(j.output.scale + first + r * Simd::kLanes);
  }

  template <int kRegisters, int kVoxels>
  __attribute__((always_inline)) void operator()(Simd::Int (&sums)[kVoxels][kRegisters], int64_t depth, int64_t row, int64_t column) const {
    const ptrdiff_t place = depth * job.depth_stride + row * job.row_stride + column * job.column_stride;
    const bool packs = job.bytes && job.output.in_float && (job.may_write_padding || first_channel + kRegisters * Simd::kLanes <= job.outputs);
    if (packs) return write_packed(sums, job.bytes + place + first_channel);
    constexpr int kWidth = kRegisters * Simd::kLanes;
    alignas(64) int32_t lanes[kVoxels * kWidth];
    for (int v = 0; v < kVoxels; ++v)
      for (int r = 0; r < kRegisters; ++r) Simd::store(lanes + v * kWidth + r * Simd::kLanes, sums[v][r]);
    if (!job.bytes) return write_accumulators(job, first_channel, kRegisters, lanes, kVoxels, job.accumulators + place);
    for (int v = 0; v < kVoxels; ++v)
      write_voxel_slowly(job, first_channel, kRegisters, lanes + v * kWidth, job.bytes + place + v * job.column_stride);
  }

 private:
  template <int kRegisters, int kVoxels>
  __attribute__((always_inline)) void scale_all(Simd::Int (&sums)[kVoxels][kRegisters]) const {
#pragma GCC unroll 16
    for (int v = 0; v < kVoxels; ++v) {
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) sums[v][r] = Simd::rounded(sums[v][r], scale[r], rounding);
    }
  }
  template <int kVoxels>
  __attribute__((always_inline)) void write_packed(Simd::Int (&sums)[kVoxels][2], uint8_t* to) const {
    scale_all<2, kVoxels>(sums);
#pragma GCC unroll 16
    for (int v = 0; v < kVoxels; v += 2) {
      const int second = v + 1 < kVoxels ? v + 1 : v;
      const Simd::Int packed = Simd::pack_two(sums[v], sums[second], clamp);
      Simd::store_first(to + v * job.column_stride, packed);
      if (second != v) Simd::store_second(to + second * job.column_stride, packed);
    }
  }
  template <int kVoxels>
  __attribute__((always_inline)) void write_packed(Simd::Int (&sums)[kVoxels][1], uint8_t* to) const {
    scale_all<1, kVoxels>(sums);
#pragma GCC unroll 16
    for (int v = 0; v < kVoxels; v += 4) {
      constexpr int last = kVoxels - 1;
      const Simd::Int packed = Simd::pack_four(sums[v][0], sums[v + 1 < last ? v + 1 : last][0], sums[v + 2 < last ? v + 2 : last][0],
                                               sums[v + 3 < last ? v + 3 : last][0], clamp);
      Simd::store_quarter<0>(to + v * job.column_stride, packed);
      if (v + 1 < kVoxels) Simd::store_quarter<1>(to + (v + 1) * job.column_stride, packed);
      if (v + 2 < kVoxels) Simd::store_quarter<2>(to + (v + 2) * job.column_stride, packed);
      if (v + 3 < kVoxels) Simd::store_quarter<3>(to + (v + 3) * job.column_stride, packed);
    }
  }
};

// --- weights ----------------------------------------------------------------------------------------------------------

// Steps [first, last) counted through all blocks: block * steps + step.
void expand_direct(const StoredWeights& stored, int64_t first, int64_t last, int8_t* expanded) {
  using B = WideBytes;
  const Blocks blocks{stored.outputs, Simd::kLanes};
  for (int64_t item = first; item < last; ++item) {
    const int64_t block = item / stored.steps, step = item % stored.steps;
    const int registers = blocks.registers(int32_t(block));
    int8_t* to = expanded + block * stored.steps * 2 * kDirectBytes + step * registers * kDirectBytes;
    const bool wide = stored.bits == 8;
    const uint8_t* from =
        stored.data + block * stored.steps * (wide ? 2 : 1) * kDirectBytes + step * (wide ? registers : 1) * kDirectBytes;
    for (int r = 0; r < registers; ++r) {
      if (wide) B::store(to + r * kDirectBytes, B::load(from + r * kDirectBytes));
      else B::store(to + r * kDirectBytes, r == 0 ? B::low_half(B::load(from)) : B::high_half(B::load(from)));
    }
  }
}

}  // namespace
}  // namespace mq
