// Products of 4-bit weights and many tokens with half the multiplications (Winograd, "A New Algorithm for Inner Product", IEEE
// Transactions on Computers C-17, 1968): of two columns with weights v, w and activations x, y
//
//   v x + w y = (x + w) (y + v) - x y - v w
//
// where x y belongs to the token alone, and v w to the weights alone. A vpdpbusd then does the work of two; the additions of
// bytes go to ports that stood idle. x + w has to fit in a byte: activations leave room for a weight (kCrossedLimit). All of it
// is exact, so these are the sums of quantized.h.
//
// Here v and x are columns of line 2j of a group, w and y those of line 2j + 1; v is signed (less 8), and x + w unsigned (w plus
// 120): what that adds is in the same two parts. Two panels share a broadcast activation, for loading is as scarce as multiplying.
#pragma once

#include "quantized.h"
#include "tiles.h"

namespace ventoux {
namespace {

template <Format f>
constexpr bool crosses_bytes = kHasCrossed && layout(f).bits == 4 && layout(f).per_block == 1;

constexpr int kUp = 120, kDown = 8;  // of the odd lines' quants, and of the even ones'
constexpr int kCrossedLimit = 120;   // of an activation: x + w + 120 is in [0, 255], y + v - 8 in [-128, 127]

// Whether these activations are multiplied so: a few tokens do not pay for what is prepared.
inline bool crosses(const Form& form, int tokens) { return form.crossed && tokens > kFewTokens; }

// The activations' part, and that of the quants' offset, of one group.
template <Format f>
inline int crossed_start(const int8_t* low, const int8_t* high, int offset) {
  return -Crossed<f>::of_activations(low, high, kUp, -kDown, offset) - 257 * 16 * kUp * kDown;
}

constexpr int kCrossedTile = 6;     // tokens: 12 sums and 12 totals, four lines and four words fill 32 registers
constexpr int kCrossedGroups = 16;  // of a panel that go together

// Groups of a panel, unpacked, and the weights' part of each.
struct CrossedStrip {
  alignas(64) uint8_t bytes[kCrossedGroups * 8 * 64];
  alignas(64) int32_t start[kCrossedGroups * kPanel];
  alignas(64) float scale[kCrossedGroups * kPanel], min[kCrossedGroups * kPanel];
};

// Groups g0 .. g0 + n of a panel; so many bytes behind them is what will be unpacked next.
template <Format f>
inline void unpack_crossed(const uint8_t* panel, int g0, int n, ptrdiff_t next, CrossedStrip& to) {
  for (int g = 0; g < n; g++) {
    const Group group = group_at<f>(panel, g0 + g);
    fetch_ahead<f>(group.quants, next);
    store(to.scale + g * kPanel, group.scale);
    if constexpr (kMin<f>) store(to.min + g * kPanel, group.min);
    Ints sum = zero_ints();
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
      const Bytes even = Crossed<f>::add(line_at<f>(group.quants, j), Crossed<f>::splat(-kDown));
      const Bytes odd = Crossed<f>::add(line_at<f>(group.quants, j + 1), Crossed<f>::splat(kUp));
      store_bytes(to.bytes + (g * 8 + j) * 64, even);
      store_bytes(to.bytes + (g * 8 + j + 1) * 64, odd);
      sum = Crossed<f>::add_products(sum, odd, even);
    }
    store_ints(to.start + g * kPanel, Crossed<f>::minus(sum));
  }
}

// Sums in two panels for n tokens, of bytes or of what else Arithmetic adds and multiplies.
template <class Arithmetic, int n>
struct PairSums {
  using A = Arithmetic;
  Ints first, second;
  PairSums<A, n - 1> rest;
  PairSums(Ints one, Ints other) : first(one), second(other), rest(one, other) {}
  PairSums(Ints one, Ints other, const int32_t* start)
      : first(add_ints(one, splat_ints(*start))), second(add_ints(other, splat_ints(*start))), rest(one, other, start + 1) {}
  // Two lines of each panel with words of the tokens, `step` apart.
  void add(Bytes even, Bytes odd, Bytes other_even, Bytes other_odd, const int32_t* words, int step) {
    const Bytes x = A::splat_word(words[0]), y = A::splat_word(words[step]);
    first = A::add_products(first, A::add(odd, x), A::add(even, y));
    second = A::add_products(second, A::add(other_odd, x), A::add(other_even, y));
    rest.add(even, odd, other_even, other_odd, words + 1, step);
  }
  // 256 times what they were, and the starts.
  void rise(const int32_t* one, const int32_t* other, const int32_t* start) {
    first = add_ints(add_256(load_ints(one), first), splat_ints(*start));
    second = add_ints(add_256(load_ints(other), second), splat_ints(*start));
    rest.rise(one, other, start + 1);
  }
  // What stands at each token's place.
  void add_from(const int32_t* sums, const uint8_t* place) {
    first = add_ints(first, load_ints(sums + *place * 2 * kPanel));
    second = add_ints(second, load_ints(sums + *place * 2 * kPanel + kPanel));
    rest.add_from(sums, place + 1);
  }
};
template <class Arithmetic>
struct PairSums<Arithmetic, 0> {
  PairSums(Ints, Ints) {}
  PairSums(Ints, Ints, const int32_t*) {}
  void add(Bytes, Bytes, Bytes, Bytes, const int32_t*, int) {}
  void rise(const int32_t*, const int32_t*, const int32_t*) {}
  void add_from(const int32_t*, const uint8_t*) {}
};

// What n tokens have of all groups so far in two panels.
template <Format f, int n>
struct PairTotals {
  Floats first, second;
  PairTotals<f, n - 1> rest;
  PairTotals(const float* from, bool none)
      : first(none ? splat(0) : load(from)), second(none ? splat(0) : load(from + kPanel)), rest(from + 2 * kPanel, none) {}
  void store_to(float* to) const {
    store(to, first);
    store(to + kPanel, second);
    rest.store_to(to + 2 * kPanel);
  }
  void add(const PairSums<Crossed<f>, n>& sums, const float* scale, const float* other_scale, const float* min, const float* other_min,
           const float* x_scale, const float* x_sum) {
    first = add_group<f>(first, sums.first, load(scale), kMin<f> ? load(min) : splat(0), *x_scale, x_sum);
    second = add_group<f>(second, sums.second, load(other_scale), kMin<f> ? load(other_min) : splat(0), *x_scale, x_sum);
    rest.add(sums.rest, scale, other_scale, min, other_min, x_scale + 1, x_sum + 1);
  }
};
template <Format f>
struct PairTotals<f, 0> {
  PairTotals(const float*, bool) {}
  void store_to(float*) const {}
  void add(const PairSums<Crossed<f>, 0>&, const float*, const float*, const float*, const float*, const float*, const float*) {}
};

// Group g of two strips with n tokens of a tile of MT, added to their sums.
template <Format f, int MT, int n>
inline PairSums<Crossed<f>, n> add_crossed(PairSums<Crossed<f>, n> sums, const CrossedStrip* w, int g, const int32_t* words) {
  const uint8_t *one = w[0].bytes + g * 8 * 64, *other = w[1].bytes + g * 8 * 64;
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2)
    sums.add(load_bytes(one + j * 64), load_bytes(one + j * 64 + 64), load_bytes(other + j * 64), load_bytes(other + j * 64 + 64),
             words + j * MT, MT);
  return sums;
}

// Groups of two panels' strips . a tile of tokens, of which `at` is the first group's place, added to their totals.
template <Format f, int MT>
inline void crossed_tile(const CrossedStrip* w, const Activations& x, size_t at, int groups, float* to, bool first) {
  // 256 times the high parts of tokens that stand out alone, and zeros at place 0, for all others.
  alignas(64) int32_t sums[(1 + kCrossedGroups * MT) * 2 * kPanel];
  uint8_t place[kCrossedGroups][MT];
  int count = 1;
  store_ints(sums, zero_ints());
  store_ints(sums + kPanel, zero_ints());
  for (int g = 0; g < groups; g++) {
    const size_t here = at + size_t(g) * MT;
    if (!x.wide[here] || x.wide[here] == kAll<MT>) continue;
    for (int t = 0; t < MT; t++) place[g][t] = 0;
    for (unsigned wide = x.wide[here]; wide; wide &= wide - 1, count++) {
      const int t = __builtin_ctz(wide);
      PairSums<Crossed<f>, 1> high(load_ints(w[0].start + g * kPanel), load_ints(w[1].start + g * kPanel));
      high = add_crossed<f, MT, 1>(high, w, g, x.high + here * 8 + t);
      place[g][t] = uint8_t(count);
      store_ints(sums + count * 2 * kPanel, add_256(zero_ints(), high.first));
      store_ints(sums + count * 2 * kPanel + kPanel, add_256(zero_ints(), high.second));
    }
  }
  PairTotals<f, MT> totals(to, first);
  const auto add = [&](PairSums<Crossed<f>, MT> sums, int g) __attribute__((always_inline)) {
    sums = add_crossed<f, MT, MT>(sums, w, g, x.low + at * 8);
    const int i = g * kPanel;
    totals.add(sums, w[0].scale + i, w[1].scale + i, w[0].min + i, w[1].min + i, x.scale + at, x.sum + at);
    at += MT;
  };
  for (int g = 0; g < groups;) {
    for (; g < groups && !x.wide[at]; g++)
      add(PairSums<Crossed<f>, MT>(load_ints(w[0].start + g * kPanel), load_ints(w[1].start + g * kPanel), x.start + at), g);
    for (; g < groups && x.wide[at] == kAll<MT>; g++) {
      const int32_t *one = w[0].start + g * kPanel, *other = w[1].start + g * kPanel;
      PairSums<Crossed<f>, MT> both = add_crossed<f, MT, MT>(PairSums<Crossed<f>, MT>(load_ints(one), load_ints(other)), w, g, x.high + at * 8);
      asm volatile("" ::: "memory");  // or GCC loads all of what follows first, and keeps totals in memory
      both.rise(one, other, x.start + at);
      add(both, g);
    }
    for (; g < groups && x.wide[at] && x.wide[at] != kAll<MT>; g++) {
      PairSums<Crossed<f>, MT> some(load_ints(w[0].start + g * kPanel), load_ints(w[1].start + g * kPanel), x.start + at);
      some.add_from(sums, place[g]);
      add(some, g);
    }
  }
  totals.store_to(to);
}

// How two_panels.h multiplies formats of 4 bits.
template <Format f>
struct CrossedBytes {
  using Strip = CrossedStrip;
  static constexpr int kGroup = layout(f).group, kGroups = kCrossedGroups;
  static void unpack(const uint8_t* panel, int g0, int n, ptrdiff_t next, Strip& to) { unpack_crossed<f>(panel, g0, n, next, to); }
  template <int MT>
  static void tile(const Strip* w, const Activations& x, size_t at, int groups, float* to, bool first) {
    crossed_tile<f, MT>(w, x, at, groups, to, first);
  }
};

}  // namespace
}  // namespace ventoux
