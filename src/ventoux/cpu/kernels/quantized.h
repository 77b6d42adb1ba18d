// Block formats . quantized activations: one token straight from a panel, or a tile of tokens from an unpacked strip.
//
// What low and high parts of a group give is added in integers, before anything is rounded. High parts are multiplied for
// the tokens that have some: where a group has none it costs a test.
#pragma once

#include "unpack.h"

namespace ventoux {
namespace {

constexpr int kStripGroups = 32, kStripLines = kStripGroups * 8;  // 16 KiB of unpacked bytes: leaves half of L1 to a tile of activations

struct Strip {
  alignas(64) uint8_t bytes[kStripLines * 64];
  alignas(64) float scale[kStripGroups * kPanel], min[kStripGroups * kPanel];
};

inline Form form(Format f) {
  const Layout l = layout(f);
  return l.bits ? Form{l.group, in_pairs(l.bits), offset(f)} : Form{0, false, 0};
}

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

template <Format f>
inline Floats add_group(Floats sum, Ints dot, Floats scale, Floats min, float x_scale, const float* x_sum) {
  sum = fma(to_floats(dot), mul(scale, splat(x_scale)), sum);
  return kMin<f> ? fnma(min, splat(*x_sum), sum) : sum;
}

// What the integer sum of a group begins with.
template <Format f>
inline Ints start_of(const int32_t* start) {
  return offset(f) ? splat_ints(*start) : zero_ints();
}

// --- one token ---

template <Format f>
inline Ints dot_of_group(const uint8_t* quants, const int32_t* x, Ints sum) {
  constexpr Layout l = layout(f);
  if constexpr (in_pairs(l.bits)) {
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) {
      const Bytes line = line_at<f>(quants, j);
      sum = Straight<l.bits>::add(sum, Straight<l.bits>::even(line), x[2 * j]);
      sum = Straight<l.bits>::add(sum, Straight<l.bits>::odd(line), x[2 * j + 1]);
    }
  } else if constexpr (straight(l.bits)) {
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) sum = Straight<l.bits>::add(sum, line_at<f>(quants, j), x[j]);
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
  Floats sum = splat(0);
  for (int g = 0; g < groups; g++) {
    for (; g < groups && (in_pairs(l.bits) || !x.wide[g]); g++) {  // a loop of its own: most groups, and nothing but low parts
      const Group group = group_at<f>(panel, g);
      fetch_ahead<f>(group.quants);
      const Ints dot = dot_of_group<f>(group.quants, x.low + size_t(g) * words, start_of<f>(x.start + g));
      sum = add_group<f>(sum, dot, group.scale, group.min, x.scale[g], x.sum + g);
    }
    if (g == groups) break;
    if constexpr (!in_pairs(l.bits)) {
      const Group group = group_at<f>(panel, g);
      fetch_ahead<f>(group.quants);
      const Ints low = dot_of_group<f>(group.quants, x.low + size_t(g) * words, start_of<f>(x.start + g));
      const Ints dot = add_256(low, dot_of_group<f>(group.quants, x.high + size_t(g) * words, zero_ints()));
      sum = add_group<f>(sum, dot, group.scale, group.min, x.scale[g], x.sum + g);
    }
  }
  return sum;
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
    if constexpr (kMin<f>) store(to.min + g * kPanel, group.min);
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) {
      const Bytes line = line_at<f>(group.quants, j);
      const int at = g * l.lines() + j;
      if constexpr (in_pairs(l.bits)) {
        store_bytes(to.bytes + 2 * at * 64, Straight<l.bits>::even(line));
        store_bytes(to.bytes + (2 * at + 1) * 64, Straight<l.bits>::odd(line));
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
  Ints sum;
  Sums<n - 1> rest;
  // What the tokens' sums begin with; zeros where `start` is null.
  explicit Sums(const int32_t* start) : sum(start ? splat_ints(*start) : zero_ints()), rest(start ? start + 1 : nullptr) {}
  template <int kBits>
  void add(const Dots<kBits, n>& dots) {
    sum = dots.dot.add_to(sum);
    rest.add(dots.rest);
  }
  template <int kBits>
  void add_line(Bytes line, const int32_t* words) {
    sum = Straight<kBits>::add(sum, line, *words);
    rest.template add_line<kBits>(line, words + 1);
  }
  void store_to(int32_t* to) const {
    store_ints(to, sum);
    rest.store_to(to + kPanel);
  }
  // What stands at each token's place in `high`.
  void add_high(const int32_t* high, const uint16_t* place) {
    sum = add_256(sum, load_ints(high + *place * kPanel));
    rest.add_high(high, place + 1);
  }
  // Scaled, to totals in memory: the tokens' own scales and sums stand one after the other.
  template <Format f>
  void add_to(float* total, bool first, Floats scale, Floats min, const float* x_scale, const float* x_sum) const {
    store(total, add_group<f>(first ? splat(0) : load(total), sum, scale, min, *x_scale, x_sum));
    rest.template add_to<f>(total + kPanel, first, scale, min, x_scale + 1, x_sum + 1);
  }
};
template <>
struct Sums<0> {
  explicit Sums(const int32_t*) {}
  template <int kBits>
  void add(const Dots<kBits, 0>&) {}
  template <int kBits>
  void add_line(Bytes, const int32_t*) {}
  void store_to(int32_t*) const {}
  void add_high(const int32_t*, const uint16_t*) {}
  template <Format f>
  void add_to(float*, bool, Floats, Floats, const float*, const float*) const {}
};

// What n tokens have of all groups so far, in registers.
template <int n>
struct Totals {
  Floats total;
  Totals<n - 1> rest;
  explicit Totals(const float* from) : total(from ? load(from) : splat(0)), rest(from ? from + kPanel : nullptr) {}
  void store_to(float* to) const {
    store(to, total);
    rest.store_to(to + kPanel);
  }
  // The tokens' own scales and sums stand one after the other.
  template <Format f>
  void add(const Sums<n>& sums, Floats scale, Floats min, const float* x_scale, const float* x_sum) {
    total = add_group<f>(total, sums.sum, scale, min, *x_scale, x_sum);
    rest.template add<f>(sums.rest, scale, min, x_scale + 1, x_sum + 1);
  }
};
template <>
struct Totals<0> {
  explicit Totals(const float*) {}
  void store_to(float*) const {}
  template <Format f>
  void add(const Sums<0>&, Floats, Floats, const float*, const float*) {}
};

// One group of unpacked lines . n tokens of a tile of MT, whose sums begin with what is at `start`, or zero.
template <int kBits, int kLines, int MT, int n>
inline Sums<n> dots_of_group(const uint8_t* lines, const int32_t* x, const int32_t* start) {
  Sums<n> sums(start);
  if constexpr (straight(kBits)) {
    constexpr int words = in_pairs(kBits) ? 2 * kLines : kLines;
#pragma GCC unroll 16
    for (int j = 0; j < words; j++) sums.template add_line<kBits>(load_bytes(lines + j * 64), x + j * MT);
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

// What the high parts of a tile give in the groups of a strip: a vector for each token and group that has one, and one of
// zeros for all others, which stand at place 0.
template <int MT>
struct High {
  uint16_t place[kStripGroups][MT];
  alignas(64) int32_t sums[(1 + kStripGroups * MT) * kPanel];
};

// Apart and first, so that the low parts' loop has no call, whose registers it would give up.
template <int kBits, int kLines, int MT>
[[gnu::noinline]] void high_parts(const Strip& w, const Activations& x, size_t at, int groups, High<MT>& high) {
  constexpr int n = MT < kAtOnce ? MT : kAtOnce;
  store_ints(high.sums, zero_ints());
  int count = 1;
  for (int g = 0; g < groups; g++, at += MT) {
    unsigned wide = x.wide[at];
    if (!wide) continue;
    const uint8_t* lines = w.bytes + g * kLines * 64;
    const int32_t* quads = x.high + at * kLines;
    if (wide == (1u << MT) - 1) {
      for (int t = 0; t < MT; t++) high.place[g][t] = uint16_t(count + t);
      for (int t = 0; t < MT; t += n, count += n)
        dots_of_group<kBits, kLines, MT, n>(lines, quads + t, nullptr).store_to(high.sums + count * kPanel);
      continue;
    }
    for (int t = 0; t < MT; t++) high.place[g][t] = 0;
    for (; wide; wide &= wide - 1, count++) {
      const int t = __builtin_ctz(wide);
      high.place[g][t] = uint16_t(count);
      dots_of_group<kBits, kLines, MT, 1>(lines, quads + t, nullptr).store_to(high.sums + count * kPanel);
    }
  }
}

// Groups of a strip . a tile of tokens, of which `at` is the first group's place, added to their sums in `partial`.
template <Format f, int MT>
inline void quantized_tile(const Strip& w, const Activations& x, size_t at, int groups, float* partial, bool first) {
  constexpr Layout l = layout(f);
  constexpr bool pairs = in_pairs(l.bits);
  constexpr int n = MT < kAtOnce ? MT : kAtOnce, lines = pairs ? 2 * l.lines() : l.lines();
  High<pairs ? 1 : MT> high;
  if constexpr (!pairs) high_parts<l.bits, l.lines(), MT>(w, x, at, groups, high);
  const auto dots = [&](int g, int t, size_t here) {
    Sums<n> sums = dots_of_group<l.bits, l.lines(), MT, n>(w.bytes + g * lines * 64, x.low + here * lines + t,
                                                           offset(f) ? x.start + here + t : nullptr);
    if constexpr (!pairs)
      if (x.wide[here]) sums.add_high(high.sums, high.place[g] + t);
    return sums;
  };
  const auto scale = [&](int g) { return load(w.scale + g * kPanel); };
  const auto min = [&](int g) { return kMin<f> ? load(w.min + g * kPanel) : splat(0); };
  if constexpr (kTotalsFit) {
    static_assert(n == MT, "a tile's totals");
    Totals<n> totals(first ? nullptr : partial);
    for (int g = 0; g < groups; g++, at += MT)
      totals.template add<f>(dots(g, 0, at), scale(g), min(g), x.scale + at, x.sum + at);
    totals.store_to(partial);
  } else {
    // Totals stay in memory from group to group: registers are for sums in integers.
    for (int g = 0; g < groups; g++, at += MT, first = false)
      for (int t = 0; t < MT; t += n)
        dots(g, t, at).template add_to<f>(partial + t * kPanel, first, scale(g), min(g), x.scale + at + t, x.sum + at + t);
  }
}

}  // namespace
}  // namespace ventoux
