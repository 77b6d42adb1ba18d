// Activations, regrouped for the kernels and, for block formats, quantized to int8: kernels.h has the layout.
#pragma once

#include "tiles.h"

namespace ventoux {
namespace {

// One group of one token -> int8 pairs; `sum` is scale * (sum of what they stand for).
struct Quantized {
  alignas(32) int8_t q[kTerms][32];
  float scale, sum;
};

inline Quantized quantize_group(const float* x, int group) {
  Quantized to = {};
  Floats peak = abs(load(x)), all = load(x);
  if (group == 32) peak = max(peak, abs(load(x + 16))), all = add(all, load(x + 16));
  // NaN and infinity (which 0 turns into NaN, and a maximum may lose) go on to the logits, where they are reported.
  if (reduce_add(mul(all, splat(0))) != 0) {
    to.scale = to.sum = __builtin_nanf("");
    return to;
  }
  constexpr float largest = 127 * 256 + 127;
  const float most = reduce_max(peak);
  to.scale = most / largest;
  // What is so small counts as 0: its inverse would overflow.
  const Floats inverse = splat(most > 1e-30f ? largest / most : 0), limit = splat(127);
  for (int i = 0; i < group; i += 16) {
    const Floats whole = mul(load(x + i), inverse), high = round(mul(whole, splat(1.0f / 256)));
    // -128 .. 128; the ends are cut to what every kernel can multiply, an error of one in 32,639.
    const Floats low = round(fnma(high, splat(256), whole));
    store_int8(to.q[0] + i, high);
    store_int8(to.q[1] + i, min(max(low, sub(splat(0), limit)), limit));
  }
  int high = 0, low = 0;
  for (int i = 0; i < group; i++) high += to.q[0][i], low += to.q[1][i];
  to.sum = to.scale * float(256 * high + low);
  return to;
}

template <int MT>
inline void regroup_quantized(const float* x, const Activations& to, int token) {
  const size_t columns = size_t(to.columns), groups = columns / to.group;
  const int words = to.group / 4;
  for (int t = 0; t < MT; t++) {
    const float* row = x + (token + t) * columns;
    for (size_t g = 0; g < groups; g++) {
      const Quantized group = quantize_group(row + g * to.group, to.group);
      const size_t at = token * groups + g * MT;
      to.scale[at + t] = group.scale;
      to.sum[at + t] = group.sum;
      for (int term = 0; term < kTerms; term++) {
        int32_t quads[8];
        __builtin_memcpy(quads, group.q[term], sizeof quads);
        int32_t* out = to.quads + at * words * kTerms + t * kTerms + term;
        for (int j = 0; j < words; j++) out[j * MT * kTerms] = quads[j];
      }
    }
  }
}

template <int MT>
inline void regroup_floats(const float* x, const Activations& to, int token) {
  const size_t columns = size_t(to.columns);
  for (int t = 0; t < MT; t++) {
    float* out = to.x + token * columns + t;
    for (size_t c = 0; c < columns; c++) out[c * MT] = x[(token + t) * columns + c];
  }
}

inline void regroup(const float* x, const Activations& to, int first, int last) {
  if (to.group) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_quantized<decltype(size)::value>(x, to, t); });
  } else {
    for_each_tile<kTile>(first, last, [&](int t, auto size) { regroup_floats<decltype(size)::value>(x, to, t); });
  }
}

}  // namespace
}  // namespace ventoux
