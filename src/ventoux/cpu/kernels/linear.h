// y (+)= x . w over packed weights: one token straight from memory, many through a strip that is unpacked to L1 once.
//
// Every output is the same sum in the same order, group by group (or column by column), whatever the number of tokens:
// a sequence's logits do not depend on who shares its batch.
#pragma once

#include "bf16.h"
#include "two_panels.h"

namespace ventoux {
namespace {

constexpr int kStripColumns = 256;  // 16 KiB of unpacked floats
// A strip's columns of a block of tokens stay in L2 while these panels pass; sums of 16 floats wait between strips.
constexpr int kTokenBlock = 10 * kWidestTile, kPanelBlock = 8;
constexpr size_t kBlockBytes = 384 * 1024;  // of panels that stay in L2 beside a tile of tokens
constexpr size_t kLotBytes = 4 << 20;       // of tokens that stay in L3, for the most part

struct Scratch {
  union {
    Strip strip;
    SuperStrip super;
    alignas(64) float columns[kStripColumns * kPanel];
  };
  alignas(64) float partial[kPanelBlock][kTokenBlock * kPanel];
};
static_assert(sizeof(Scratch) <= kScratchBytes, "kScratchBytes is too small");

// --- quantized activations ---

// Groups g0 .. g0 + n of one panel, for tokens [token0, token1): adds to their partial sums.
template <Format f>
inline void quantized_strip(const Matrix& w, const Activations& x, int panel, int g0, int n, int token0, int token1, Strip& strip,
                            float* partial) {
  constexpr Layout l = layout(f);
  const size_t groups = size_t(w.columns / l.group);
  unpack_strip<f>(w.data + size_t(panel) * w.panel_bytes, g0, n, strip);
  for_each_tile<kQuantizedTile>(token0, token1, [&](int t, auto size) {
    constexpr int MT = decltype(size)::value;
    quantized_tile<f, MT>(strip, x, size_t(t) * groups + size_t(g0) * MT, n, partial + (t - token0) * kPanel, g0 == 0);
  });
}

// Super-block b of one panel, for the same tokens.
template <Format f>
inline void superblock_strip(const Matrix& w, const Activations& x, int panel, int b, int token0, int token1, SuperStrip& strip,
                             float* partial) {
  const size_t blocks = size_t(w.columns / kSuperBlock);
  unpack_superblock<f>(w.data + size_t(panel) * w.panel_bytes + size_t(b) * layout(f).block_bytes(), kAhead, strip);
  for_each_tile<kQuantizedTile>(token0, token1, [&](int t, auto size) {
    constexpr int MT = decltype(size)::value;
    superblock_lines<f, MT>(strip, x, size_t(t) * blocks + size_t(b) * MT, partial + (t - token0) * kPanel, b == 0);
  });
}

// --- float activations ---

// (A function of its own, for GCC 12 kept half of the sum in memory from column to column where it was inlined.)
template <Format f>
[[gnu::noinline]] void float_token(const uint8_t* panel, const Activations& x, float* to) {
  constexpr size_t bytes = kPanel * (f == Format::F32 ? 4 : 2);
  Floats sum = splat(0);
  for_each_column<f>(panel, 0, x.columns, [=, &sum, row = x.x](int c, Floats column) {
    __builtin_prefetch(panel + c * bytes + kAheadOfOne);
    sum = fma(column, splat(row[c]), sum);
  });
  store(to, sum);
}

// Columns c0 .. c0 + n of a panel as floats [column][row]; block formats start at a group.
template <Format f>
inline void unpack_floats(const uint8_t* panel, int c0, int n, float* to) {
  constexpr Layout l = layout(f);
  if constexpr (l.bits == 0) {
    for_each_column<f>(panel, c0, n, [=](int c, Floats column) { store(to + (c - c0) * kPanel, column); });
  } else {
    for (int c = 0; c < n; c += l.group) {
      const Group group = group_at<f>(panel, (c0 + c) / l.group);
      for (int j = 0; j < l.lines(); j++) {
        alignas(64) uint8_t line[64];
        store_bytes(line, line_at<f>(group.quants, j));
        for (int k = 0; k < 4; k++) {
          float quants[kPanel];
          for (int r = 0; r < kPanel; r++)  // an unsigned view, but for formats whose quants stay signed
            quants[r] = float((l.bits == 8 && kSignedOffset == 0 ? int8_t(line[4 * r + k]) : line[4 * r + k]) - offset(f));
          const Floats scaled = mul(load(quants), group.scale);
          store(to + (c + 4 * j + k) * kPanel, kMin<f> ? sub(scaled, group.min) : scaled);
        }
      }
    }
  }
}

template <int MT>
inline void float_tile(const float* w, const float* x, int n, float* partial, bool first) {
  Floats sum[MT];
  for (int t = 0; t < MT; t++) sum[t] = first ? splat(0) : load(partial + t * kPanel);
  for (int c = 0; c < n; c++) {
    const Floats column = load(w + c * kPanel);
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++) sum[t] = fma(column, splat(x[c * MT + t]), sum[t]);
  }
  for (int t = 0; t < MT; t++) store(partial + t * kPanel, sum[t]);
}

template <Format f>
inline void float_strip(const Matrix& w, const Activations& x, int panel, int c0, int n, int token0, int token1, float* columns,
                        float* partial) {
  unpack_floats<f>(w.data + size_t(panel) * w.panel_bytes, c0, n, columns);
  for_each_tile<kTile>(token0, token1, [&](int t, auto size) {
    constexpr int MT = decltype(size)::value;
    float_tile<MT>(columns, x.x + size_t(t) * w.columns + size_t(c0) * MT, n, partial + (t - token0) * kPanel, c0 == 0);
  });
}

// --- both ---

// Writes the sums of tokens [token0, token1) of one panel.
inline void finish_block(const Matrix& w, const float* partial, float* y, bool add_to, int panel, int token0, int token1) {
  for (int t = token0; t < token1; t++)
    finish(y + size_t(t) * w.rows + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to, load(partial + (t - token0) * kPanel));
}

// Tokens [token0, token1) of panels [panel0, panel1), at most kTokenBlock and kPanelBlock, strip by strip.
template <Format f>
inline void block_of(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, int token0, int token1,
                     Scratch& scratch) {
  constexpr Layout l = layout(f);
  const int width = x.form.superblocks() ? kSuperBlock : x.form.group ? kGroups * l.group : kStripColumns;
  for (int c0 = 0; c0 < w.columns; c0 += width) {
    const int n = c0 + width < w.columns ? width : w.columns - c0;
    for (int p = panel0; p < panel1; p++) {
      float* partial = scratch.partial[p - panel0];
      if constexpr (has_superblocks<f> && !can_cross<f>) {
        if (x.form.superblocks()) {
          superblock_strip<f>(w, x, p, c0 / kSuperBlock, token0, token1, scratch.super, partial);
          continue;
        }
      }
      if constexpr (l.bits > 0 && has_strips<f>) {
        if (x.form.group) {
          quantized_strip<f>(w, x, p, c0 / l.group, n / l.group, token0, token1, scratch.strip, partial);
          continue;
        }
      }
      float_strip<f>(w, x, p, c0, n, token0, token1, scratch.columns, partial);
    }
  }
  for (int p = panel0; p < panel1; p++) finish_block(w, scratch.partial[p - panel0], y, add_to, p, token0, token1);
}

// Whether so many tokens are multiplied with panels as they lie.
template <Format f>
inline bool from_panels(Form form, int tokens) {
  if constexpr (layout(f).bits > 0)
    return form.group && (form.superblocks() ? tokens <= kSuperblocksFromPanels : form.nibbles || !has_strips<f> || tokens <= kFromPanels);
  else return f == Format::BF16 && kHasBf16 && form.pairs;
}

// One panel as it lies . a tile of tokens, of which t is the first.
template <Format f, int MT>
inline void tile_of(const uint8_t* panel, const Activations& x, int t, float* totals) {
  if constexpr (has_superblocks<f>)
    if (x.form.superblocks()) return superblock_tile<f, MT>(panel, x, t, totals);
  if constexpr (in_nibbles(f))
    if (x.form.nibbles) return nibble_tile<f, MT>(panel, x, size_t(t) * size_t(x.columns / layout(f).group), totals);
  if constexpr (f == Format::BF16) bf16_tile<f, MT>(panel, x.low + size_t(t) * size_t((x.columns + 1) / 2), (x.columns + 1) / 2, totals);
  else panel_tile<f, MT>(panel, x, size_t(t) * size_t(x.columns / layout(f).group), totals);
}

// Panels [panel0, panel1) as they lie, or of two matrices: silu(w . x) * (up . x). Panels of a block stay in L2 while tiles of tokens
// pass, each of which stays there while they do. No more tokens pass than stay in L3 until the next block wants them: to read the
// weights for each such lot costs less than to have activations from memory for each block. Lots are of one size: the weights are not
// read for the few tokens that are left over.
template <Format f, bool gated>
inline void panels_of(const Matrix& w, const Matrix& up, const Activations& x, float* y, bool add_to, int panel0, int panel1) {
  constexpr bool bf16 = f == Format::BF16;
  const size_t bytes = w.panel_bytes;
  const int step = bytes * (gated ? 2 : 1) < kBlockBytes ? int(kBlockBytes / bytes) / (gated ? 2 : 1) : 1;
  const int lots = int((size_t(x.tokens) * size_t(w.columns) * (bf16 ? 2 : 1) + kLotBytes / 2) / kLotBytes);
  const int tiles = (x.tokens + kWidestTile - 1) / kWidestTile, lot = (lots > 1 ? (tiles + lots - 1) / lots : tiles) * kWidestTile;
  const auto write = [&](int p, int t, int n, const float* totals) {
    for (int i = 0; i < n; i++)
      finish(y + size_t(t + i) * w.rows + size_t(p) * kPanel, w.rows - p * kPanel, add_to, load(totals + i * kPanel));
  };
  const auto tiles_of = [&](int first, int end, int token0, int token1) {
    for_each_tile<kQuantizedTile>(token0, token1, [&](int t, auto size) {
      constexpr int MT = decltype(size)::value;
      alignas(64) float totals[MT * kPanel], others[MT * kPanel];
      for (int p = first; p < end; p++) {
        tile_of<f, MT>(w.data + size_t(p) * bytes, x, t, totals);
        if constexpr (gated) {
          tile_of<f, MT>(up.data + size_t(p) * bytes, x, t, others);
          swiglu(totals, others, MT * kPanel);
        }
        write(p, t, MT, totals);
      }
    });
  };
  for (int begin = 0; begin < x.tokens; begin += lot) {
    const int end = begin + lot < x.tokens ? begin + lot : x.tokens;
    int panel = panel0;
    if constexpr (bf16) {
      constexpr int MT = kQuantizedTile, taken = gated ? 1 : 2;
      for (; x.tokens > kFewTokens && panel + taken <= panel1; panel += taken) {
        const uint8_t* first = w.data + size_t(panel) * bytes;
        const uint8_t* second = gated ? up.data + size_t(panel) * bytes : first + bytes;
        const int rest = bf16_tiles<f, MT>(first, second, taken * bytes, x.low, (w.columns + 1) / 2, begin, end, [&](int t, float* sums) {
          if (gated) swiglu(sums, sums + MT * kPanel, MT * kPanel);
          for (int i = 0; i < taken; i++) write(panel + i, t, MT, sums + i * MT * kPanel);
        });
        tiles_of(panel, panel + taken, rest, end);
      }
    }
    for (; panel < panel1; panel += step) tiles_of(panel, panel + step < panel1 ? panel + step : panel1, begin, end);
  }
}

template <Format f>
inline void linear_of(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, uint8_t* scratch) {
  if constexpr (can_cross<f>)
    if (crosses(x.form, x.tokens)) return crossed_of<f, false>(w, w, x, y, add_to, panel0, panel1, scratch);
  if (from_panels<f>(x.form, x.tokens)) {
    if constexpr (layout(f).bits > 0 || (f == Format::BF16 && kHasBf16)) panels_of<f, false>(w, w, x, y, add_to, panel0, panel1);
    return;
  }
  if (layout(f).bits == 0 && x.tokens == 1) {
    for (int p = panel0; p < panel1; p++) {
      alignas(64) float sums[kPanel];
      float_token<f>(w.data + size_t(p) * w.panel_bytes, x, sums);
      finish(y + size_t(p) * kPanel, w.rows - p * kPanel, add_to, load(sums));
    }
    return;
  }
  for (int t = 0; t < x.tokens; t += kTokenBlock) {
    const int token1 = t + kTokenBlock < x.tokens ? t + kTokenBlock : x.tokens;
    const int step = x.tokens <= kFewTokens ? 1 : kPanelBlock;
    for (int p = panel0; p < panel1; p += step)
      block_of<f>(w, x, y, add_to, p, p + step < panel1 ? p + step : panel1, t, token1, *(Scratch*)scratch);
  }
}

template <Format f>
struct OfFormat {
  static constexpr Format value = f;
};

template <class Visit>
inline auto of_format(Format format, Visit visit) {
  switch (format) {
#define CASE(f) \
  case Format::f: return visit(OfFormat<Format::f>())
    CASE(F32);
    CASE(F16);
    CASE(BF16);
    CASE(Q8_0);
    CASE(Q4_0);
    CASE(Q4_1);
    CASE(Q5_0);
    CASE(Q5_1);
    CASE(Q4_K);
    CASE(Q5_K);
    default: CASE(Q6_K);
#undef CASE
  }
}

inline void linear(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, uint8_t* scratch) {
  of_format(w.format, [&](auto f) { linear_of<f.value>(w, x, y, add_to, panel0, panel1, scratch); });
}

// Few tokens wait for weights, which come faster in the order in which they lie than from two places in turns.
inline bool gates(Format format, Form form, int tokens) {
  return tokens > kFewTokens && of_format(format, [&](auto f) { return from_panels<f.value>(form, tokens); });
}

inline void gated(const Matrix& gate, const Matrix& up, const Activations& x, float* y, int panel0, int panel1, uint8_t* scratch) {
  of_format(gate.format, [&](auto f) {
    constexpr Format format = f.value;
    if constexpr (can_cross<format>)
      if (crosses(x.form, x.tokens)) return crossed_of<format, true>(gate, up, x, y, false, panel0, panel1, scratch);
    if constexpr (layout(format).bits > 0 || (format == Format::BF16 && kHasBf16))
      panels_of<format, true>(gate, up, x, y, false, panel0, panel1);
  });
}

}  // namespace
}  // namespace ventoux
