// Block formats . quantized activations: few tokens straight from a panel, or tiles of tokens from an unpacked strip.
#pragma once

#include <type_traits>

#include "nibbles.h"

namespace ventoux {
namespace {

constexpr int kStripGroups = 32;  // of a panel that go together

template <int MT>
constexpr unsigned kAll = (1u << MT) - 1;  // all of a tile's tokens have a high part

// What the high parts of a tile give in kStripGroups groups: a vector for each token and group that has one, and one of zeros
// for all others, which stand at place 0.
template <int MT>
struct High {
  uint16_t place[kStripGroups][MT];
  alignas(64) int32_t sums[(1 + kStripGroups * MT) * kPanel];
  int count;

  void clear() {
    store_ints(sums, zero_ints());
    count = 1;
  }
  // Group g of them, which is `at` of the activations.
  template <Format f, class Lines>
  void add(Lines lines, const Activations& x, size_t at, int g) {
    if (x.wide[at] == kAll<MT>) {
      constexpr int n = MT < kAtOnce ? MT : kAtOnce;
      for (int t = 0; t < MT; t++) place[g][t] = uint16_t(count + t);
      for (int t = 0; t < MT; t += n, count += n) high_of_group<f, MT, n>(lines, x, at, t).store_to(sums + count * kPanel);
      return;
    }
    for (int t = 0; t < MT; t++) place[g][t] = 0;
    for (unsigned wide = x.wide[at]; wide; wide &= wide - 1, count++) {
      const int t = __builtin_ctz(wide);
      place[g][t] = uint16_t(count);
      high_of_group<f, MT, 1>(lines, x, at, t).store_to(sums + count * kPanel);
    }
  }
};

// The groups in which some tokens have a high part, and those in which all have one where they are wanted, too. Apart and first, so
// that the loop over low parts has no call, whose registers it would give up.
template <Format f, int MT, bool kAlsoAll, class LinesOf>
[[gnu::noinline]] void high_parts(LinesOf lines_of, const Activations& x, size_t at, int groups, High<MT>& high) {
  high.clear();
  for (int g = 0; g < groups; g++, at += MT)
    if (x.wide[at] && (kAlsoAll || x.wide[at] != kAll<MT>)) high.template add<f>(lines_of(g), x, at, g);
}

// --- tiles straight from a panel ---

// to[MT][16] = a panel . a tile of tokens, of which `at` is the first group's place. (No helper that takes the totals by
// reference: GCC would keep them in memory. And no inlining: among other tiles those of 5 and 8 bits ran out of registers, at 0.7 of the speed on AVX2.)
template <Format f, int MT>
[[gnu::noinline]] void panel_tile(const uint8_t* panel, const Activations& x, size_t at, float* to) {
  const int groups = x.columns / layout(f).group;
  Totals<MT> totals;
  if constexpr (kInPairs) {
    for (int g = 0; g < groups; g++, at += MT) {
      const Group group = group_at<f>(panel, g);
      fetch_ahead<f>(group.quants, ahead_of(MT));
      const Sums<MT> sums = low_of_group<f, MT, MT>(PackedPairs<f>{group.quants}, x, at, 0);
      totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
    }
  } else {
    High<MT> high;
    for (int g0 = 0; g0 < groups; g0 += kStripGroups) {
      const int end = g0 + kStripGroups < groups ? g0 + kStripGroups : groups;
      if constexpr (MT > 1) high_parts<f, MT, false>([=](int g) { return Packed<f>{group_at<f>(panel, g0 + g).quants}; }, x, at, end - g0, high);
      // Runs of groups in which none, all or some tokens have a high part: a loop for each.
      for (int g = g0; g < end;) {
        for (; g < end && !x.wide[at]; g++, at += MT) {
          const Group group = group_at<f>(panel, g);
          fetch_ahead<f>(group.quants, ahead_of(MT));
          const Sums<MT> sums = low_of_group<f, MT, MT>(Packed<f>{group.quants}, x, at, 0);
          totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
        }
        for (; g < end && x.wide[at] == kAll<MT>; g++, at += MT) {
          const Group group = group_at<f>(panel, g);
          fetch_ahead<f>(group.quants, ahead_of(MT));
          const Sums<MT> sums = both_of_group<f, MT, MT>(Packed<f>{group.quants}, x, at, 0);
          totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
        }
        for (; g < end && x.wide[at] && x.wide[at] != kAll<MT>; g++, at += MT) {
          const Group group = group_at<f>(panel, g);
          fetch_ahead<f>(group.quants, ahead_of(MT));
          Sums<MT> sums = start_of_group<f, MT>(x, at, 0);
          sums.add_256_of(high.sums, high.place[g - g0]);
          sums = add_low<f, MT, MT>(sums, Packed<f>{group.quants}, x, at, 0);
          totals.template add<f>(sums, group.scale, group.min, x.scale + at, x.sum + at);
        }
      }
    }
  }
  totals.store_to(to);
}

// --- a strip ---

// 16 KiB of unpacked bytes: leaves half of L1 to a tile of activations.
struct Strip {
  alignas(64) uint8_t bytes[kStripGroups * 8 * 64];
  alignas(64) float scale[kStripGroups * kPanel], min[kStripGroups * kPanel];
};
// Whether a panel is unpacked to strips. To 16 bits weights of 4 are unpacked in registers: from strips they took up to 1.2 times as long.
template <Format f>
constexpr bool has_strips = !kInPairs || layout(f).bits != 4;

// Groups of a strip; 16 bits take twice the room.
constexpr int kGroups = kInPairs ? kStripGroups / 2 : kStripGroups;

template <Format f>
inline Unpacked<kInPairs> lines_of(const Strip& strip, int g) {
  return {strip.bytes + g * kWords<f> * 64};
}

// Groups g0 .. g0 + n of a panel.
template <Format f>
inline void unpack_strip(const uint8_t* panel, int g0, int n, Strip& to) {
  using Lines = std::conditional_t<kInPairs, PackedPairs<f>, Packed<f>>;
  for (int g = 0; g < n; g++) {
    const Group group = group_at<f>(panel, g0 + g);
    fetch_ahead<f>(group.quants);
    store(to.scale + g * kPanel, group.scale);
    if constexpr (kMin<f>) store(to.min + g * kPanel, group.min);
    const Lines lines{group.quants};
#pragma GCC unroll 16
    for (int j = 0; j < kWords<f>; j++) store_bytes(to.bytes + (g * kWords<f> + j) * 64, lines(j));
  }
}

// Groups of a strip . a tile of tokens, of which `at` is the first group's place, added to their totals.
template <Format f, int MT>
inline void quantized_tile(const Strip& w, const Activations& x, size_t at, int groups, float* total, bool first) {
  constexpr int n = MT < kAtOnce ? MT : kAtOnce;
  High<MT> high;
  if constexpr (!kInPairs) high_parts<f, MT, true>([&](int g) { return lines_of<f>(w, g); }, x, at, groups, high);
  // Totals stay in memory from group to group: registers are for sums in integers.
  for (int g = 0; g < groups; g++, at += MT, first = false)
    for (int t = 0; t < MT; t += n) {
      Sums<n> sums = low_of_group<f, MT, n>(lines_of<f>(w, g), x, at, t);
      if constexpr (!kInPairs)
        if (x.wide[at]) sums.add_256_of(high.sums, high.place[g] + t);
      sums.template add_to<f>(total + t * kPanel, first, w.scale + g * kPanel, w.min + g * kPanel, x.scale + at + t, x.sum + at + t);
    }
}

}  // namespace
}  // namespace ventoux
