// Activations, regrouped for the kernels and, for block formats, quantized to int8: kernels.h has the layout.
#pragma once

#include "superblock.h"
#include "tiles.h"

namespace ventoux {
namespace {

// A group is wide when its largest activation is more than this many times the row's root mean square. Lower is slower and more exact:
// docs/performance.md has the figures that these were chosen by. 12 bits cost less than 16.
constexpr float kOrdinary = 1.75f, kOrdinaryNibbles = 1.42f, kAllAreWide = -1;

// A row as a whole: over which magnitude its activations make their groups wide, and whether all of them are numbers for sure.
struct Row {
  float ordinary;
  bool finite;
};
inline Row row_of(const float* row, size_t columns, float ordinary) {
  Floats squares = splat(0), more = splat(0);  // two sums, for each addition waits for the last
  for (size_t c = 0; c < columns; c += 2 * kPanel) {  // no block has fewer columns than 32
    squares = fma(load(row + c), load(row + c), squares);
    more = fma(load(row + c + kPanel), load(row + c + kPanel), more);
  }
  const float sum = reduce_add(add(squares, more));
  return {ordinary == kAllAreWide ? -1 : ordinary * __builtin_sqrtf(sum / float(columns)), sum * 0 == 0};
}

// One group of one token; `sum`, in 16 lanes, is that of its integers, below 2^24 and so exact.
template <int group>
struct Quantized {
  alignas(32) int8_t low[group], high[group];
  float scale;
  Floats sum;
  bool wide;
};

template <int group>
inline Quantized<group> quantize_group(const float* x, Row row) {
  static_assert(group == 16 || group == 32, "one vector or two");
  constexpr int last = group - 16, limit = 127;  // of either part
  Quantized<group> to;
  const Floats a = load(x), b = load(x + last);
  // NaN and infinity (which 0 turns into NaN, and a maximum may lose) go on to the logits, where they are reported.
  if (!row.finite && reduce_add(mul(add(a, b), splat(0))) != 0) {
    to = Quantized<group>{};
    to.scale = __builtin_nanf("");
    return to;
  }
  const float most = reduce_max(max(abs(a), abs(b)));
  to.wide = most > row.ordinary;
  const float largest = float(to.wide ? limit * 256 + limit : limit);
  to.scale = most / largest;
  // What is so small counts as 0: its inverse would overflow.
  const Floats inverse = splat(most > 1e-30f ? largest / most : 0), end = splat(float(limit)), start = splat(-float(limit));
  const Floats to_high = splat(to.wide ? 1.0f / 256 : 0);
  const auto high_of = [&](Floats whole) { return round(mul(whole, to_high)); };
  // -128 .. 128; the ends are cut to what every kernel can multiply, an error of one in 32,639.
  const auto low_of = [&](Floats whole, Floats high) { return min(max(round(fnma(high, splat(256), whole)), start), end); };
  const Floats whole = mul(a, inverse), high = high_of(whole), low = low_of(whole, high);
  to.sum = fma(high, splat(256), low);
  if constexpr (group == 16) {
    store_int8(to.high, high);
    store_int8(to.low, low);
  } else {
    const Floats behind = mul(b, inverse), high_behind = high_of(behind), low_behind = low_of(behind, high_behind);
    to.sum = add(to.sum, fma(high_behind, splat(256), low_behind));
    store_int8(to.high, high, high_behind);
    store_int8(to.low, low, low_behind);
  }
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
template <int MT, int group>
inline void place_parts(const Quantized<group>& from, int32_t* low, int32_t* high) {
  int32_t quads[group / 4];
  __builtin_memcpy(quads, from.low, sizeof quads);
  for (int j = 0; j < group / 4; j++) low[j * MT] = quads[j];
  __builtin_memcpy(quads, from.high, sizeof quads);
  for (int j = 0; j < group / 4; j++) high[j * MT] = quads[j];
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
inline void regroup_quantized(const float* x, const Activations& to, Rounding rounding, int token) {
  constexpr int words = group / 4;
  const size_t columns = size_t(to.columns), groups = columns / group;
  const float ordinary = to.form.pairs || rounding == Rounding::Int16 ? kAllAreWide : kOrdinary;
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
      if (to.form.pairs) place_pairs<MT>(made, to.low + 2 * at * words + t);
      else place_parts<MT>(made, to.low + at * words + t, to.more + at * words + t);
    }
    if (!to.form.pairs) to.wide[at] = wide_tokens<MT>(wide);
  }
}

// A token's group as nibbles.h multiplies it: in 8 bits, or q and s, and p for both. `sum`, in 16 lanes, is that of its integers, below
// 2^24 and so exact.
struct QuantizedNibbles {
  alignas(32) int8_t words[32];
  alignas(16) int8_t both[16];
  Floats sum;
  float scale;
  bool wide;
};
inline QuantizedNibbles quantize_nibbles(const float* x, Row row) {
  QuantizedNibbles to;
  const Floats a = load(x), b = load(x + kPanel);
  if (!row.finite && reduce_add(mul(add(a, b), splat(0))) != 0) {  // as in quantize_group
    to = QuantizedNibbles{};
    to.scale = __builtin_nanf("");
    return to;
  }
  const float most = reduce_max(max(abs(a), abs(b)));
  to.wide = most > row.ordinary;
  // Of a wide group in sixteenths of a step of q and s.
  const float largest = to.wide ? 16 * kNibbleLimit : kByteLimit;
  // What is so small counts as 0: products of scales have to stay normal numbers, also of a 256th, or bits would depend on the tile.
  const Floats inverse = splat(most > 1e-26f ? largest / most : 0), y = round(mul(b, inverse));
  if (!to.wide) {
    const Floats whole = round(mul(a, inverse));
    store_int8(to.words, whole, y);
    store_int8(to.both, splat(0));
    to.sum = add(whole, y);
    to.scale = most / largest;
    return to;
  }
  const Floats sixteenth = splat(1.0f / 16), sixteen = splat(16);
  // Of a whole number of sixteenths the whole part, rounded down.
  const auto floor_of = [&](Floats sixteenths) { return round(fma(sixteenths, sixteenth, splat(-15.0f / 32))); };
  const Floats below = floor_of(y), v = fnma(below, sixteen, y);
  const Floats nearest = round(fnma(v, sixteenth, mul(a, inverse))), q = floor_of(add(nearest, splat(8))), u = fnma(q, sixteen, nearest);
  const Floats s = sub(below, u), p = fma(u, sixteen, v);
  store_int8(to.words, q, s);
  store_int8(to.both, p);
  to.sum = fma(add(q, s), splat(256), mul(p, splat(17)));
  to.scale = most / (16 * largest);
  return to;
}

// Where a tile has a token that is wide, all of them are: the others' words stand for 256 times as much, without p.
template <int MT, bool crossed>
inline void regroup_nibbles(const float* x, const Activations& to, int token) {
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
      if constexpr (kHasCrossed && crossed) start += crossed_start<crossed ? Format::Q4_0 : Format::F32>(made.words) * (made.wide ? 256 : 1);
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
      if (any && !wide[t]) to.scale[at + t] /= 256, to.start[at + t] *= 256;
  }
}

// A token's super-block of activations as integers, kSuperLimit at most, and the sums of each 32 of them in `unit`.
struct QuantizedSuperBlock {
  alignas(64) int16_t whole[kSuperBlock];
  int16_t sums[kSuperBlock / 32];
  float scale, unit;
};
inline QuantizedSuperBlock quantize_superblock(const float* x, bool finite) {
  Floats largest = splat(0), not_finite = splat(0);
  for (int c = 0; c < kSuperBlock; c += kPanel) {
    largest = max(largest, abs(load(x + c)));
    if (!finite) not_finite = fma(load(x + c), splat(0), not_finite);
  }
  QuantizedSuperBlock to;
  if (!finite && reduce_add(not_finite) != 0) {  // as in quantize_group
    to = QuantizedSuperBlock{};
    to.scale = __builtin_nanf("");
    return to;
  }
  const float most = reduce_max(largest);
  const Floats inverse = splat(most > 1e-30f ? float(kSuperLimit) / most : 0);
  float sums[kSuperBlock / 32], most_of_sums = 0;
  for (int g = 0; g < kSuperBlock / 32; g++) {
    const Floats one = round(mul(load(x + g * 32), inverse)), other = round(mul(load(x + g * 32 + kPanel), inverse));
    float whole[32];
    store(whole, one), store(whole + kPanel, other);
    for (int i = 0; i < 32; i++) to.whole[g * 32 + i] = int16_t(int(whole[i]));
    sums[g] = reduce_add(add(one, other));
    most_of_sums = sums[g] > most_of_sums ? sums[g] : -sums[g] > most_of_sums ? -sums[g] : most_of_sums;
  }
  to.unit = 1;
  while (most_of_sums > 32767 * to.unit) to.unit *= 2;
  for (int g = 0; g < kSuperBlock / 32; g++) to.sums[g] = int16_t(__builtin_rintf(sums[g] / to.unit));
  to.scale = most / float(kSuperLimit);
  return to;
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

inline void regroup(const float* x, const Activations& to, Rounding rounding, int first, int last) {
  if (to.form.superblocks()) {
    const auto visit = [&](int t, auto size) { regroup_superblocks<decltype(size)::value>(x, to, t); };
    if (crosses(to.form, to.tokens)) for_each_tile<kCrossedTile>(first, last, visit);
    else for_each_tile<kQuantizedTile>(first, last, visit);
  } else if (to.form.nibbles) {
    if (crosses(to.form, to.tokens)) for_each_tile<kCrossedTile>(first, last, [&](int t, auto size) { regroup_nibbles<decltype(size)::value, true>(x, to, t); });
    else for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_nibbles<decltype(size)::value, false>(x, to, t); });
  } else if (to.form.group == 32) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_quantized<decltype(size)::value, 32>(x, to, rounding, t); });
  } else if (to.form.group == 16) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_quantized<decltype(size)::value, 16>(x, to, rounding, t); });
  } else if (to.form.pairs) {
    for_each_tile<kQuantizedTile>(first, last, [&](int t, auto size) { regroup_bf16<decltype(size)::value>(x, to, t); });
  } else {
    for_each_tile<kTile>(first, last, [&](int t, auto size) { regroup_floats<decltype(size)::value>(x, to, t); });
  }
}

}  // namespace
}  // namespace ventoux
