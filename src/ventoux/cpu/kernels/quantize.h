// A token's activations rounded to integers: a group of 32 or 16 of them (quantized.h, nibbles.h), or a super-block (superblock.h).
#pragma once

#include "superblock.h"

namespace ventoux {
namespace {

// A group is wide when its largest activation is more than this many times the row's root mean square. Lower is slower and more exact:
// docs/performance.md has the figures that these were chosen by. 11 and 12 bits cost less than 16.
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
  // Of a wide group in parts of a step of q and s.
  constexpr float steps = kNibbleSteps;
  const float largest = to.wide ? steps * kNibbleLimit : kByteLimit;
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
  // Of a whole number of so many parts the whole ones, rounded down.
  const auto floor_of = [](Floats whole, float parts) { return round(fma(whole, splat(1 / parts), splat((1 - parts) / (2 * parts)))); };
  const Floats below = floor_of(y, steps), v = fnma(below, splat(steps), y);
  const Floats nearest = round(fnma(v, splat(1 / steps), mul(a, mul(inverse, splat(16 / steps)))));
  const Floats q = floor_of(add(nearest, splat(8)), 16), u = fnma(q, splat(16), nearest);
  const Floats s = sub(below, u), p = fma(u, splat(steps), v);
  store_int8(to.words, q, s);
  store_int8(to.both, p);
  to.sum = fma(add(q, s), splat(16 * steps), mul(p, splat(17)));
  to.scale = most / (16 * largest);
  return to;
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

}  // namespace
}  // namespace ventoux
