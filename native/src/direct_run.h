// Direct convolution of some lines: blocks of outputs, lines, blocks of voxels.
#pragma once

#include "direct.h"
#ifdef __AVX512VNNI__
#include "direct_few.h"
#endif

namespace mq {
namespace {

template <int kRegisters, bool kNarrow>
void run_line(const Direct& job, const DirectWriter& write, const LineRuns& runs, const int8_t* weights, const int32_t* start,
              int64_t column) {
  constexpr int kVoxels = kNarrow ? Simd::kVoxelsNarrow : Simd::kVoxels, kFew = kVoxels < 4 ? kVoxels : 4;
  for (; column + kVoxels <= job.columns; column += kVoxels) {
    Simd::Int sums[kVoxels][kRegisters];
    sum_voxels<kRegisters, kVoxels, kNarrow>(job, runs, column, weights, start, sums);
    write(sums, runs.depth, runs.row, column);
  }
  for (; column + kFew <= job.columns; column += kFew) {
    Simd::Int sums[kFew][kRegisters];
    sum_voxels<kRegisters, kFew, kNarrow>(job, runs, column, weights, start, sums);
    write(sums, runs.depth, runs.row, column);
  }
  for (; column < job.columns; ++column) {
    Simd::Int sums[1][kRegisters];
    sum_voxels<kRegisters, 1, kNarrow>(job, runs, column, weights, start, sums);
    write(sums, runs.depth, runs.row, column);
  }
}

#ifndef __AVX512VNNI__
// Sets with fewer registers leave all of a line to the general kernel.
struct FewOutputs {
  explicit FewOutputs(const Direct&) {}
  int64_t run_line(const LineRuns&) const { return 0; }
};
#endif

template <bool kNarrow>
void run_lines(const Direct& job, int64_t first_line, int64_t last_line) {
  const Blocks blocks{padded16(job.outputs), Simd::kLanes};
  const FewOutputs few(job);
  for (int32_t block = 0; block < blocks.count(); ++block) {
    const int8_t* weights = job.weights + block * job.steps * 2 * kDirectBytes;
    const int32_t* start = job.start + blocks.first(block);
    const DirectWriter write(job, blocks.first(block), blocks.registers(block));
    LineRuns runs(job);
    for (int64_t line = first_line; line < last_line; ++line) {
      runs.move_to(line / job.rows, line % job.rows);
      const int64_t column = few.run_line(runs);
      if (blocks.registers(block) == 2) run_line<2, kNarrow>(job, write, runs, weights, start, column);
      else run_line<1, kNarrow>(job, write, runs, weights, start, column);
    }
  }
}

void direct_run(const Direct& job, int64_t first_line, int64_t last_line) {
  constexpr int32_t kWorthwhile = 4;
  if (Simd::kVoxelsNarrow > 0 && job.narrow_steps >= kWorthwhile) run_lines<(Simd::kVoxelsNarrow > 0)>(job, first_line, last_line);
  else run_lines<false>(job, first_line, last_line);
}

}  // namespace
}  // namespace mq
