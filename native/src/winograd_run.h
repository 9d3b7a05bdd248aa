// Winograd convolution of a block of tiles: the stages of winograd.h one after another, winograd_narrow.h for a last register.
#pragma once

#include "winograd.h"
#include "winograd_weights.h"
#ifdef __AVX512VNNI__
#include "winograd_narrow.h"
#endif

namespace mq {
namespace {

// Whether the narrow kernel does everything: whole rows of tiles at a time.
bool all_narrow(const Winograd& job) {
#ifdef __AVX512VNNI__
  return job.outputs <= Simd::kLanes && job.output.in_float && job.depth_dilation == 1 && job.depth_taps <= kMostDepthTaps;
#else
  (void)job;
  return false;
#endif
}

// Tiles are shared out in whole units.
int64_t tile_unit(const Winograd& job) { return all_narrow(job) ? job.tile_columns() : Simd::kTiles; }

int64_t tiles_at_once(const Winograd& job) {
  if (all_narrow(job)) return job.tile_columns();
  // Few tiles leave inputs and sums in the first-level cache. Weights too large for the second-level cache come from further away for
  // every block of tiles: then as many tiles as leave room for their transformed inputs.
  constexpr int64_t kFew = 12, kMany = 48, kSecondLevel = 512 * 1024, kInputs = 768 * 1024;
  if (16 * int64_t(job.channels) * job.outputs <= kSecondLevel) return kFew;
  const int64_t fits = kInputs / (16 * int64_t(job.channels)) / Simd::kTiles * Simd::kTiles;
  return fits < kFew ? kFew : fits > kMany ? kMany : fits;
}

int64_t rounded_tiles(int64_t tiles) { return (tiles + Simd::kTilesNarrow - 1) / Simd::kTilesNarrow * Simd::kTilesNarrow; }

size_t winograd_scratch(const Winograd& job) {
#ifdef __AVX512VNNI__
  if (all_narrow(job)) return narrow_scratch(job);
#endif
  const int64_t rounded = rounded_tiles(tiles_at_once(job));
  return size_t(4 * v_row_bytes(rounded, job.channels) + rounded * z_tile_values(2) * 4 + 128);
}

void run_block(const Winograd& job, int64_t first_tile, int64_t count, uint8_t* v, int64_t v_row, int32_t* z, Prefetch& prefetch) {
  TileWalk at(job, first_tile);
  for (int64_t t = 0; t < count; ++t, at.next()) transform_tile(job, at.depth, at.row, at.column, v + t * v_tile_bytes(job.channels), v_row);
  const Blocks blocks{job.outputs, Simd::kLanes};
  const int64_t block_weights = int64_t(job.channels) / 4 * 16 * 2 * kVectorBytes;
  for (int32_t block = 0; block < blocks.count(); ++block) {
    const int8_t* weights = job.weights + block * block_weights;
    const int32_t* start = job.start + block * 8 * Simd::kLanes;
    if (blocks.registers(block) == 2) {
      multiply_tiles<2, Simd::kTiles>(v, v_row, job.channels, weights, start, z, 0, count, prefetch);
      write_tiles<2>(job, blocks.first(block), z, first_tile, count);
    } else {
      multiply_tiles<1, Simd::kTilesNarrow>(v, v_row, job.channels, weights, start, z, 0, count, prefetch);
      write_tiles<1>(job, blocks.first(block), z, first_tile, count);
    }
  }
}

void winograd_run(const Winograd& job, int64_t first_tile, int64_t last_tile, uint8_t* scratch) {
#ifdef __AVX512VNNI__
  if (all_narrow(job)) return run_narrow_tiles(job, first_tile, last_tile, scratch);
#endif
  const int64_t most = tiles_at_once(job), v_row = v_row_bytes(rounded_tiles(most), job.channels);
  int32_t* z = reinterpret_cast<int32_t*>(scratch + (4 * v_row + 63) / 64 * 64);
  const int64_t all = last_tile - first_tile, blocks = (all + most - 1) / most;
  const int64_t units = (all + Simd::kTiles - 1) / Simd::kTiles;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * units / blocks * Simd::kTiles, next = (block + 1) * units / blocks * Simd::kTiles;
    const int64_t last = next < all ? next : all, after = (block + 2) * units / blocks * Simd::kTiles;
    Prefetch prefetch(job, first_tile + last, block + 1 == blocks ? 0 : (after < all ? after : all) - last, last - first);
    run_block(job, first_tile + first, last - first, scratch, v_row, z, prefetch);
  }
}

}  // namespace
}  // namespace mq
