// The kernel set for processors with AVX-512 VNNI.
#include "simd_avx512vnni.h"

#include "direct.h"
#include "winograd.h"
#ifdef MQ_MOVES
#include "moves_impl.h"
#endif

namespace mq {

extern const KernelSet kAvx512Vnni;
const KernelSet kAvx512Vnni = {"avx512vnni",   Simd::kLanes,    true,         tiles_at_once, winograd_scratch,
                               winograd_run,   expand_winograd, expand_direct, direct_run,   nullptr};

}  // namespace mq
