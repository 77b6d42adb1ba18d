// Activations, regrouped for the kernels and, for block formats, quantized to int8: kernels.h has the layout.
#pragma once

#include "tiles.h"

namespace ventoux {
namespace {

// One group of one row -> int8, scale = max|x| / 127, sum = scale * (sum of the int8).
inline void quantize_group(const float* x, int group, int8_t* q, float* scale, float* sum) {
  Floats peak = abs(load(x)), all = load(x);
  if (group == 32) peak = max(peak, abs(load(x + 16))), all = add(all, load(x + 16));
  const float most = reduce_max(peak);
  // NaN and infinity (which 0 turns into NaN, and a maximum may lose) go on to the logits, where they are reported.
  if (reduce_add(mul(all, splat(0))) != 0) {
    for (int i = 0; i < group; i++) q[i] = 0;
    *scale = *sum = __builtin_nanf("");
    return;
  }
  *scale = most / 127;
  const Floats inverse = splat(most > 0 ? 127 / most : 0);
  for (int i = 0; i < group; i += 16) store_int8(q + i, round(min(max(mul(load(x + i), inverse), splat(-127)), splat(127))));
  int total = 0;
  for (int i = 0; i < group; i++) total += q[i];
  *sum = *scale * float(total);
}

inline void regroup(const float* x, const Activations& to, int row0, int row1) {
  const size_t columns = size_t(to.columns), groups = to.group ? columns / to.group : 0;
  for_each_tile(row0, row1, [&](int m, auto size) {
    constexpr int MR = decltype(size)::value;
    for (int r = 0; r < MR; r++) {
      const float* row = x + (m + r) * columns;
      if (!to.group) {
        float* out = to.x + m * columns + r;
        for (size_t c = 0; c < columns; c++) out[c * MR] = row[c];
        continue;
      }
      const int words = to.group / 4;
      for (size_t g = 0; g < groups; g++) {
        alignas(32) int8_t q[32];
        const size_t at = m * groups + g * MR + r;
        quantize_group(row + g * to.group, to.group, q, to.scale + at, to.sum + at);
        int32_t quad[8];
        __builtin_memcpy(quad, q, sizeof q);
        int32_t* out = to.quads + (m * groups + g * MR) * words + r;
        for (int j = 0; j < words; j++) out[j * MR] = quad[j];
      }
    }
  });
}

}  // namespace
}  // namespace ventoux
