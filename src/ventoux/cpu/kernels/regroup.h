// Activations, regrouped for the kernels and, for block formats, quantized to int8: kernels.h has the layout.
#pragma once

#include "tiles.h"

namespace ventoux {
namespace {

// One group of one token -> two rows of int8, high and low, and their scales.
struct Terms {
  alignas(32) int8_t q[kTerms][32];
  float scale[kTerms], sum[kTerms];
};

inline Terms quantize_group(const float* x, int group) {
  Terms t = {};
  Floats peak = abs(load(x)), all = load(x);
  if (group == 32) peak = max(peak, abs(load(x + 16))), all = add(all, load(x + 16));
  // NaN and infinity (which 0 turns into NaN, and a maximum may lose) go on to the logits, where they are reported.
  if (reduce_add(mul(all, splat(0))) != 0) {
    for (int r = 0; r < kTerms; r++) t.scale[r] = t.sum[r] = __builtin_nanf("");
    return t;
  }
  constexpr float largest = 127 * 255 + 127;
  const float most = reduce_max(peak), scale = most / largest;
  const Floats inverse = splat(most > 0 ? largest / most : 0), limit = splat(127);
  for (int i = 0; i < group; i += 16) {
    const Floats whole = mul(load(x + i), inverse), high = round(mul(whole, splat(1.0f / 255)));
    const Floats low = round(fnma(high, splat(255), whole));  // -127.5 .. 127.5 before rounding
    store_int8(t.q[0] + i, high);
    store_int8(t.q[1] + i, min(max(low, sub(splat(0), limit)), limit));
  }
  for (int r = 0; r < kTerms; r++) {
    int total = 0;
    for (int i = 0; i < group; i++) total += t.q[r][i];
    t.scale[r] = r == 0 ? 255 * scale : scale;
    t.sum[r] = t.scale[r] * float(total);
  }
  return t;
}

template <int MR>
inline void regroup_quantized(const float* x, const Activations& to, int m) {
  const size_t columns = size_t(to.columns), groups = columns / to.group;
  const int words = to.group / 4;
  for (int r = 0; r < MR; r += kTerms) {
    const float* row = x + (m + r) / kTerms * columns;
    for (size_t g = 0; g < groups; g++) {
      const Terms terms = quantize_group(row + g * to.group, to.group);
      for (int term = 0; term < kTerms; term++) {
        const size_t at = m * groups + g * MR + r + term;
        to.scale[at] = terms.scale[term];
        to.sum[at] = terms.sum[term];
        int32_t quads[8];
        __builtin_memcpy(quads, terms.q[term], sizeof quads);
        int32_t* out = to.quads + (m * groups + g * MR) * words + r + term;
        for (int j = 0; j < words; j++) out[j * MR] = quads[j];
      }
    }
  }
}

template <int MR>
inline void regroup_floats(const float* x, const Activations& to, int m) {
  const size_t columns = size_t(to.columns);
  for (int r = 0; r < MR; r++) {
    float* out = to.x + m * columns + r;
    for (size_t c = 0; c < columns; c++) out[c * MR] = x[(m + r) * columns + c];
  }
}

inline void regroup(const float* x, const Activations& to, int row0, int row1) {
  for_each_tile(row0, row1, [&](int m, auto size) {
    constexpr int MR = decltype(size)::value;
    if constexpr (MR % kTerms == 0) {  // a quantized batch has an even number of rows
      if (to.group) return regroup_quantized<MR>(x, to, m);
    }
    regroup_floats<MR>(x, to, m);
  });
}

}  // namespace
}  // namespace ventoux
