// Weights of 4 bits . activations of 8, and of 11 or 12 where they stand out, which take three int8 products for two columns.
//
// Two weights l and h share a byte, l + 16 h; their columns' activations are x and y. In 8 bits these take a product each, in 16 two. But what
// is multiplied with the byte as it lies goes to both of them. Of `n` steps (kNibbleSteps, 16 or 8) in each of q and s:
//
//   l x + h y = 16 n (l q + h s) + (l + 16 h) p   where x = 16 n q + p and y = 16 n s + 16 p
//
// Of p = n u + v, with v in 0 .. n - 1 and u in -8 .. 7, the lower bits are what y has behind s, and the upper ones what x has behind q:
// x = 16 n q + n u + v, y = 16 n (s + u) + 16 v. So v is made for y, and then u for x: y comes as near as 8, x as near as n / 2.
#pragma once

#include "sums.h"

namespace ventoux {
namespace {

// The largest magnitudes, in steps of 8 bits: of activations in 8 bits, and in more, whose s is up to 8 larger for what u is of it. Both
// leave room for a weight where crossed.h adds one.
constexpr int kByteLimit = kHasCrossed ? 120 : 127, kNibbleLimit = kHasCrossed ? 112 : 119;

// Group `at` of a tile's tokens, all of them wide: words are q of columns 0 .. 15 and s of columns 16 .. 31, p is of both.
template <Format f, int MT>
inline Sums<MT> nibbles_of_group(const uint8_t* quants, const Activations& x, size_t at) {
  constexpr int bits = kNibbleSteps == 16 ? 8 : 7;
  static_assert(1 << bits == 16 * kNibbleSteps, "16 or 8");
  const int32_t *words = x.low + at * 8, *p = x.more + at * 4;
  if constexpr (straight(4) && MT <= kFewSums) {  // there is room for sums of their own, so the upper nibbles can stay where they are
    Sums<MT> lower, upper, both = start_of_group<f, MT>(x, at, 0);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++, words += MT, p += MT) {
      const Bytes line = Nibbles<f>::load(quants + 64 * j);
      lower.template add_line<4>(mask(line, 15), words);
      upper.template add_line<4>(mask(line, 240), words + 4 * MT);
      both.template add_bytes<f>(line, p);
    }
    lower.template shift_and_add<bits - 4>(upper);
    lower.template shift_and_add<bits - 4>(both);
    return lower;
  }
  Sums<MT> sums = add_lines<f, MT, MT>(Sums<MT>(), Packed<f>{quants}, words);
  sums.template shift_and_add<bits>(start_of_group<f, MT>(x, at, 0));
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) sums.template add_bytes<f>(Nibbles<f>::load(quants + 64 * j), p + j * MT);
  return sums;
}

// to[MT][16] = a panel . a tile of tokens, of which `at` is the first group's place.
template <Format f, int MT>
[[gnu::noinline]] void nibble_tile(const uint8_t* panel, const Activations& x, size_t at, float* to) {
  const int groups = x.columns / layout(f).group;
  Totals<MT> totals;
  for (int g = 0; g < groups;) {
    for (; g < groups && !x.wide[at]; g++, at += MT) {
      const uint8_t* quants = group_at<f>(panel, g).quants;
      fetch_ahead<f>(quants, ahead_of(MT));
      const Sums<MT> sums = add_lines<f, MT, MT>(start_of_group<f, MT>(x, at, 0), Packed<f>{quants}, x.low + at * 8);
      const Group group = group_at<f>(panel, g);
      totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
    }
    for (; g < groups && x.wide[at]; g++, at += MT) {
      const uint8_t* quants = group_at<f>(panel, g).quants;
      fetch_ahead<f>(quants, ahead_of(MT));
      const Sums<MT> sums = nibbles_of_group<f, MT>(quants, x, at);
      const Group group = group_at<f>(panel, g);
      totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
    }
  }
  totals.store_to(to);
}

}  // namespace
}  // namespace ventoux
