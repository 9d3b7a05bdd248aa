// Which kernel sets were compiled in, and which of them this processor runs.
#include <cstdlib>

#include "kernels.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace mq {

extern const KernelSet kAvx512Vnni, kAvxVnni, kAvx2, kNeonI8mm, kNeonDotprod, kPortable;

namespace {

#if defined(__x86_64__) || defined(__i386__)
struct Cpuid {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Cpuid(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

// What the operating system saves of the registers, by which alone they may be used.
uint64_t saved_state() {
  const Cpuid one(1, 0);
  if (!(one.c & (1u << 27))) return 0;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

[[maybe_unused]] bool saves(uint64_t mask) { return (saved_state() & mask) == mask; }
[[maybe_unused]] bool has_avx2() { return saves(0x6) && (Cpuid(7, 0).b & (1u << 5)); }
[[maybe_unused]] bool has_avx_vnni() { return has_avx2() && (Cpuid(7, 1).a & (1u << 4)); }
[[maybe_unused]] bool has_avx512_vnni() {
  const Cpuid seven(7, 0);
  const unsigned needed = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  return has_avx2() && saves(0xe6) && (seven.b & needed) == needed && (seven.c & (1u << 11));
}
#elif defined(__aarch64__)
#if defined(__linux__)
// By number, so that older headers of the C library do.
[[maybe_unused]] bool has_dotprod() { return getauxval(16) & (1ul << 20); }  // AT_HWCAP, HWCAP_ASIMDDP
[[maybe_unused]] bool has_i8mm() { return has_dotprod() && (getauxval(26) & (1ul << 13)); }  // AT_HWCAP2, HWCAP2_I8MM
#elif defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
[[maybe_unused]] bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
[[maybe_unused]] bool has_i8mm() { return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
[[maybe_unused]] bool has_dotprod() { return false; }
[[maybe_unused]] bool has_i8mm() { return false; }
#endif
#endif

std::vector<const KernelSet*> find_sets() {
  std::vector<const KernelSet*> found;
#ifdef MQ_HAVE_AVX512VNNI
  if (has_avx512_vnni()) found.push_back(&kAvx512Vnni);
#endif
#ifdef MQ_HAVE_AVXVNNI
  if (has_avx_vnni()) found.push_back(&kAvxVnni);
#endif
#ifdef MQ_HAVE_AVX2
  if (has_avx2()) found.push_back(&kAvx2);
#endif
#ifdef MQ_HAVE_NEON_I8MM
  if (has_i8mm()) found.push_back(&kNeonI8mm);
#endif
#ifdef MQ_HAVE_NEON_DOTPROD
  if (has_dotprod()) found.push_back(&kNeonDotprod);
#endif
#ifdef MQ_HAVE_PORTABLE
  found.push_back(&kPortable);
#endif
  return found;
}

}  // namespace

const std::vector<const KernelSet*>& kernel_sets() {
  static const std::vector<const KernelSet*> sets = find_sets();
  return sets;
}

}  // namespace mq
