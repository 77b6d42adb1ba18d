// Products of 4-bit weights and many tokens with half the multiplications (Winograd, "A New Algorithm for Inner Product", IEEE
// Transactions on Computers C-17, 1968): of two columns with weights v, w and activations x, y
//
//   v x + w y = (x + w) (y + v) - x y - v w
//
// where x y belongs to the token alone, and v w to the weights alone. A vpdpbusd then does the work of two; the additions of
// bytes go to ports that stood idle. x + w has to fit in a byte: activations leave room for a weight (kByteLimit). All of it
// is exact, so these are the sums of nibbles.h, whose products with whole bytes are left as they are: those have no room.
//
// Here v and x are columns of line 2j of a group, w and y those of line 2j + 1; v is signed (less 8), and x + w unsigned (w plus
// 120): what that adds is in the same two parts. Two panels share a broadcast activation, for loading is as scarce as multiplying.
#pragma once

#include "quantized.h"
#include "tiles.h"

namespace ventoux {
namespace {

template <Format f>
constexpr bool crosses_bytes = kHasCrossed && in_nibbles(f);

constexpr int kUp = 120, kDown = 8;  // of the odd lines' quants, and of the even ones'
static_assert(!kHasCrossed || (kByteLimit + 15 + kUp <= 255 && -kByteLimit + kUp >= 0), "x + w + 120 is a byte");
static_assert(!kHasCrossed || (kByteLimit + 15 - kDown <= 127 && -kByteLimit - kDown >= -128), "y + v - 8 is an int8");
static_assert(!kHasCrossed || (kNibbleLimit + 8 + 15 + kUp <= 255 && -(kNibbleLimit + 7) + kUp >= 0), "so of s = y - u");
static_assert(!kHasCrossed || (kNibbleLimit + 8 + 15 - kDown <= 127 && -(kNibbleLimit + 7) - kDown >= -128), "so of s = y - u");

// Whether these activations are multiplied so: a few tokens do not pay for what is prepared.
inline bool crosses(const Form& form, int tokens) { return form.crossed && tokens > kFewTokens; }

// The activations' part of one group, of 32 int8.
template <Format f>
inline int crossed_start(const int8_t* words) {
  return -Crossed<f>::of_activations(words, kUp, -kDown) - 16 * kUp * kDown;
}

constexpr int kCrossedTile = 6;     // tokens: 12 sums and 12 totals, four lines and four words fill 32 registers
constexpr int kCrossedGroups = 16;  // of a panel that go together

// Groups of a panel, unpacked and as they lie, and the weights' part of each.
struct CrossedStrip {
  const uint8_t* quants;
  alignas(64) uint8_t bytes[kCrossedGroups * 8 * 64];
  alignas(64) int32_t start[kCrossedGroups * kPanel];
  alignas(64) float scale[kCrossedGroups * kPanel], min[kCrossedGroups * kPanel];
};

// Groups g0 .. g0 + n of a panel; so many bytes behind them is what will be unpacked next.
template <Format f>
inline void unpack_crossed(const uint8_t* panel, int g0, int n, ptrdiff_t next, CrossedStrip& to) {
  to.quants = group_at<f>(panel, g0).quants;
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
  void rise(const int32_t* start) {
    first = add_shifted<8>(splat_ints(*start), first);
    second = add_shifted<8>(splat_ints(*start), second);
    rest.rise(start + 1);
  }
  // A line of each panel with a word of the tokens.
  void add_line(Bytes line, Bytes other, const int32_t* words) {
    const Bytes p = A::splat_word(*words);
    first = A::add_products(first, line, p);
    second = A::add_products(second, other, p);
    rest.add_line(line, other, words + 1);
  }
};
template <class Arithmetic>
struct PairSums<Arithmetic, 0> {
  PairSums(Ints, Ints) {}
  PairSums(Ints, Ints, const int32_t*) {}
  void add(Bytes, Bytes, Bytes, Bytes, const int32_t*, int) {}
  void rise(const int32_t*) {}
  void add_line(Bytes, Bytes, const int32_t*) {}
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
  PairTotals<f, MT> totals(to, first);
  for (int g = 0; g < groups;) {
    for (; g < groups && !x.wide[at]; g++, at += MT) {
      const int i = g * kPanel;
      PairSums<Crossed<f>, MT> sums(load_ints(w[0].start + i), load_ints(w[1].start + i), x.start + at);
      sums = add_crossed<f, MT, MT>(sums, w, g, x.low + at * 8);
      totals.add(sums, w[0].scale + i, w[1].scale + i, w[0].min + i, w[1].min + i, x.scale + at, x.sum + at);
    }
    for (; g < groups && x.wide[at]; g++, at += MT) {
      const int i = g * kPanel;
      PairSums<Crossed<f>, MT> sums(load_ints(w[0].start + i), load_ints(w[1].start + i));
      sums = add_crossed<f, MT, MT>(sums, w, g, x.low + at * 8);
      sums.rise(x.start + at);
      const uint8_t *one = w[0].quants + g * layout(f).group_bytes(), *other = w[1].quants + g * layout(f).group_bytes();
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) sums.add_line(load_bytes(one + j * 64), load_bytes(other + j * 64), x.more + at * 4 + j * MT);
      totals.add(sums, w[0].scale + i, w[1].scale + i, w[0].min + i, w[1].min + i, x.scale + at, x.sum + at);
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
