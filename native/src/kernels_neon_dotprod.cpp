// The kernel set for ARM processors with the byte products of FEAT_DotProd.
#include "simd_neon_dotprod.h"

#include "direct_run.h"
#include "moves_impl.h"
#include "winograd_run.h"

namespace mq {

extern const KernelSet kNeonDotprod;
const KernelSet kNeonDotprod = {"neon_dotprod", Simd::kLanes, true, tile_unit, tiles_at_once, winograd_scratch,
                                winograd_run, expand_winograd, expand_direct, direct_run, &kMoves};

}  // namespace mq
