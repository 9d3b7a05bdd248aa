// Everything but convolutions: pooling, up-sampling, addition, rectifier, copies. Bytes in, bytes out, exact.
//
// Each function writes the output lines [first, last) only: line = depth * rows + row of the output, so that threads share an
// operation. The same source is compiled once for each kernel set (kernels_*.cpp), with that processor's instructions.
#pragma once

#include "views.h"

namespace mq {

struct Window {
  int32_t kernel[3], stride[3], padding[3];  // depth, row, column
};

struct Moves {
  // Maximum over windows; what lies outside the tensor never wins (the ring is not read).
  void (*max_pool)(const View& in, const View& out, const Window& window, int64_t first, int64_t last);
  // Sum of (q - in_zero_point) over windows of 2^n voxels without padding, then requantization (its shift counts n already).
  void (*avg_pool)(const View& in, const View& out, const Window& window, int32_t in_zero_point, const Requantization& to,
                   int64_t first, int64_t last);
  // Copies, `factor` times along each of the axes (depth only where `axes` is 3).
  void (*upsample_nearest)(const View& in, const View& out, int32_t factor, int axes, int64_t first, int64_t last);
  // Times 2 along each axis with half-voxel centres: weights 1 and 3, edges repeated, sums of (q - in_zero_point) requantized
  // (the shift counts 2 bits an axis already). In 2D the depth axis is left alone.
  void (*upsample_linear)(const View& in, const View& out, int axes, int32_t in_zero_point, const Requantization& to,
                          int64_t first, int64_t last);
  // ((a - za) << left_a) + ((b - zb) << left_b), requantized.
  void (*add)(const View& a, const View& b, const View& out, int32_t za, int32_t zb, int32_t left_a, int32_t left_b,
              const Requantization& to, int64_t first, int64_t last);
  // max(q, zero_point).
  void (*relu)(const View& in, const View& out, int32_t zero_point, int64_t first, int64_t last);
  // Fills the ring around `out` with one byte: the parts before and after each of the lines [first, last), and, where
  // line 0 or the last line is among them, whole lines and whole depths before and after.
  void (*fill_ring)(const View& out, const Ring& ring, uint8_t value, int64_t first, int64_t last);
  // (C, D, I, J) bytes to channels last.
  void (*take_image)(const uint8_t* image, const View& out, int64_t first, int64_t last);
  // Channels last bytes to (C, D, I, J) int32.
  void (*give_bytes)(const View& in, int32_t* output, int64_t first, int64_t last);
};

}  // namespace mq
