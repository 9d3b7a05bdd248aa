// The kernel set for ARM processors with the byte products of FEAT_I8MM.
#include "simd_neon_i8mm.h"

#include "direct_run.h"
#include "moves_impl.h"
#include "winograd_run.h"

namespace mq {

extern const KernelSet kNeonI8mm;
const KernelSet kNeonI8mm = {"neon_i8mm", Simd::kLanes, true, tile_unit, tiles_at_once, winograd_scratch,
                             winograd_run, expand_winograd, expand_direct, direct_run, &kMoves};

}  // namespace mq
