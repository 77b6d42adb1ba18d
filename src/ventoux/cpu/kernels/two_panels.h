// A part of a matrix . many tokens, two panels at once, with half the multiplications: crossed.h says how, and superblock.h for
// formats with super-blocks.
#pragma once

#include "elementwise.h"
#include "superblock.h"
#include "tiles.h"

namespace ventoux {
namespace {

template <Format f>
constexpr bool can_cross = crosses_bytes<f> || (kHasCrossed && has_superblocks<f>);

// Which of the two ways.
template <Format f, bool superblocks = has_superblocks<f>>
struct CrossedWay : CrossedBytes<f> {};
template <Format f>
struct CrossedWay<f, true> : CrossedShorts<f> {};

// Of so many tokens what a few pairs of panels gave waits between strips, in L2.
constexpr int kCrossedTokens = 22 * kWidestTile, kPairs = 4;

template <class Strip>
struct CrossedScratch {
  Strip strips[2];
  alignas(64) float partial[kPairs][kCrossedTokens][2 * kPanel];
};

// Panels [panel0, panel1) two by two, or of two matrices: silu(w . x) * (up . x).
template <Format f, bool gated>
inline void crossed_of(const Matrix& w, const Matrix& up, const Activations& x, float* y, bool add_to, int panel0, int panel1,
                       uint8_t* memory) {
  using Way = CrossedWay<f>;
  using Scratch = CrossedScratch<typename Way::Strip>;
  static_assert(sizeof(Scratch) <= kScratchBytes, "kScratchBytes is too small");
  Scratch& scratch = *(Scratch*)memory;
  constexpr int step = gated ? 1 : 2;  // panels of w in a pair
  constexpr Layout l = layout(f);
  const int groups = w.columns / Way::kGroup;
  const ptrdiff_t panel_bytes = ptrdiff_t(w.panel_bytes);
  const ptrdiff_t strip_bytes = Way::kGroups * Way::kGroup / (l.group * l.per_block) * l.block_bytes();
  // A last panel without a second one goes twice.
  const auto second_of = [&](int p) {
    return gated ? up.data + size_t(p) * w.panel_bytes : w.data + size_t(p + 1 < panel1 ? p + 1 : p) * w.panel_bytes;
  };
  const auto write = [&](int p, int token, float* sums) {
    float* to = y + size_t(token) * size_t(w.rows) + size_t(p) * kPanel;
    if (gated) swiglu(sums, sums + kPanel, kPanel);
    finish(to, w.rows - p * kPanel, add_to, load(sums));
    if (!gated && p + 1 < panel1) finish(to + kPanel, w.rows - (p + 1) * kPanel, add_to, load(sums + kPanel));
  };
  // Blocks of tokens have about the same size, for each of them unpacks the weights anew.
  const int blocks = (x.tokens + kCrossedTokens - 1) / kCrossedTokens;
  const int block = ((x.tokens + blocks - 1) / blocks + kWidestTile - 1) / kWidestTile * kWidestTile;
  for (int token0 = 0; token0 < x.tokens; token0 += block) {
    const int token1 = token0 + block < x.tokens ? token0 + block : x.tokens;
    for (int first = panel0; first < panel1; first += step * kPairs) {
      const int end = first + step * kPairs < panel1 ? first + step * kPairs : panel1;
      for (int g0 = 0; g0 < groups; g0 += Way::kGroups) {
        const int n = g0 + Way::kGroups < groups ? Way::kGroups : groups - g0;
        for (int p = first; p < end; p += step) {
          const ptrdiff_t next = p + step < end ? step * panel_bytes : (first - p) * panel_bytes + strip_bytes;
          Way::unpack(w.data + size_t(p) * w.panel_bytes, g0, n, next, scratch.strips[0]);
          Way::unpack(second_of(p), g0, n, next, scratch.strips[1]);
          auto* partial = scratch.partial[(p - first) / step];
          for_each_tile<kCrossedTile>(token0, token1, [&](int t, auto size) {
            constexpr int MT = decltype(size)::value;
            Way::template tile<MT>(scratch.strips, x, size_t(t) * size_t(groups) + size_t(g0) * MT, n, partial[t - token0], g0 == 0);
          });
        }
      }
      for (int t = token0; t < token1; t++)
        for (int p = first; p < end; p += step) write(p, t, scratch.partial[(p - first) / step][t - token0]);
    }
  }
}

}  // namespace
}  // namespace ventoux
