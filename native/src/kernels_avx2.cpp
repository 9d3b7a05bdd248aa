// The kernel set for processors with AVX2.
#include "simd_avx2.h"

#include "direct.h"
#include "moves_impl.h"
#include "winograd_run.h"

namespace mq {

extern const KernelSet kAvx2;
const KernelSet kAvx2 = {"avx2",   Simd::kLanes,    true,          tile_unit,  tiles_at_once, winograd_scratch,
                             winograd_run, expand_winograd, expand_direct, direct_run, &kMoves};

}  // namespace mq
