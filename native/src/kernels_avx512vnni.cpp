// The kernel set for processors with AVX-512 VNNI.
#include "simd_avx512vnni.h"

#include "direct_run.h"
#include "moves_impl.h"
#include "winograd_run.h"

namespace mq {

extern const KernelSet kAvx512Vnni;
const KernelSet kAvx512Vnni = {"avx512vnni", Simd::kLanes,    true,          tile_unit,  tiles_at_once, winograd_scratch,
                               winograd_run, expand_winograd, expand_direct, direct_run, &kMoves};

}  // namespace mq
