// Few outputs, as in a network's last layer: a register of sums holds voxels instead of outputs.
//
// Four voxels of 16 channels fill a register of inputs; the four sums that the product leaves for each voxel are added at the end, 16
// voxels at a time, and stored as they lie in the output.
#pragma once

#include "direct.h"

namespace mq {
namespace {

struct FewOutputs {
  static constexpr int kMostOutputs = 4, kMostChunks = 64, kVoxels = 16;
  const Direct& job;
  int32_t chunks = 0;
  alignas(64) int8_t weights[kMostOutputs][kMostChunks][64];  // 16 channels, four times

  explicit FewOutputs(const Direct& j) : job(j) {
    if (!applies()) return;
    chunks = int32_t(job.steps / 4);
    for (int32_t output = 0; output < job.outputs; ++output)
      for (int32_t chunk = 0; chunk < chunks; ++chunk)
        for (int byte = 0; byte < 64; ++byte)
          weights[output][chunk][byte] = job.weights[((chunk * 4 + byte % 16 / 4) * Simd::kLanes + output) * 4 + byte % 4];
  }
  bool applies() const {
    if (!job.accumulators || job.outputs > kMostOutputs || job.column_stride != 1 || job.steps / 4 > kMostChunks) return false;
    for (int32_t n = 0; n < job.run_count; ++n)
      if (job.runs[n].steps % 4 != 0 || job.runs[n].column_step % 16 != 0) return false;
    return true;
  }

  // Computes whole blocks of voxels of a line; returns the first column left over.
  int64_t run_line(const LineRuns& runs) const {
    if (chunks == 0) return 0;
    int64_t column = 0;
    for (; column + kVoxels <= job.columns; column += kVoxels) {
      for (int32_t output = 0; output < job.outputs; output += 2) {
        if (output + 1 < job.outputs) sum_block<2>(runs, column, output);
        else sum_block<1>(runs, column, output);
      }
    }
    return column;
  }

 private:
  static __m512i four_voxels(const uint8_t* at, ptrdiff_t step) {
    if (step == 16) return Bytes64::load(at);
    const __m512i a = _mm512_castsi128_si512(Bytes16::load(at));
    const __m512i b = _mm512_inserti32x4(a, Bytes16::load(at + step), 1);
    const __m512i c = _mm512_inserti32x4(b, Bytes16::load(at + 2 * step), 2);
    return _mm512_inserti32x4(c, Bytes16::load(at + 3 * step), 3);
  }

  template <int kOutputs>
  __attribute__((always_inline)) void sum_block(const LineRuns& runs, int64_t column, int32_t output) const {
    __m512i sums[kOutputs][4];
    for (auto& of_output : sums)
      for (auto& each : of_output) each = Simd::zero();
    int32_t chunk = 0;
    for (int32_t n = 0; n < job.run_count; ++n) {
      const uint8_t* at = runs.at(n, column);
      const ptrdiff_t step = job.runs[n].column_step;
      for (int32_t c = 0; c < job.runs[n].steps / 4; ++c, ++chunk, at += 16) {
#pragma GCC unroll 4
        for (int four = 0; four < 4; ++four) {
          const __m512i x = four_voxels(at + 4 * four * step, step);
#pragma GCC unroll 2
          for (int o = 0; o < kOutputs; ++o) sums[o][four] = Simd::dot(sums[o][four], x, Bytes64::load(weights[output + o][chunk]));
        }
      }
    }
#pragma GCC unroll 2
    for (int o = 0; o < kOutputs; ++o) {
      const auto& s = sums[o];
      const __m512i low = Simd::add(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
      const __m512i high = Simd::add(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
      const __m512i all = Simd::add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
      // Quarter v of word w is voxel 4 * w + v.
      const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      __m512i sum = Simd::add(_mm512_permutexvar_epi32(order, all), Simd::splat(job.start[output + o]));
      if (job.relu) sum = _mm512_max_epi32(sum, Simd::zero());
      int32_t* to = job.accumulators + runs.depth * job.depth_stride + runs.row * job.row_stride + column;
      Simd::store(to + (output + o) * job.channel_stride, sum);
    }
  }
};

}  // namespace
}  // namespace mq
