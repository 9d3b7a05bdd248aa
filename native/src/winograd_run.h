// Winograd convolution of a block of tiles: the stages of winograd.h one after another, winograd_narrow.h for a last register.
#pragma once

#include "winograd.h"
#ifdef __AVX512VNNI__
#include "winograd_narrow.h"
#endif

namespace mq {
namespace {

// Rows of tiles at a time where the narrow kernel does everything: it takes eight neighbours at once.
bool all_narrow(const Winograd& job) { return Simd::kLanes == 16 && job.outputs <= Simd::kLanes && job.output.in_float; }

// Tiles are shared out in whole units.
int64_t tile_unit(const Winograd& job) { return all_narrow(job) ? job.tile_columns() : Simd::kTiles; }

int64_t tiles_at_once(const Winograd& job) {
  if (all_narrow(job)) return job.tile_columns();
  constexpr int64_t kBudget = 256 * 1024, kMost = 36;
  const int64_t fits = kBudget / (16 * int64_t(job.channels)) / Simd::kTiles * Simd::kTiles;
  return fits < Simd::kTiles ? Simd::kTiles : fits > kMost ? kMost : fits;
}

int64_t rounded_tiles(int64_t tiles) { return (tiles + Simd::kTilesNarrow - 1) / Simd::kTilesNarrow * Simd::kTilesNarrow; }

size_t winograd_scratch(const Winograd& job) {
  const int64_t rounded = rounded_tiles(all_narrow(job) ? 1 : tiles_at_once(job));
  return size_t(4 * v_row_bytes(rounded, job.channels) + rounded * z_tile_values(2) * 4 + 128);
}

void winograd_run(const Winograd& job, int64_t first_tile, int64_t last_tile, uint8_t* scratch) {
  const int64_t count = last_tile - first_tile, rounded = rounded_tiles(count);
  const int64_t v_row = v_row_bytes(rounded, job.channels);
  uint8_t* v = scratch;
  int32_t* z = reinterpret_cast<int32_t*>(scratch + (4 * v_row + 63) / 64 * 64);
#ifdef __AVX512VNNI__
  if (all_narrow(job)) return run_narrow_tiles(job, 0, first_tile, last_tile, v);
#endif
  TileWalk at(job, first_tile);
  for (int64_t t = 0; t < count; ++t, at.next()) transform_tile(job, at.depth, at.row, at.column, v + t * 4 * job.channels, v_row);

  const Blocks blocks{job.outputs, Simd::kLanes};
  const int64_t block_weights = int64_t(job.channels) / 4 * 16 * 2 * kVectorBytes;
  for (int32_t block = 0; block < blocks.count(); ++block) {
    const int8_t* weights = job.weights + block * block_weights;
    const int32_t* start = job.start + block * 8 * Simd::kLanes;
    if (blocks.registers(block) == 2) {
      multiply_tiles<2, Simd::kTiles>(v, v_row, job.channels, weights, start, z, 0, count);
      write_tiles<2>(job, blocks.first(block), z, first_tile, count);
    } else {
      multiply_tiles<1, Simd::kTilesNarrow>(v, v_row, job.channels, weights, start, z, 0, count);
      write_tiles<1>(job, blocks.first(block), z, first_tile, count);
    }
  }
}

}  // namespace
}  // namespace mq
