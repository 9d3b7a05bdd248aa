// The kernel set for any processor.
#include "simd_portable.h"

#include "direct_run.h"
#include "moves_impl.h"
#include "winograd_run.h"

namespace mq {

extern const KernelSet kPortable;
const KernelSet kPortable = {"portable", Simd::kLanes, true, tile_unit, tiles_at_once, winograd_scratch,
                             winograd_run, expand_winograd, expand_direct, direct_run, &kMoves};

}  // namespace mq
