// The three stages of the Winograd kernel timed apart, in the order and on the buffers of run_block in
// native/src/winograd_run.h: the clock is read between stages, and what reading it costs is taken off.
//
// Arguments: rounds, then three numbers for each layer: input channels, output channels, side. Prints one line a layer:
// those three, then nanoseconds of inputs, products and outputs in the fastest round. One thread. Where the narrow kernel
// runs, products and outputs are one function, and outputs are 0.
#ifdef __AVX512VNNI__
#include "../native/src/simd_avx512vnni.h"
#else
#include "../native/src/simd_avxvnni.h"
#endif

#include "../native/src/winograd_run.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

int64_t now() {
  using std::chrono::nanoseconds;
  return std::chrono::duration_cast<nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The least of many, or another job's turn would count.
double clock_cost() {
  constexpr int kTries = 1000, kReads = 100;
  double least = 1e9;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const int64_t start = now();
    for (int n = 0; n < kReads; ++n) now();
    least = std::min(least, double(now() - start) / kReads);
  }
  return least;
}

// Nanoseconds, and how often the clock was read to find them.
struct Stage {
  int64_t nanoseconds = 0, reads = 0;
  void until(int64_t& since) {
    const int64_t time = now();
    nanoseconds += time - since, ++reads;
    since = time;
  }
};
struct Stages {
  Stage inputs, products, outputs;
};

struct Memory {
  std::vector<uint8_t> bytes;
  explicit Memory(size_t size) : bytes(size + 64) {
    uint32_t state = 1;
    for (auto& each : bytes) each = uint8_t((state = state * 1664525u + 1013904223u) >> 26);  // 6 bits
  }
  uint8_t* data() { return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64; }
};

mq::Blocks blocks_of(int32_t outputs) { return {outputs, mq::Simd::kLanes}; }

// A layer of which only the numbers are random.
struct Case {
  mq::Piece piece;
  mq::Winograd job;
  Memory input, output, weights, scratch{0};
  std::vector<int32_t> start;
  std::vector<float> scale;
  std::vector<int32_t> shift;

  Case(int32_t ins, int32_t outs, int32_t side)
      : input(size_t(side + 3) * size_t(side + 2) * size_t(ins) + 128),
        output(size_t(side) * size_t(side) * size_t(outs) + 128),
        weights(size_t(blocks_of(outs).count()) * size_t(ins / 4) * 16 * 2 * size_t(mq::kVectorBytes)),
        start(size_t(outs) * 8 + 256, 0),
        scale(size_t(outs) + 32, 0x1p-10f),
        shift(size_t(outs) + 32, 10) {
    piece.data = input.data(), piece.channels = ins;
    piece.column_stride = ins, piece.row_stride = ptrdiff_t(ins) * (side + 2);
    job.pieces = &piece, job.piece_count = 1, job.channels = ins, job.outputs = outs;
    job.rows = job.columns = side;
    job.weights = reinterpret_cast<const int8_t*>(weights.data()), job.start = start.data();
    job.output.scale = scale.data(), job.output.shift = shift.data(), job.output.highest = 63;
    job.out = {output.data(), outs, 1, side, side, 0, ptrdiff_t(outs) * side, outs};
    scratch = Memory(mq::winograd_scratch(job));
  }
};

struct Buffers {
  uint8_t* v;
  int64_t v_row;
  int32_t* z;
};

template <int kRegisters, int kTiles>
void run_block(const mq::Winograd& job, int32_t block, const Buffers& at, int64_t tile, int64_t count,
               mq::Prefetch& prefetch, Stages& stages, int64_t& since) {
  const int8_t* weights = job.weights + block * (int64_t(job.channels) / 4 * 16 * 2 * mq::kVectorBytes);
  const int32_t* start = job.start + block * 8 * mq::Simd::kLanes;
  mq::multiply_tiles<kRegisters, kTiles>(at.v, at.v_row, job.channels, weights, start, at.z, 0, count, prefetch);
  stages.products.until(since);
  mq::write_tiles<kRegisters>(job, blocks_of(job.outputs).first(block), at.z, tile, count);
  stages.outputs.until(since);
}

void run_wide(Case& layer, Stages& stages) {
  const mq::Winograd& job = layer.job;
  const int64_t most = mq::tiles_at_once(job), all = job.tiles();
  Buffers buffers{layer.scratch.data(), mq::v_row_bytes(mq::rounded_tiles(most), job.channels), nullptr};
  buffers.z = reinterpret_cast<int32_t*>(buffers.v + (4 * buffers.v_row + 63) / 64 * 64);
  const mq::Blocks blocks = blocks_of(job.outputs);
  int64_t since = now();
  for (int64_t first = 0; first < all; first += most) {
    const int64_t count = std::min(most, all - first), after = std::min(most, all - first - count);
    mq::Prefetch prefetch(job, first + count, after, count);
    mq::TileWalk at(job, first);
    for (int64_t t = 0; t < count; ++t, at.next()) {
      uint8_t* v = buffers.v + t * mq::v_tile_bytes(job.channels);
      mq::transform_tile(job, at.depth, at.row, at.column, v, buffers.v_row);
    }
    stages.inputs.until(since);
    for (int32_t block = 0; block < blocks.count(); ++block) {
      const bool two = blocks.registers(block) == 2;
      const auto run = two ? run_block<2, mq::Simd::kTiles> : run_block<1, mq::Simd::kTilesNarrow>;
      run(job, block, buffers, first, count, prefetch, stages, since);
    }
  }
}

#ifdef __AVX512VNNI__
// Stages of eight tiles are too short for the clock: the whole layer's inputs, then the whole layer less that.
void run_narrow(Case& layer, Stages& stages) {
  const mq::Winograd& job = layer.job;
  int64_t since = now();
  mq::NarrowTransforms transforms(job, layer.scratch.data());
  for (mq::NarrowWalk walk(job, 0, job.tile_rows()); !walk.done(); walk.next()) transforms.prepare(walk);
  stages.inputs.until(since);
  mq::winograd_run(job, 0, job.tiles(), layer.scratch.data());
  stages.products.until(since);
  stages.products.nanoseconds -= stages.inputs.nanoseconds;
}
#else
void run_narrow(Case& layer, Stages& stages) { run_wide(layer, stages); }
#endif

void measure(int32_t ins, int32_t outs, int32_t side, int rounds) {
  Case layer(ins, outs, side);
  const double cost = clock_cost();
  Stages fastest;
  int64_t least = INT64_MAX;
  for (int round = -1; round < rounds; ++round) {
    Stages stages;
    mq::all_narrow(layer.job) ? run_narrow(layer, stages) : run_wide(layer, stages);
    const int64_t all = stages.inputs.nanoseconds + stages.products.nanoseconds + stages.outputs.nanoseconds;
    if (round < 0 || all >= least) continue;  // the first one also brings the memory
    fastest = stages, least = all;
  }
  auto net = [&](const Stage& stage) { return double(stage.nanoseconds) - cost * double(stage.reads); };
  std::printf("%d %d %d ", ins, outs, side);
  std::printf("%.0f %.0f %.0f\n", net(fastest.inputs), net(fastest.products), net(fastest.outputs));
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5 || (count - 2) % 3 != 0) return 2;
  const int rounds = std::max(1, std::atoi(arguments[1]));
  for (int at = 2; at < count; at += 3) {
    const int ins = std::atoi(arguments[at]), outs = std::atoi(arguments[at + 1]), side = std::atoi(arguments[at + 2]);
    if (ins < 16 || outs < 16 || ins % 16 != 0 || outs % 16 != 0 || side < 1) return 2;
    measure(ins, outs, side, rounds);
  }
}
