// Direct convolution of some lines: blocks of outputs, lines, blocks of voxels.
#pragma once

#include "direct.h"
#ifdef __AVX512VNNI__
#include "direct_few.h"
#endif

namespace mq {
namespace {

template <int kRegisters>
void run_line(const Direct& job, const DirectWriter& write, const LineRuns& runs, const int8_t* weights, const int32_t* start,
              int64_t column) {
  constexpr int kVoxels = Simd::kVoxels, kFew = 4;
  for (; column + kVoxels <= job.columns; column += kVoxels) {
    Simd::Int sums[kVoxels][kRegisters];
    sum_voxels<kRegisters, kVoxels>(job, runs, column, weights, start, sums);
    write(sums, runs.depth, runs.row, column);
  }
  for (; column + kFew <= job.columns; column += kFew) {
    Simd::Int sums[kFew][kRegisters];
    sum_voxels<kRegisters, kFew>(job, runs, column, weights, start, sums);
    write(sums, runs.depth, runs.row, column);
  }
  for (; column < job.columns; ++column) {
    Simd::Int sums[1][kRegisters];
    sum_voxels<kRegisters, 1>(job, runs, column, weights, start, sums);
    write(sums, runs.depth, runs.row, column);
  }
}

void direct_run(const Direct& job, int64_t first_line, int64_t last_line) {
  const Blocks blocks{padded16(job.outputs), Simd::kLanes};
#ifdef __AVX512VNNI__
  const FewOutputs few(job);
#endif
  for (int32_t block = 0; block < blocks.count(); ++block) {
    const int8_t* weights = job.weights + block * job.steps * 2 * kDirectBytes;
    const int32_t* start = job.start + blocks.first(block);
    const DirectWriter write(job, blocks.first(block), blocks.registers(block));
    LineRuns runs(job);
    for (int64_t line = first_line; line < last_line; ++line) {
      runs.move_to(line / job.rows, line % job.rows);
#ifdef __AVX512VNNI__
      const int64_t column = few.run_line(runs);
#else
      constexpr int64_t column = 0;
#endif
      if (blocks.registers(block) == 2) run_line<2>(job, write, runs, weights, start, column);
      else run_line<1>(job, write, runs, weights, start, column);
    }
  }
}

}  // namespace
}  // namespace mq
