// Products of formats with super-blocks (Q4_K, Q5_K, Q6_K), whose groups have whole scales: a weight is
// d * scale * (quant - offset) - dmin * min, all whole numbers but the super-block's own d and dmin.
//
// So activations share a scale in all 256 columns, too, and what is multiplied are 16-bit integers, scale * (quant - offset) and the
// activation: floats come once for a super-block, not once for each group, and no group needs a second product because it stands
// out. 14 bits of an activation are what sums in 32 bits have room for (kSuperLimit): emulated on a trained model, a tenth of the
// divergence of 8 and 16 bits. Minima are multiplied with a group's sum of activations, in 16 bits too, and in a unit of 1, 2, 4 or 8
// that makes all sums of the super-block fit: mostly 1 (an eighth of each sum, rounded, made ten times the error of all the rest).
//
// Many tokens are multiplied as crossed.h says, with 16 bits for 8: (v + y) (w + x) of columns whose weights are v, w. Sums may
// overflow meanwhile: what they end as does not, and integers find back.
#pragma once

#include "crossed.h"

namespace ventoux {
namespace {

template <Format f>
constexpr bool has_superblocks = kHasSuperblocks && layout(f).per_block > 1;

// A token's words of a super-block, two int16 each: of columns 0 and 2, 1 and 3 of each four, then the sums of groups of 32
// columns, 0 and 1, 2 and 3, ..., in their unit.
constexpr int kColumnWords = kSuperBlock / 2, kMinWords = kSuperBlock / 32 / 2;
static_assert(kSuperWords == kColumnWords + kMinWords, "kernels.h counts otherwise");

constexpr int kSuperLimit = 8191;  // the largest magnitude of an activation

// The largest magnitude of scale * (quant - offset), and columns whose sum of products is below 2^31.
template <Format f>
constexpr int kMost = f == Format::Q4_K ? 63 * 15 : f == Format::Q5_K ? 63 * 31 : 128 * 32;
template <Format f>
constexpr int kPart = f == Format::Q4_K ? 256 : f == Format::Q5_K ? 128 : 64;
constexpr int kSmallestPart = 64;
static_assert(kSuperStarts == kSuperBlock / kSmallestPart, "kernels.h counts otherwise");

// One panel's super-block.
template <Format f>
struct SuperBlock {
  static_assert(int64_t(kMost<f>) * kSuperLimit * kPart<f> < int64_t(1) << 31, "sums would overflow");
  static constexpr Layout l = layout(f);
  const uint8_t* bytes;
  const uint8_t* group(int g) const { return bytes + l.block_header + g * l.group_bytes(); }
  // Of groups, as integers: each row's, and the same in both halves.
  Ints scale(int g) const { return f == Format::Q6_K ? Shorts<f>::load_i8(group(g)) : Shorts<f>::load_u8(group(g)); }
  Bytes scales(int g) const { return Shorts<f>::both(scale(g), scale(g)); }
  // Of groups 2i and 2i + 1.
  Bytes mins(int i) const { return Shorts<f>::both(Shorts<f>::load_u8(group(2 * i) + 16), Shorts<f>::load_u8(group(2 * i + 1) + 16)); }
  // Of line j of group g the quants of columns 0 and 2, or 1 and 3, less their offset.
  Bytes quants(int g, int j, bool odd) const {
    const Bytes line = line_at<f>(group(g) + l.group_header, j), both = odd ? Shorts<f>::odd(line) : Shorts<f>::even(line);
    return offset(f) ? Shorts<f>::add(both, Shorts<f>::splat(-offset(f))) : both;
  }
  Floats d() const { return load_half((const uint16_t*)bytes); }
  Floats dmin() const { return kMin<f> ? load_half((const uint16_t*)(bytes + 32)) : splat(0); }
};

// A part's sum in floats, and that of the minima: every kernel adds them so.
inline Floats add_scaled(Floats total, Ints sum, Floats d, const float* x_scale) {
  return fma(mul(to_floats(sum), d), splat(*x_scale), total);
}
inline Floats subtract_scaled(Floats total, Ints min_sum, Floats dmin, const float* x_unit) {
  return fnma(mul(to_floats(min_sum), dmin), splat(*x_unit), total);
}
template <Format f>
inline Floats add_part(Floats total, Ints sum, Ints min_sum, Floats d, Floats dmin, const float* x_scale, const float* x_unit) {
  total = add_scaled(total, sum, d, x_scale);
  return kMin<f> ? subtract_scaled(total, min_sum, dmin, x_unit) : total;
}

// --- few tokens, a panel as it lies ---

// A part of n tokens, added to their totals.
template <Format f, int n>
inline Totals<n> add_parts(Totals<n> totals, const Sums<n>& sums, const Sums<n>& mins, Floats d, Floats dmin, const float* x_scale,
                           const float* x_unit) {
  totals.total = add_part<f>(totals.total, sums.sum, mins.sum, d, dmin, x_scale, x_unit);
  if constexpr (n > 1) totals.rest = add_parts<f>(totals.rest, sums.rest, mins.rest, d, dmin, x_scale + 1, x_unit + 1);
  return totals;
}

// Lines j .. j + 3 of group g, scaled, . n tokens' words, added to their sums. (GCC does not unroll a loop over eight for all n.)
template <Format f, int n, int j>
inline Sums<n> add_four(Sums<n> sums, SuperBlock<f> block, int g, Bytes scales, const int32_t* words) {
#pragma GCC unroll 4
  for (int i = j; i < j + 4; i++) {
    sums.template add_line<16>(Shorts<f>::mul(block.quants(g, i, false), scales), words + 2 * i * n);
    sums.template add_line<16>(Shorts<f>::mul(block.quants(g, i, true), scales), words + (2 * i + 1) * n);
  }
  return sums;
}

// Group g of a super-block . n tokens' words, added to their sums: of few tokens the sums are scaled, not the weights.
template <Format f, int n>
inline Sums<n> add_group_of(Sums<n> sums, SuperBlock<f> block, int g, const int32_t* words) {
  constexpr Layout l = layout(f);
  if constexpr (n > kFewSums) {
    const Bytes scales = block.scales(g);
    sums = add_four<f, n, 0>(sums, block, g, scales, words);
    if constexpr (l.lines() == 8) sums = add_four<f, n, 4>(sums, block, g, scales, words);
    return sums;
  }
  Sums<n> even, odd;
#pragma GCC unroll 8
  for (int j = 0; j < l.lines(); j++) {
    even.template add_line<16>(block.quants(g, j, false), words + 2 * j * n);
    odd.template add_line<16>(block.quants(g, j, true), words + (2 * j + 1) * n);
  }
  even.add(odd);
  sums.template add_times<f>(even, block.scale(g));
  return sums;
}

// to[n][16] = a panel . n tokens, of which t is the first. (Not inlined, as panel_tile.)
template <Format f, int n>
[[gnu::noinline]] void superblock_tile(const uint8_t* panel, const Activations& x, int t, float* to) {
  constexpr Layout l = layout(f);
  constexpr int groups = kPart<f> / l.group;  // of a part
  const int blocks = x.columns / kSuperBlock;
  const int32_t* words = x.low + size_t(t) * size_t(blocks) * kSuperWords;
  const float *scale = x.scale + size_t(t) * size_t(blocks), *unit = x.sum + size_t(t) * size_t(blocks);
  Totals<n> totals;
  for (int b = 0; b < blocks; b++, panel += l.block_bytes(), words += kSuperWords * n, scale += n, unit += n) {
    const SuperBlock<f> block{panel};
    const Floats d = block.d(), dmin = block.dmin();
    for (int first = 0; first < l.per_block; first += groups) {
      Sums<n> sums, mins;
      for (int g = first; g < first + groups; g++) {
        fetch_ahead<f>(block.group(g), ahead_of(n));
        sums = add_group_of<f, n>(sums, block, g, words + g * l.group / 2 * n);
      }
      if constexpr (kMin<f>)
        for (int g = first; g < first + groups; g += 2) mins.template add_line<16>(block.mins(g / 2), words + (kColumnWords + g / 2) * n);
      totals = add_parts<f>(totals, sums, mins, d, dmin, scale, unit);
    }
  }
  totals.store_to(to);
}

// --- many tokens ---

// A panel's super-block: lines of columns 0 and 2, 1 and 3 of each four, scaled; the weights' part of each part's sum; minima.
struct SuperStrip {
  alignas(64) uint8_t bytes[kColumnWords * 64];
  alignas(64) uint8_t mins[kMinWords * 64];
  alignas(64) int32_t start[kSuperStarts * kPanel];
  alignas(64) float d[kPanel], dmin[kPanel];
};

// A super-block; so many bytes behind it is what will be unpacked next.
template <Format f>
inline void unpack_superblock(const uint8_t* bytes, ptrdiff_t next, SuperStrip& to) {
  using S = Shorts<f>;
  constexpr Layout l = layout(f);
  const SuperBlock<f> block{bytes};
  store(to.d, block.d());
  store(to.dmin, block.dmin());
  uint8_t* out = to.bytes;
  for (int part = 0; part < kSuperBlock / kPart<f>; part++) {
    Ints sum = zero_ints();
    for (int i = 0; i < kPart<f> / l.group; i++) {
      const int g = part * kPart<f> / l.group + i;
      const Bytes scales = block.scales(g);
      fetch_ahead<f>(block.group(g), next);
#pragma GCC unroll 8
      for (int j = 0; j < l.lines(); j++, out += 128) {
        const Bytes even = S::mul(block.quants(g, j, false), scales), odd = S::mul(block.quants(g, j, true), scales);
        store_bytes(out, even);
        store_bytes(out + 64, odd);
        if constexpr (kHasCrossed) sum = S::add_products(sum, even, odd);
      }
    }
    if constexpr (kHasCrossed) store_ints(to.start + part * kPanel, S::minus(sum));
  }
  if constexpr (kMin<f>)
    for (int i = 0; i < kMinWords; i++) store_bytes(to.mins + i * 64, block.mins(i));
}

// --- many tokens, one panel ---

// Words [first, last) of a strip . those of a tile of tokens.
template <int MT>
inline Sums<MT> sums_of(const SuperStrip& w, const int32_t* words, int first, int last) {
  Sums<MT> sums;
#pragma GCC unroll 4
  for (int j = first; j < last; j++) sums.template add_line<16>(load_bytes(w.bytes + j * 64), words + j * MT);
  return sums;
}
template <int MT>
inline Sums<MT> min_sums_of(const SuperStrip& w, const int32_t* words, int first, int last) {
  Sums<MT> sums;
  for (int i = first; i < last; i++) sums.template add_line<16>(load_bytes(w.mins + i * 64), words + (kColumnWords + i) * MT);
  return sums;
}
template <int n>
inline void add_sums_to(float* to, bool none, const Sums<n>& sums, const float* d, const float* x_scale) {
  store(to, add_scaled(none ? splat(0) : load(to), sums.sum, load(d), x_scale));
  if constexpr (n > 1) add_sums_to<n - 1>(to + kPanel, none, sums.rest, d, x_scale + 1);
}
template <int n>
inline void subtract_from(float* to, const Sums<n>& mins, const float* dmin, const float* x_unit) {
  store(to, subtract_scaled(load(to), mins.sum, load(dmin), x_unit));
  if constexpr (n > 1) subtract_from<n - 1>(to + kPanel, mins.rest, dmin, x_unit + 1);
}

// A super-block . a tile of tokens, whose place in the activations is `at`, added to their totals. (Products and minima one after the
// other: for the sums of both there are too few registers.)
template <Format f, int MT>
inline void superblock_lines(const SuperStrip& w, const Activations& x, size_t at, float* to, bool none) {
  constexpr int parts = kSuperBlock / kPart<f>, width = kPart<f> / 2, min_width = kMinWords / parts;
  const int32_t* words = x.low + at * kSuperWords;
  for (int part = 0; part < parts; part++, none = false) {
    add_sums_to<MT>(to, none, sums_of<MT>(w, words, part * width, part * width + width), w.d, x.scale + at);
    if constexpr (kMin<f>)
      subtract_from<MT>(to, min_sums_of<MT>(w, words, part * min_width, part * min_width + min_width), w.dmin, x.sum + at);
  }
}

// --- many tokens, two panels ---

// A part's sums in two panels, scaled, added to totals in memory; with it words min0 .. min1 of the activations' sums, each for n of
// a tile of MT tokens.
template <Format f, int MT, int n>
inline void add_pairs_to(float* to, bool none, const PairSums<Shorts<f>, n>& sums, const SuperStrip* w, int min0, int min1,
                         const int32_t* min_words, const float* x_scale, const float* x_unit) {
  using S = Shorts<f>;
  Ints one = zero_ints(), other = zero_ints();
  if constexpr (kMin<f>)
    for (int i = min0; i < min1; i++) {
      const Bytes x = S::splat_word(min_words[i * MT]);
      one = S::add_products(one, load_bytes(w[0].mins + i * 64), x);
      other = S::add_products(other, load_bytes(w[1].mins + i * 64), x);
    }
  const Floats before = none ? splat(0) : load(to), other_before = none ? splat(0) : load(to + kPanel);
  store(to, add_part<f>(before, sums.first, one, load(w[0].d), load(w[0].dmin), x_scale, x_unit));
  store(to + kPanel, add_part<f>(other_before, sums.second, other, load(w[1].d), load(w[1].dmin), x_scale, x_unit));
  if constexpr (n > 1)
    add_pairs_to<f, MT>(to + 2 * kPanel, none, sums.rest, w, min0, min1, min_words + 1, x_scale + 1, x_unit + 1);
}

// Two panels' super-block . a tile of tokens, whose place in the activations is `at`, added to their totals.
template <Format f, int MT>
inline void superblock_pairs(const SuperStrip* w, const Activations& x, size_t at, float* to, bool none) {
  constexpr int parts = kSuperBlock / kPart<f>, words_of_part = kPart<f> / 2, starts = kSuperStarts / parts, mins = kMinWords / parts;
  const int32_t *words = x.low + at * kSuperWords, *min_words = words + kColumnWords * MT;
  const int32_t* next = words + size_t(MT) * size_t(x.columns / kSuperBlock) * kSuperWords;  // of the next tile, from L3
  for (int part = 0; part < parts; part++, none = false) {
    int32_t start[MT];
    for (int t = 0; t < MT; t++) {
      uint32_t sum = 0;
      for (int i = 0; i < starts; i++) sum += uint32_t(x.start[at * kSuperStarts + size_t(part * starts + i) * MT + t]);
      start[t] = int32_t(sum);
    }
    PairSums<Shorts<f>, MT> sums(load_ints(w[0].start + part * kPanel), load_ints(w[1].start + part * kPanel), start);
    for (int j = part * words_of_part; j < (part + 1) * words_of_part; j += 2) {
      const uint8_t *one = w[0].bytes + j * 64, *other = w[1].bytes + j * 64;
      __builtin_prefetch(next + j * MT);
      sums.add(load_bytes(one), load_bytes(one + 64), load_bytes(other), load_bytes(other + 64), words + j * MT, MT);
    }
    add_pairs_to<f, MT>(to, none, sums, w, part * mins, (part + 1) * mins, min_words, x.scale + at, x.sum + at);
  }
}

// How two_panels.h multiplies them: a strip is one super-block.
template <Format f>
struct CrossedShorts {
  using Strip = SuperStrip;
  static constexpr int kGroup = kSuperBlock, kGroups = 1;
  static void unpack(const uint8_t* panel, int g0, int, ptrdiff_t next, Strip& to) {
    unpack_superblock<f>(panel + size_t(g0) * layout(f).block_bytes(), next, to);
  }
  template <int MT>
  static void tile(const Strip* w, const Activations& x, size_t at, int, float* to, bool first) {
    superblock_pairs<f, MT>(w, x, at, to, first);
  }
};

}  // namespace
}  // namespace ventoux
