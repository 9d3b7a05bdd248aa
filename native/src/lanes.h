// Neighbouring channels computed together: vectors of the widths the including file is compiled for, and their
// requantization.
//
// Every kernel set includes this with its own flags, so all of it lies in an anonymous namespace and uses no inline
// function of another header: the linker would keep one copy for all sets, perhaps one that this processor cannot run.
#pragma once

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "views.h"

// The constants of a loop stay in registers only where all of it is one function: a store of bytes may change anything
// else.
#define MQ_INLINE __attribute__((always_inline))

namespace mq {
namespace {

// Channels of a vector of 16-bit words, and of one of bytes.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
constexpr int kWords = 32;
#elif defined(__AVX2__)
constexpr int kWords = 16;
#else
constexpr int kWords = 8;
#endif
constexpr int kBytes = 2 * kWords;

// Some channels: as they are stored, and as sums (16 bits hold 64 bytes' sum with its sign).
template <int Count>
struct Lanes;

// Written out for each width: GCC forgets a vector's size that depends on a template's parameter.
#define MQ_LANES(COUNT, WIDEN, NARROW)                            \
  template <>                                                     \
  struct Lanes<COUNT> {                                           \
    static constexpr int count = COUNT;                           \
    typedef uint8_t Bytes __attribute__((vector_size(COUNT)));    \
    typedef int16_t Sums __attribute__((vector_size(2 * COUNT))); \
    static Sums widen(Bytes x) { return WIDEN; }                  \
    static Bytes narrow(Sums x) { return NARROW; }                \
  };
#define MQ_CONVERT(TYPE) __builtin_convertvector(x, TYPE)
MQ_LANES(4, MQ_CONVERT(Sums), MQ_CONVERT(Bytes))
MQ_LANES(8, MQ_CONVERT(Sums), MQ_CONVERT(Bytes))
// GCC 12 converts wider ones in halves.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
MQ_LANES(16, (Sums)_mm256_cvtepu8_epi16((__m128i)x), (Bytes)_mm256_maskz_cvtepi16_epi8(0xffff, (__m256i)x))
MQ_LANES(32, (Sums)_mm512_cvtepu8_epi16((__m256i)x), (Bytes)_mm512_maskz_cvtepi16_epi8(0xffffffff, (__m512i)x))
#elif defined(__AVX2__)
MQ_LANES(16, (Sums)_mm256_cvtepu8_epi16((__m128i)x), MQ_CONVERT(Bytes))
#endif
#undef MQ_CONVERT
#undef MQ_LANES

// The widest of bytes, which have no sums of one vector.
template <>
struct Lanes<kBytes> {
  static constexpr int count = kBytes;
  typedef uint8_t Bytes __attribute__((vector_size(kBytes)));
};

template <>
struct Lanes<1> {
  static constexpr int count = 1;
  using Bytes = uint8_t;
  using Sums = int16_t;
  static Sums widen(Bytes x) { return x; }
  static Bytes narrow(Sums x) { return static_cast<Bytes>(x); }
};

// One channel, with sums that nothing here overflows.
struct WideLane {
  static constexpr int count = 1;
  using Bytes = uint8_t;
  using Sums = int64_t;
  static Sums widen(Bytes x) { return x; }
  static Bytes narrow(Sums x) { return static_cast<Bytes>(x); }
};

template <typename Lane>
typename Lane::Bytes load(const uint8_t* from) {
  typename Lane::Bytes x;
  memcpy(&x, from, sizeof x);
  return x;
}

template <typename T>
void store(uint8_t* to, T x) {
  memcpy(to, &x, sizeof x);
}

template <typename T>
T larger(T a, T b) {
  return a > b ? a : b;
}

template <typename T>
T smaller(T a, T b) {
  return a < b ? a : b;
}

// A line's place; View::at would be shared between kernel sets.
const uint8_t* line_of(const View& view, int64_t depth, int64_t row) {
  return view.data + depth * view.depth_stride + row * view.row_stride;
}

uint8_t* line_to(const View& view, int64_t line) {
  return view.data + line / view.rows * view.depth_stride + line % view.rows * view.row_stride;
}

// Calls f(lane, first channel) for blocks that cover the channels exactly. The last may overlap the one before it,
// which is computed twice: the output may not be an input.
template <typename Lane, typename F>
MQ_INLINE inline void cover(int64_t channels, F f) {
  int64_t c = 0;
  for (; c + Lane::count <= channels; c += Lane::count) f(Lane{}, c);
  if (c < channels) f(Lane{}, channels - Lane::count);
}

template <int Most, typename F>
MQ_INLINE inline void channel_blocks(int64_t channels, F f) {
  if constexpr (Most >= 64) {
    if (channels >= 64) return cover<Lanes<64>>(channels, f);
  }
  if constexpr (Most >= 32) {
    if (channels >= 32) return cover<Lanes<32>>(channels, f);
  }
  if constexpr (Most >= 16) {
    if (channels >= 16) return cover<Lanes<16>>(channels, f);
  }
  if (channels >= 8) return cover<Lanes<8>>(channels, f);
  if (channels >= 4) return cover<Lanes<4>>(channels, f);
  cover<Lanes<1>>(channels, f);
}

// Calls f(lane, column, channel) once for every value of a line, also where the output is an input.
// A dense line is handed over as one column with many channels.
template <int Most, typename F>
MQ_INLINE inline void each_value(int64_t columns, int64_t channels, F f) {
  int64_t c = 0;
  for (; c + Most <= channels; c += Most)
    for (int64_t k = 0; k < columns; ++k) f(Lanes<Most>{}, k, c);
  if (c == channels) return;
  if constexpr (Most > 4) {
    each_value<Most / 2>(columns, channels - c,
                         [&](auto lane, int64_t k, int64_t more) MQ_INLINE { f(lane, k, c + more); });
  } else {
    for (; c < channels; ++c)
      for (int64_t k = 0; k < columns; ++k) f(Lanes<1>{}, k, c);
  }
}

// Requantization of 16-bit sums x - bias. Where `fits` is false they do not hold what is asked for, and
// WideRequantization does: shifts but 0 to 14, or a sum that the rounding carries over 2^15.
struct NarrowRequantization {
  bool fits;
  int16_t bias, shift, half, odd, zero_point, lowest, highest;

  NarrowRequantization(const Requantization& to, int64_t largest, int64_t subtracted)
      : fits(to.shift >= 0 && to.shift <= 14 && largest + (1 << 13) < (1 << 15)),
        bias(static_cast<int16_t>(fits ? subtracted : 0)),
        shift(static_cast<int16_t>(fits ? to.shift : 0)),
        half(static_cast<int16_t>(shift > 0 ? (1 << (shift - 1)) - 1 : 0)),
        odd(shift > 0 ? 1 : 0),
        zero_point(static_cast<int16_t>(to.zero_point)),
        lowest(static_cast<int16_t>(to.lowest)),
        highest(static_cast<int16_t>(to.highest)) {}

  // Half a step less one unit, and that unit back where the kept part is odd: ties go to even.
  template <typename Lane>
  typename Lane::Bytes apply(typename Lane::Sums x) const {
    using Sums = typename Lane::Sums;
    x = x - bias;
    x = (x + half + ((x >> shift) & odd)) >> shift;
    x = x + zero_point;
    const Sums low = Sums{} + lowest, high = Sums{} + highest;
    return Lane::narrow(smaller<Sums>(larger<Sums>(x, low), high));
  }
};

// Any shift, sums below 2^62.
struct WideRequantization {
  int64_t bias, right, left, zero_point, lowest, highest;

  WideRequantization(const Requantization& to, int64_t subtracted)
      : bias(subtracted),
        right(smaller<int64_t>(larger<int64_t>(to.shift, 0), 60)),
        left(smaller<int64_t>(larger<int64_t>(-int64_t{to.shift}, 0), 30)),
        zero_point(to.zero_point),
        lowest(to.lowest),
        highest(to.highest) {}

  template <typename Lane>
  uint8_t apply(int64_t x) const {
    x -= bias;
    if (right > 0) x = (x + (int64_t{1} << (right - 1)) - 1 + ((x >> right) & 1)) >> right;
    // Beyond 1024 it saturates whatever the shift, and cannot overflow below.
    x = smaller<int64_t>(larger<int64_t>(x, -1024), 1024) * (int64_t{1} << left) + zero_point;
    return static_cast<uint8_t>(smaller<int64_t>(larger<int64_t>(x, lowest), highest));
  }
};

}  // namespace
}  // namespace mq
