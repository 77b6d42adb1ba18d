// Block formats . quantized activations: one token straight from a panel, or a tile of tokens from an unpacked strip.
//
// A token's low parts and its high parts have a sum each, in floats, group by group. So the few groups that have high parts
// are gone through on their own, token by token, and cost the other tokens of a tile nothing.
#pragma once

#include "unpack.h"

namespace ventoux {
namespace {

constexpr int kStripLines = kStripGroups * 8;  // 16 KiB of unpacked bytes: leaves half of L1 to a tile of activations

struct Strip {
  alignas(64) uint8_t bytes[kStripLines * 64];
  alignas(64) float scale[kStripGroups * kPanel], min[kStripGroups * kPanel];
};

inline bool in_pairs(Format f) { return layout(f).bits > 0 && in_pairs(layout(f).bits); }

// Signed quants that are multiplied as they are have no minimum.
template <Format f>
constexpr bool kMin = f != Format::Q8_0 || kSignedOffset != 0;

// Groups of a strip; 16 bits take twice the room.
template <Format f>
constexpr int kGroups = in_pairs(layout(f).bits) ? kStripGroups / 2 : kStripGroups;

// Asks for what lies this far behind a group, as many bytes as the group has: with few tokens weights come from memory, and
// the core's own prefetching stops at each page. A panel's end is followed by the next panel, which is next.
constexpr int kAhead = 2048;
template <Format f>
inline void fetch_ahead(const uint8_t* quants) {
  for (int i = 0; i < layout(f).group_bytes(); i += 64) __builtin_prefetch(quants + kAhead + i);
}

inline Floats add_scaled(Floats sum, Ints dot, Floats scale, float x_scale) {
  return fma(to_floats(dot), mul(scale, splat(x_scale)), sum);
}
template <Format f>
inline Floats add_group(Floats sum, Ints dot, Floats scale, Floats min, float x_scale, float x_sum) {
  sum = add_scaled(sum, dot, scale, x_scale);
  return kMin<f> ? fnma(min, splat(x_sum), sum) : sum;
}
inline Floats whole(Floats low, Floats high) { return fma(high, splat(256), low); }

// --- one token ---

template <Format f>
inline Ints dot_of_group(const uint8_t* quants, const int32_t* x) {
  constexpr Layout l = layout(f);
  Ints sum = zero_ints();
  if constexpr (in_pairs(l.bits)) {
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) {
      const Bytes line = line_at<f>(quants, j);
      sum = Pairs<l.bits>::add(sum, Pairs<l.bits>::even(line), x[2 * j]);
      sum = Pairs<l.bits>::add(sum, Pairs<l.bits>::odd(line), x[2 * j + 1]);
    }
  } else {
    constexpr int fits = Dot<l.bits>::kFits < l.lines() ? Dot<l.bits>::kFits : l.lines();
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j += fits) {
      Dot<l.bits> dot = Dot<l.bits>::zero();
#pragma GCC unroll 8
      for (int i = j; i < j + fits; i++) dot.add(line_at<f>(quants, i), x[i]);
      sum = dot.add_to(sum);
    }
  }
  return sum;
}

// One panel . one token.
template <Format f>
inline Floats quantized_token(const uint8_t* panel, const Activations& x) {
  constexpr Layout l = layout(f);
  constexpr int words = in_pairs(l.bits) ? 2 * l.lines() : l.lines();
  const int groups = x.columns / l.group;
  Floats low = splat(0), high = splat(0);
  for (int g0 = 0; g0 < groups; g0 += kGroups<f>) {
    const int g1 = g0 + kGroups<f> < groups ? g0 + kGroups<f> : groups;
    for (int g = g0; g < g1; g++) {
      const Group group = group_at<f>(panel, g);
      fetch_ahead<f>(group.quants);
      const Ints dot = dot_of_group<f>(group.quants, x.low + size_t(g) * words);
      low = add_group<f>(low, dot, group.scale, group.min, x.scale[g], x.sum[g]);
    }
    const int wide = in_pairs(l.bits) ? 0 : x.wides[g0 / kStripGroups];
    for (int i = 0; i < wide; i++) {
      const int g = g0 + (x.wide[g0 + i] & ~kAllWide);
      const Group group = group_at<f>(panel, g);
      high = add_scaled(high, dot_of_group<f>(group.quants, x.high + size_t(g) * words), group.scale, x.scale[g]);
    }
  }
  return whole(low, high);
}

// --- a tile of tokens ---

// Groups g0 .. g0 + n of a panel.
template <Format f>
inline void unpack_bytes(const uint8_t* panel, int g0, int n, Strip& to) {
  constexpr Layout l = layout(f);
  for (int g = 0; g < n; g++) {
    const Group group = group_at<f>(panel, g0 + g);
    fetch_ahead<f>(group.quants);
    store(to.scale + g * kPanel, group.scale);
    if (kMin<f>) store(to.min + g * kPanel, group.min);
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) {
      const Bytes line = line_at<f>(group.quants, j);
      const int at = g * l.lines() + j;
      if constexpr (in_pairs(l.bits)) {
        store_bytes(to.bytes + 2 * at * 64, Pairs<l.bits>::even(line));
        store_bytes(to.bytes + (2 * at + 1) * 64, Pairs<l.bits>::odd(line));
      } else {
        store_bytes(to.bytes + at * 64, line);
      }
    }
  }
}

// Sums for n tokens, one by one and not as an array: of an array GCC keeps half in memory, and is half as fast.
template <int kBits, int n>
struct Dots {
  Dot<kBits> dot = Dot<kBits>::zero();
  Dots<kBits, n - 1> rest;
  void add(Bytes line, const int32_t* quads) {
    dot.add(line, *quads);
    rest.add(line, quads + 1);
  }
};
template <int kBits>
struct Dots<kBits, 0> {
  void add(Bytes, const int32_t*) {}
};

template <int n>
struct Sums {
  Ints sum = zero_ints();
  Sums<n - 1> rest;
  template <int kBits>
  void add(const Dots<kBits, n>& dots) {
    sum = dots.dot.add_to(sum);
    rest.add(dots.rest);
  }
  template <int kBits>
  void add_pairs(Bytes words, const int32_t* pairs) {
    sum = Pairs<kBits>::add(sum, words, *pairs);
    rest.template add_pairs<kBits>(words, pairs + 1);
  }
  // Scaled, to the sums in floats: the tokens' own scales and sums stand one after the other.
  template <Format f>
  void add_to(float* low, bool first, Floats scale, Floats min, const float* x_scale, const float* x_sum) const {
    store(low, add_group<f>(first ? splat(0) : load(low), sum, scale, min, *x_scale, *x_sum));
    rest.template add_to<f>(low + kPanel, first, scale, min, x_scale + 1, x_sum + 1);
  }
  void add_to(float* high, Floats scale, const float* x_scale) const {
    store(high, add_scaled(load(high), sum, scale, *x_scale));
    rest.add_to(high + kPanel, scale, x_scale + 1);
  }
};
template <>
struct Sums<0> {
  template <int kBits>
  void add(const Dots<kBits, 0>&) {}
  template <int kBits>
  void add_pairs(Bytes, const int32_t*) {}
  template <Format f>
  void add_to(float*, bool, Floats, Floats, const float*, const float*) const {}
  void add_to(float*, Floats, const float*) const {}
};

// One group of unpacked lines . n tokens of a tile of MT.
template <int kBits, int kLines, int MT, int n>
inline Sums<n> dots_of_group(const uint8_t* lines, const int32_t* x) {
  Sums<n> sums;
  if constexpr (in_pairs(kBits)) {
#pragma GCC unroll 16
    for (int j = 0; j < 2 * kLines; j++) sums.template add_pairs<kBits>(load_bytes(lines + j * 64), x + j * MT);
  } else {
    constexpr int fits = Dot<kBits>::kFits < kLines ? Dot<kBits>::kFits : kLines;
#pragma GCC unroll 4
    for (int j = 0; j < kLines; j += fits) {
      Dots<kBits, n> dots;
#pragma GCC unroll 8
      for (int i = j; i < j + fits; i++) dots.add(load_bytes(lines + i * 64), x + i * MT);
      sums.add(dots);
    }
  }
  return sums;
}

// The high parts of a tile's groups: of one token, or of all where more than half have some. `at` is where the strip's
// groups begin. Apart, so that the sums of low parts do not take its registers.
template <int kBits, int kLines, int MT>
[[gnu::noinline]] void high_parts(const Strip& w, const Activations& x, size_t at, int count, float* high) {
  constexpr int n = MT < kAtOnce ? MT : kAtOnce;
  for (int i = 0; i < count; i++) {
    const int entry = x.wide[at + i];
    const bool all = entry & kAllWide;
    const int g = all ? entry & ~kAllWide : entry / MT;
    const uint8_t* lines = w.bytes + g * kLines * 64;
    const Floats scale = load(w.scale + g * kPanel);
    const int32_t* quads = x.high + (at + size_t(g) * MT) * kLines;
    const float* x_scale = x.scale + at + size_t(g) * MT;
    if (all) {
      for (int t = 0; t < MT; t += n)
        dots_of_group<kBits, kLines, MT, n>(lines, quads + t).add_to(high + t * kPanel, scale, x_scale + t);
    } else {
      const int t = entry % MT;
      dots_of_group<kBits, kLines, MT, 1>(lines, quads + t).add_to(high + t * kPanel, scale, x_scale + t);
    }
  }
}

// The sums in floats stay in memory from group to group: registers are for those in integers.
template <Format f, int MT>
inline void low_parts(const Strip& w, const Activations& x, size_t at, int groups, float* low, bool first) {
  constexpr Layout l = layout(f);
  constexpr int n = MT < kAtOnce ? MT : kAtOnce, lines = in_pairs(l.bits) ? 2 * l.lines() : l.lines();
  for (int g = 0; g < groups; g++, at += MT, first = false) {
    for (int t = 0; t < MT; t += n) {
      const Sums<n> sums = dots_of_group<l.bits, l.lines(), MT, n>(w.bytes + g * lines * 64, x.low + at * lines + t);
      sums.template add_to<f>(low + t * kPanel, first, load(w.scale + g * kPanel), load(w.min + g * kPanel), x.scale + at + t,
                              x.sum + at + t);
    }
  }
}

}  // namespace
}  // namespace ventoux
