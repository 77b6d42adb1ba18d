// Activations, regrouped for the kernels and, for block formats, quantized to int8: kernels.h has the layout.
#pragma once

#include "quantize.h"
#include "tiles.h"

namespace ventoux {
namespace {

// Which tokens of a tile have a high part: kernels.h says how. Of the others they are zeros, and go along with many.
template <int MT>
inline uint16_t wide_tokens(const bool* wide) {
  static_assert(MT <= 16, "a bit for each token");
  int tokens = 0, bits = 0;
  for (int t = 0; t < MT; t++) tokens += wide[t], bits |= wide[t] << t;
  return uint16_t(kScattered * tokens > MT ? (1 << MT) - 1 : bits);
}

// A token's words of a group, next to those of the tile's others.
template <int MT, int columns>
inline void place_bytes(const int8_t (&from)[columns], int32_t* to) {
  int32_t quads[columns / 4];
  __builtin_memcpy(quads, from, sizeof quads);
  for (int j = 0; j < columns / 4; j++) to[j * MT] = quads[j];
}
template <int MT, int group>
inline void place_pairs(const Quantized<group>& from, int32_t* pairs) {
  const auto at = [&](int i) { return uint32_t(256 * from.high[i] + from.low[i]); };
  for (int i = 0; i < group; i += 4, pairs += 2 * MT) {
    pairs[0] = int32_t((at(i) & 0xffff) | at(i + 2) << 16);
    pairs[MT] = int32_t((at(i + 1) & 0xffff) | at(i + 3) << 16);
  }
}

template <int MT, int group>
inline void regroup_quantized(const float* x, const Activations& to, int token) {
  constexpr int words = group / 4;
  const size_t columns = size_t(to.columns), groups = columns / group;
  const bool pairs = kInPairs && to.form.pairs;
  const float ordinary = to.form.all_wide ? kAllAreWide : kOrdinary;
  Row rows[MT];
  for (int t = 0; t < MT; t++) rows[t] = row_of(x + (token + t) * columns, columns, ordinary);
  for (size_t g = 0; g < groups; g++) {
    const size_t at = token * groups + g * MT;
    bool wide[MT];
    for (int t = 0; t < MT; t++) {
      const Quantized<group> made = quantize_group<group>(x + (token + t) * columns + g * group, rows[t]);
      to.scale[at + t] = made.scale;
      if (to.start) to.start[at + t] = -to.form.offset * int(reduce_add(made.sum));
      if (to.sum) to.sum[at + t] = made.scale * reduce_add(made.sum);
      wide[t] = made.wide;
      if (pairs) {
        place_pairs<MT>(made, to.low + at * words * 2 + t);
      } else {
        place_bytes<MT>(made.low, to.low + at * words + t);
        place_bytes<MT>(made.high, to.more + at * words + t);
      }
    }
    if (!pairs) to.wide[at] = wide_tokens<MT>(wide);
  }
}

// Where a tile has a token that is wide, all of them are: the others' words stand for as much more, without p.
template <int MT, bool crossed>
inline void regroup_nibbles(const float* x, const Activations& to, int token) {
  constexpr int times = 16 * kNibbleSteps;
  const size_t columns = size_t(to.columns), groups = columns / 32;
  Row rows[MT];
  for (int t = 0; t < MT; t++) rows[t] = row_of(x + (token + t) * columns, columns, kOrdinaryNibbles);
  for (size_t g = 0; g < groups; g++) {
    const size_t at = token * groups + g * MT;
    bool wide[MT], any = false;
    for (int t = 0; t < MT; t++) {
      const QuantizedNibbles made = quantize_nibbles(x + (token + t) * columns + g * 32, rows[t]);
      const float sum = reduce_add(made.sum);
      to.scale[at + t] = made.scale;
      if (to.sum) to.sum[at + t] = made.scale * sum;
      int start = -to.form.offset * int(sum);
      if constexpr (kHasCrossed && crossed) start += crossed_start<crossed ? Format::Q4_0 : Format::F32>(made.words) * (made.wide ? times : 1);
      to.start[at + t] = start;
      int32_t words[8], both[4];
      __builtin_memcpy(words, made.words, sizeof words);
      __builtin_memcpy(both, made.both, sizeof both);
      for (int j = 0; j < 8; j++) to.low[at * 8 + size_t(j * MT + t)] = words[j];
      for (int j = 0; j < 4; j++) to.more[at * 4 + size_t(j * MT + t)] = both[j];
      any |= wide[t] = made.wide;
    }
    to.wide[at] = any;
    for (int t = 0; t < MT; t++)
      if (any && !wide[t]) to.scale[at + t] /= times, to.start[at + t] *= times;
  }
}

// The token's words, next to those of the tile's others.
template <int MT>
inline void place_superblock(const QuantizedSuperBlock& from, int32_t* words, int32_t* start) {
  const auto word = [](int16_t low, int16_t high) { return int32_t(uint16_t(low) | uint32_t(uint16_t(high)) << 16); };
  for (int c = 0; c < kSuperBlock; c += 4, words += 2 * MT) {
    words[0] = word(from.whole[c], from.whole[c + 2]);
    words[MT] = word(from.whole[c + 1], from.whole[c + 3]);
  }
  for (int g = 0; g < kSuperBlock / 32; g += 2, words += MT) *words = word(from.sums[g], from.sums[g + 1]);
  for (int c = 0; c < kSuperBlock; c += kSmallestPart, start += MT) {
    uint32_t sum = 0;  // may wrap, as all of these sums may
    for (int i = c; i < c + kSmallestPart; i += 2) sum += uint32_t(from.whole[i] * from.whole[i + 1]);
    *start = int32_t(0 - sum);
  }
}

template <int MT>
inline void regroup_superblocks(const float* x, const Activations& to, int token) {
  const size_t columns = size_t(to.columns), blocks = columns / kSuperBlock;
  bool finite[MT];
  for (int t = 0; t < MT; t++) finite[t] = row_of(x + (token + t) * columns, columns, kAllAreWide).finite;
  for (size_t b = 0; b < blocks; b++) {
    const size_t at = token * blocks + b * MT;
    for (int t = 0; t < MT; t++) {
      const QuantizedSuperBlock made = quantize_superblock(x + (token + t) * columns + b * kSuperBlock, finite[t]);
      to.scale[at + t] = made.scale;
      to.sum[at + t] = made.scale * made.unit;
      place_superblock<MT>(made, to.low + at * kSuperWords + t, to.start + at * kSuperStarts + t);
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

inline void regroup(const float* x, const Activations& to, int first, int last) {
  if (to.form.superblocks()) {
    const auto visit = [&](int t, auto size) { regroup_superblocks<decltype(size)::value>(x, to, t); };
    if (crosses(to.form, to.tokens)) for_each_tile<kCrossedTile>(first, last, visit);
    else for_each_tile<kQuantizedTile>(first, last, visit);
  } else if (to.form.nibbles) {
    if (crosses(to.form, to.tokens)) for_each_tile<kCrossedTile>(first, last, [&](int t, auto size) { regroup_nibbles<decltype(size)::value, true>(x, to, t); });
    else for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_nibbles<decltype(size)::value, false>(x, to, t); });
  } else if (to.form.group == 32) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_quantized<decltype(size)::value, 32>(x, to, t); });
  } else if (to.form.group == 16) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_quantized<decltype(size)::value, 16>(x, to, t); });
  } else if (to.form.pairs) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_bf16<decltype(size)::value>(x, to, t); });
  } else {
    for_each_tile<kTile>(first, last, [&](int t, auto size) { regroup_floats<decltype(size)::value>(x, to, t); });
  }
}

}  // namespace
}  // namespace ventoux
