// From the bytes of layout.h to operands: a weight is scale * (quant - offset), or scale * quant - min.
#pragma once

#include "layout.h"

namespace ventoux {
namespace {

struct Group {
  Floats scale, min;
  const uint8_t* quants;
};

constexpr int offset(Format f) {
  return f == Format::Q4_0 ? 8 : f == Format::Q5_0 ? 16 : f == Format::Q6_K ? 32 : f == Format::Q8_0 ? kSignedOffset : 0;
}
template <Format f>
constexpr bool kMin = f == Format::Q4_1 || f == Format::Q5_1 || f == Format::Q4_K || f == Format::Q5_K;

// Group g of a panel.
template <Format f>
inline Group group_at(const uint8_t* panel, int g) {
  constexpr Layout l = layout(f);
  const uint8_t* block = panel + size_t(g / l.per_block) * l.block_bytes();
  const uint8_t* group = block + l.block_header + size_t(g % l.per_block) * l.group_bytes();
  const uint8_t* quants = group + l.group_header;
  if constexpr (f == Format::Q4_K || f == Format::Q5_K) {
    const Floats scale = load_half((const uint16_t*)block), min = load_half((const uint16_t*)(block + 32));
    return {mul(scale, load_u8(group)), mul(min, load_u8(group + 16)), quants};
  } else if constexpr (f == Format::Q6_K) {
    return {mul(load_half((const uint16_t*)block), load_i8(group)), splat(0), quants};
  } else {
    const Floats scale = load_half((const uint16_t*)group);
    if constexpr (kMin<f>)  // these files add their minimum
      return {scale, sub(splat(0), load_half((const uint16_t*)(group + 32))), quants};
    return {scale, splat(0), quants};
  }
}

// Line j of a group: 4 columns of 16 rows.
template <Format f>
inline Bytes line_at(const uint8_t* quants, int j) {
  constexpr Layout l = layout(f);
  if constexpr (l.bits == 8) {
    return from_signed(load_bytes(quants + 64 * j));
  } else {
    constexpr int half = l.lines() / 2;
    const Bytes nibbles = mask(shift_right(load_bytes(quants + 64 * (j % half)), j < half ? 0 : 4), 15);
    if constexpr (l.bits == 4) return nibbles;
    const Bytes upper = load_bytes(quants + 64 * half);
    if constexpr (l.bits == 5) return either(nibbles, mask(shift_right(upper, j - 4), 16));
    return either(nibbles, mask(shift_right(upper, 2 * j - 4), 48));
  }
}

// Asks for what lies this far behind a group, as many bytes as the group has: with few tokens weights come from memory, and
// the core's own prefetching stops at each page. A panel's end is followed by the next panel, which is next: of several tiles
// the last brings its first bytes.
constexpr int kAhead = 4096;
constexpr int ahead_of(int tokens) { return tokens == 1 ? kAheadOfOne : kAhead; }
template <Format f>
inline void fetch_ahead(const uint8_t* quants, ptrdiff_t ahead = kAhead) {
  for (int i = 0; i < layout(f).group_bytes(); i += 64) __builtin_prefetch(quants + ahead + i);
}

// Calls visit(c, 16 floats) for columns first .. first + n - 1 of a float panel; `first` is even.
template <Format f, class Visit>
inline void for_each_column(const uint8_t* panel, int first, int n, Visit visit) {
  if constexpr (f == Format::BF16) {
    const uint16_t* pair = (const uint16_t*)panel + size_t(first) * kPanel;
    for (int c = 0; c < n; c += 2, pair += 2 * kPanel) {
      visit(first + c, load_bf16(pair, false));
      if (c + 1 < n) visit(first + c + 1, load_bf16(pair, true));
    }
  } else {
    for (int c = first; c < first + n; c++) {
      if constexpr (f == Format::F32) visit(c, load((const float*)panel + size_t(c) * kPanel));
      else visit(c, load_half((const uint16_t*)panel + size_t(c) * kPanel));
    }
  }
}

}  // namespace
}  // namespace ventoux
