// Activations, regrouped for the kernels and, for block formats, quantized to int8: kernels.h has the layout.
#pragma once

#include "tiles.h"

namespace ventoux {
namespace {

// A group is wide when its largest activation is more than this many times the row's root mean square. Lower is slower and
// more exact: docs/performance.md has the figures that this one was chosen by.
constexpr float kOrdinary = 1.75f;

// Over which magnitude a row's activations make their groups wide.
inline float wide_above(const float* row, size_t columns, Rounding rounding) {
  if (rounding == Rounding::Int16) return -1;
  Floats squares = splat(0);
  for (size_t c = 0; c < columns; c += kPanel) squares = fma(load(row + c), load(row + c), squares);
  return kOrdinary * __builtin_sqrtf(reduce_add(squares) / float(columns));
}

// One group of one token; `sum` is that of its integers.
struct Quantized {
  alignas(32) int8_t low[32], high[32];
  float scale;
  int sum;
  bool wide;
};

inline Quantized quantize_group(const float* x, int group, float ordinary) {
  Quantized to;
  Floats peak = abs(load(x)), all = load(x);
  if (group == 32) peak = max(peak, abs(load(x + 16))), all = add(all, load(x + 16));
  // NaN and infinity (which 0 turns into NaN, and a maximum may lose) go on to the logits, where they are reported.
  if (reduce_add(mul(all, splat(0))) != 0) {
    to = {};
    to.scale = __builtin_nanf("");
    return to;
  }
  const float most = reduce_max(peak);
  to.wide = most > ordinary;
  const float largest = to.wide ? 127 * 256 + 127 : 127;
  to.scale = most / largest;
  // What is so small counts as 0: its inverse would overflow. No branch on `wide`, which nothing foretells.
  const Floats inverse = splat(most > 1e-30f ? largest / most : 0), limit = splat(127);
  const Floats to_high = splat(to.wide ? 1.0f / 256 : 0);
  Floats sum = splat(0);  // whole numbers below 2^24: exact
  for (int i = 0; i < group; i += 16) {
    const Floats whole = mul(load(x + i), inverse), above = round(mul(whole, to_high));
    // -128 .. 128; the ends are cut to what every kernel can multiply, an error of one in 32,639.
    const Floats rest = min(max(round(fnma(above, splat(256), whole)), sub(splat(0), limit)), limit);
    store_int8(to.high + i, above);
    store_int8(to.low + i, rest);
    sum = add(sum, fma(above, splat(256), rest));
  }
  to.sum = int(reduce_add(sum));
  return to;
}

// Which tokens of a tile have a high part: kernels.h says how. Of the others they are zeros, and go along with many.
template <int MT>
inline uint16_t wide_tokens(const bool* wide) {
  static_assert(MT <= 16, "a bit for each token");
  int tokens = 0, bits = 0;
  for (int t = 0; t < MT; t++) tokens += wide[t], bits |= wide[t] << t;
  return uint16_t(kScattered * tokens > MT ? (1 << MT) - 1 : bits);
}

// A token's words of a group, next to those of the tile's others.
template <int MT>
inline void place_parts(const Quantized& group, int words, int32_t* low, int32_t* high) {
  int32_t quads[8];
  __builtin_memcpy(quads, group.low, sizeof quads);
  for (int j = 0; j < words; j++) low[j * MT] = quads[j];
  __builtin_memcpy(quads, group.high, sizeof quads);
  for (int j = 0; j < words; j++) high[j * MT] = quads[j];
}
template <int MT>
inline void place_pairs(const Quantized& group, int columns, int32_t* pairs) {
  const auto at = [&](int i) { return uint32_t(256 * group.high[i] + group.low[i]); };
  for (int i = 0; i < columns; i += 4, pairs += 2 * MT) {
    pairs[0] = int32_t((at(i) & 0xffff) | at(i + 2) << 16);
    pairs[MT] = int32_t((at(i + 1) & 0xffff) | at(i + 3) << 16);
  }
}

template <int MT>
inline void regroup_quantized(const float* x, const Activations& to, Rounding rounding, int token) {
  const size_t columns = size_t(to.columns);
  const int group_size = to.form.group, words = group_size / 4;
  const size_t groups = columns / size_t(group_size);
  float ordinary[MT];
  for (int t = 0; t < MT; t++)
    ordinary[t] = wide_above(x + (token + t) * columns, columns, to.form.pairs ? Rounding::Int16 : rounding);
  for (size_t g = 0; g < groups; g++) {
    const size_t at = token * groups + g * MT;
    bool wide[MT];
    for (int t = 0; t < MT; t++) {
      const Quantized group = quantize_group(x + (token + t) * columns + g * group_size, group_size, ordinary[t]);
      to.scale[at + t] = group.scale;
      if (to.start) to.start[at + t] = -to.form.offset * group.sum;
      else to.sum[at + t] = group.scale * float(group.sum);
      wide[t] = group.wide;
      if (to.form.pairs) place_pairs<MT>(group, group_size, to.low + 2 * at * words + t);
      else place_parts<MT>(group, words, to.low + at * words + t, to.high + at * words + t);
    }
    if (!to.form.pairs) to.wide[at] = wide_tokens<MT>(wide);
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

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return uint16_t(x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <int MT>
inline void regroup_bf16(const float* x, const Activations& to, int token) {
  constexpr int kAtOnce = 64;  // columns: a loop of rounding, which the compiler makes vectors of, then one of placing
  const int columns = to.columns;
  const size_t pairs = size_t(columns + 1) / 2;
  for (int c = 0; c < columns; c += kAtOnce) {
    const int n = columns - c < kAtOnce ? columns - c : kAtOnce;
    int32_t* out = to.low + size_t(token) * pairs + size_t(c / 2) * MT;
    for (int t = 0; t < MT; t++) {
      const float* row = x + size_t(token + t) * size_t(columns) + c;
      uint16_t rounded[kAtOnce];
      int32_t words[kAtOnce / 2];
      if (n < kAtOnce) __builtin_memset(rounded, 0, sizeof rounded);
      for (int i = 0; i < n; i++) rounded[i] = to_bf16(row[i]);
      __builtin_memcpy(words, rounded, sizeof words);
      for (int i = 0; i < (n + 1) / 2; i++) out[i * MT + t] = words[i];
    }
  }
}

inline void regroup(const float* x, const Activations& to, Rounding rounding, int first, int last) {
  if (to.form.group) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_quantized<decltype(size)::value>(x, to, rounding, t); });
  } else if (to.form.pairs) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_bf16<decltype(size)::value>(x, to, t); });
  } else {
    for_each_tile<kTile>(first, last, [&](int t, auto size) { regroup_floats<decltype(size)::value>(x, to, t); });
  }
}

}  // namespace
}  // namespace ventoux
