// The kernel set for processors with AVX2.
// Byte products for any operands, which Winograd's need, cost more there than the multiplications it saves from 4-bit weights.
#include "simd_avx2.h"

#include "direct_run.h"
#include "moves_impl.h"
#include "winograd_run.h"

namespace mq {

extern const KernelSet kAvx2;
const KernelSet kAvx2 = {"avx2", Simd::kLanes, false, tile_unit, tiles_at_once, winograd_scratch,
                         winograd_run, expand_winograd, expand_direct, direct_run, &kMoves};

}  // namespace mq
