// Weights of 4 bits . activations of 8, and of 12 where they stand out, which take three int8 products for two columns.
//
// Two weights l and h share a byte, l + 16 h; their columns' activations are x and y. In 8 bits these take a product each, in 16 two. But what
// is multiplied with the byte as it lies goes to both of them:
//
//   l x + h y = 256 (l q + h s) + (l + 16 h) p   where x = 256 q + p and y = 256 s + 16 p
//
// Of p = 16 u + v, with v in 0 .. 15 and u in -8 .. 7, the lower bits are what y has behind s, and the upper ones what x has behind q:
// x = 256 q + 16 u + v, y = 256 (s + u) + 16 v. So v is made for y, and then u for x: both come as near as 8, in 256 times the steps of 8 bits.
#pragma once

#include "sums.h"

namespace ventoux {
namespace {

// The largest magnitudes, in steps of 8 bits: of activations in 8 bits, which leave room for a weight (crossed.h), and in 12, whose s is up to
// 8 larger for what u is of it.
constexpr int kByteLimit = 120, kNibbleLimit = 112;

// A group of n tokens of a tile of MT, all in 12 bits: words are q of columns 0 .. 15 and s of columns 16 .. 31, p is of both. Sums begin
// with `start`.
template <Format f, int MT, int n>
inline Sums<n> nibbles_of_group(const uint8_t* quants, const int32_t* words, const int32_t* p, const int32_t* start) {
  const Packed<f> lines{quants};
  if constexpr (n <= kFewSums) {  // there is room for sums of their own, so the upper nibbles can stay where they are
    Sums<n> lower, upper, both(start);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++, words += MT, p += MT) {
      const Bytes line = Nibbles<f>::load(quants + 64 * j);
      lower.template add_line<4>(mask(line, 15), words);
      upper.template add_line<4>(mask(line, 240), words + 4 * MT);
      both.template add_line<4>(line, p);
    }
    lower.add_to_16(upper);
    lower.add_to_16(both);
    return lower;
  }
  Sums<n> sums;
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) sums.template add_line<4>(lines(j), words + j * MT);
  sums.add_to_256(Sums<n>(start));
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) sums.template add_line<4>(load_bytes(quants + 64 * j), p + j * MT);
  return sums;
}

// to[MT][16] = a panel . a tile of tokens, of which `at` is the first group's place.
template <Format f, int MT>
inline void nibble_tile(const uint8_t* panel, const Activations& x, size_t at, float* to) {
  const int groups = x.columns / layout(f).group;
  Totals<MT> totals;
  for (int g = 0; g < groups;) {
    for (; g < groups && !x.wide[at]; g++, at += MT) {
      const Group group = group_at<f>(panel, g);
      fetch_ahead<f>(group.quants);
      const Sums<MT> sums = add_lines<f, MT, MT>(Sums<MT>(x.start + at), Packed<f>{group.quants}, x.low + at * 8);
      totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
    }
    for (; g < groups && x.wide[at]; g++, at += MT) {
      const Group group = group_at<f>(panel, g);
      fetch_ahead<f>(group.quants);
      const Sums<MT> sums = nibbles_of_group<f, MT, MT>(group.quants, x.low + at * 8, x.more + at * 4, x.start + at);
      totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
    }
  }
  totals.store_to(to);
}

}  // namespace
}  // namespace ventoux
