// Sums of one group's products, for a few tokens at once: 16 rows of a panel each, in integers and then in floats.
//
// What low and high parts of a group give is added in integers, before anything is rounded. High parts are multiplied for
// the tokens that have some: where a group has none it costs a test.
#pragma once

#include "unpack.h"

namespace ventoux {
namespace {

// Which weights nibbles.h multiplies.
constexpr bool in_nibbles(Format f) { return kHasNibbles && layout(f).bits == 4 && layout(f).per_block == 1; }

inline Form form(Format f, Rounding rounding) {
  const Layout l = layout(f);
  if (rounding == Rounding::None || (f == Format::BF16 && rounding == Rounding::Int16)) return Form{};
  if (!l.bits) return Form{0, f == Format::BF16 && multiplies_bf16(), 0, false, 0};
  const bool mixed = rounding == Rounding::Mixed, crossed = kHasCrossed && mixed && adds_beside();
  // On Intel's AVX-512, where nothing is crossed, groups may be the faster way, by what its ports allow: not measured.
  if (kHasSuperblocks && mixed && l.per_block > 1 && (crossed || !kHasCrossed)) return Form{kSuperBlock, true, 0, crossed, 0};
  if (in_nibbles(f) && mixed) return Form{l.group, false, offset(f), crossed, kNibbleSteps};
  return Form{l.group, kInPairs, offset(f), false, 0, !mixed || kInPairs};
}

// Words of a token's activations in a group, each multiplied with one line: of four columns, or of two in pairs.
template <Format f>
constexpr int kWords = layout(f).lines() * (kInPairs ? 2 : 1);

// Lines of a panel's group, unpacked at each use.
template <Format f>
struct Packed {
  static constexpr bool kPairs = false;
  const uint8_t* quants;
  Bytes operator()(int j) const { return line_at<f>(quants, j); }
};
// The same in pairs, two for each line.
template <Format f>
struct PackedPairs {
  static constexpr bool kPairs = true;
  const uint8_t* quants;
  Bytes operator()(int j) const {
    constexpr int bits = layout(f).bits, half = layout(f).lines() / 2;
    if constexpr (bits == 4) return Straight<bits>::nibbles(load_bytes(quants + 64 * (j / 2 % half)), (j / 2 < half ? 0 : 4) + j % 2 * 8);
    else return j % 2 ? Straight<bits>::odd(line_at<f>(quants, j / 2)) : Straight<bits>::even(line_at<f>(quants, j / 2));
  }
};

// Lines that have been unpacked.
template <bool pairs>
struct Unpacked {
  static constexpr bool kPairs = pairs;
  const uint8_t* bytes;
  Bytes operator()(int j) const { return load_bytes(bytes + j * 64); }
};

// Sums in 16 bits for n tokens, one by one and not as an array: of an array GCC keeps half in memory, and is half as fast.
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

template <Format f>
inline Floats add_group(Floats total, Ints sum, Floats scale, Floats min, float x_scale, const float* x_sum) {
  total = fma(to_floats(sum), mul(scale, splat(x_scale)), total);
  return kMin<f> ? fnma(min, splat(*x_sum), total) : total;
}

// Of so few tokens a product would wait for the one before: their sums are made in parts.
constexpr int kFewSums = 2;

// Sums in 32 bits.
template <int n>
struct Sums {
  Ints sum = zero_ints();
  Sums<n - 1> rest;
  Sums() {}  // not = default: Sums() would fill all of it with zeros before it makes them, and in memory
  // The tokens' own starts stand one after the other.
  explicit Sums(const int32_t* start) : sum(splat_ints(*start)), rest(start + 1) {}
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
  void add(const Sums& that) {
    sum = add_ints(sum, that.sum);
    rest.add(that.rest);
  }
  // Those, each row of them so many times.
  template <Format f>
  void add_times(const Sums& that, Ints times) {
    sum = add_ints(sum, Shorts<f>::mul(that.sum, times));
    rest.template add_times<f>(that.rest, times);
  }
  // Whole bytes of two weights of 4 bits: nibbles.h.
  template <Format f>
  void add_bytes(Bytes line, const int32_t* words) {
    sum = Nibbles<f>::add(sum, line, *words);
    rest.template add_bytes<f>(line, words + 1);
  }
  // These, 2^bits times what they were, and those.
  template <int bits>
  void shift_and_add(const Sums& that) {
    sum = add_shifted<bits>(that.sum, sum);
    rest.template shift_and_add<bits>(that.rest);
  }
  // 256 times what stands at each token's place in `high`.
  void add_256_of(const int32_t* high, const uint16_t* place) {
    sum = add_shifted<8>(sum, load_ints(high + *place * kPanel));
    rest.add_256_of(high, place + 1);
  }
  void store_to(int32_t* to) const {
    store_ints(to, sum);
    rest.store_to(to + kPanel);
  }
  // Scaled, to totals in memory: the tokens' own scales and sums stand one after the other.
  template <Format f>
  void add_to(float* total, bool first, const float* scale, const float* min, const float* x_scale, const float* x_sum) const {
    store(total, add_group<f>(first ? splat(0) : load(total), sum, load(scale), kMin<f> ? load(min) : splat(0), *x_scale, x_sum));
    rest.template add_to<f>(total + kPanel, first, scale, min, x_scale + 1, x_sum + 1);
  }
};
template <>
struct Sums<0> {
  Sums() {}
  explicit Sums(const int32_t*) {}
  template <int kBits>
  void add(const Dots<kBits, 0>&) {}
  template <int kBits>
  void add_line(Bytes, const int32_t*) {}
  void add(const Sums&) {}
  template <Format f>
  void add_times(const Sums&, Ints) {}
  template <Format f>
  void add_bytes(Bytes, const int32_t*) {}
  template <int bits>
  void shift_and_add(const Sums&) {}
  void add_256_of(const int32_t*, const uint16_t*) {}
  void store_to(int32_t*) const {}
  template <Format f>
  void add_to(float*, bool, const float*, const float*, const float*, const float*) const {}
};

// What n tokens have of all groups so far, in registers.
template <int n>
struct Totals {
  Floats total = splat(0);
  Totals<n - 1> rest;
  void store_to(float* to) const {
    store(to, total);
    rest.store_to(to + kPanel);
  }
  template <Format f>
  void add(const Sums<n>& sums, Floats scale, Floats min, const float* x_scale, const float* x_sum) {
    total = add_group<f>(total, sums.sum, scale, min, *x_scale, x_sum);
    rest.template add<f>(sums.rest, scale, min, x_scale + 1, x_sum + 1);
  }
};
template <>
struct Totals<0> {
  void store_to(float*) const {}
  template <Format f>
  void add(const Sums<0>&, Floats, Floats, const float*, const float*) {}
};

// One group's lines . the words of n tokens of a tile of MT, added to their sums. (By value: of a reference GCC keeps the sums in
// memory, at half the speed.)
template <Format f, int MT, int n, class Lines>
inline Sums<n> add_lines(Sums<n> sums, Lines lines, const int32_t* x) {
  constexpr int bits = layout(f).bits, words = layout(f).lines() * (Lines::kPairs ? 2 : 1);
  if constexpr ((Lines::kPairs || straight(bits)) && n <= kFewSums) {
    Sums<n> odd;
#pragma GCC unroll 16
    for (int j = 0; j < words; j += 2) {
      sums.template add_line<bits>(lines(j), x + j * MT);
      odd.template add_line<bits>(lines(j + 1), x + j * MT + MT);
    }
    sums.add(odd);
  } else if constexpr (Lines::kPairs || straight(bits)) {
#pragma GCC unroll 16
    for (int j = 0; j < words; j++) sums.template add_line<bits>(lines(j), x + j * MT);
  } else {
    constexpr int fits = Dot<bits>::kFits < words ? Dot<bits>::kFits : words;
#pragma GCC unroll 8
    for (int j = 0; j < words; j += fits) {
      Dots<bits, n> dots;
#pragma GCC unroll 8
      for (int i = j; i < j + fits; i++) dots.add(lines(i), x + i * MT);
      sums.add(dots);
    }
  }
  return sums;
}

// Of group `at` of the activations, n tokens from token t of the tile on. What their sums begin with:
template <Format f, int n>
inline Sums<n> start_of_group(const Activations& x, size_t at, int t) {
  if constexpr (offset(f) != 0) return Sums<n>(x.start + at + t);
  else return Sums<n>();
}
// with their low parts:
template <Format f, int MT, int n, class Lines>
inline Sums<n> add_low(Sums<n> sums, Lines lines, const Activations& x, size_t at, int t) {
  return add_lines<f, MT, n>(sums, lines, x.low + at * kWords<f> + t);
}
// their high parts alone:
template <Format f, int MT, int n, class Lines>
inline Sums<n> high_of_group(Lines lines, const Activations& x, size_t at, int t) {
  return add_lines<f, MT, n>(Sums<n>(), lines, x.more + at * kWords<f> + t);
}
// all of it where none of them has a high part:
template <Format f, int MT, int n, class Lines>
inline Sums<n> low_of_group(Lines lines, const Activations& x, size_t at, int t) {
  return add_low<f, MT, n>(start_of_group<f, n>(x, at, t), lines, x, at, t);
}
// and where all of them have one, which goes first, so that one set of sums is enough; of few tokens there is room for two.
template <Format f, int MT, int n, class Lines>
inline Sums<n> both_of_group(Lines lines, const Activations& x, size_t at, int t) {
  Sums<n> sums = high_of_group<f, MT, n>(lines, x, at, t);
  if constexpr (n <= kFewSums) {
    sums.template shift_and_add<8>(low_of_group<f, MT, n>(lines, x, at, t));
    return sums;
  }
  sums.template shift_and_add<8>(start_of_group<f, n>(x, at, t));
  return add_low<f, MT, n>(sums, lines, x, at, t);
}

}  // namespace
}  // namespace ventoux
