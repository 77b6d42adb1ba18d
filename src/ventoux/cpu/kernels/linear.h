// y (+)= x . w over packed weights: one token straight from memory, many through a strip that is unpacked to L1 once.
//
// Every output is the same sum in the same order, group by group (or column by column), whatever the number of tokens:
// a sequence's logits do not depend on who shares its batch.
#pragma once

#include "quantized.h"
#include "tiles.h"

namespace ventoux {
namespace {

constexpr int kStripColumns = 256;  // 16 KiB of unpacked floats
// A strip's columns of a block of tokens stay in L2 while these panels pass; sums of 16 floats wait between strips.
constexpr int kTokenBlock = 10 * kWidestTile, kPanelBlock = 8;
constexpr size_t kBlockBytes = 384 * 1024;  // of panels that stay in L2 beside a tile of tokens
constexpr size_t kLotBytes = 4 << 20;       // of tokens that stay in L3, for the most part
constexpr int kFewTokens = 16;  // their columns stay in L2 whole: panels one by one, so that weights are read in order

struct Scratch {
  union {
    Strip strip;
    alignas(64) float columns[kStripColumns * kPanel];
  };
  alignas(64) float partial[kPanelBlock][kTokenBlock * kPanel];
};
static_assert(sizeof(Scratch) <= kScratchBytes, "kScratchBytes is too small");

// Writes a panel's 16 results; the last panel of a matrix may have fewer rows.
inline void finish(float* y, int lanes, bool add_to, Floats sum) {
  if (lanes >= kPanel) {
    store(y, add_to ? add(load(y), sum) : sum);
    return;
  }
  float all[kPanel];
  store(all, sum);
  for (int i = 0; i < lanes; i++) y[i] = add_to ? y[i] + all[i] : all[i];
}

// --- quantized activations ---

// Groups g0 .. g0 + n of one panel, for tokens [token0, token1): adds to their partial sums.
template <Format f>
inline void quantized_strip(const Matrix& w, const Activations& x, int panel, int g0, int n, int token0, int token1, Strip& strip,
                            float* partial) {
  constexpr Layout l = layout(f);
  const size_t groups = size_t(w.columns / l.group);
  unpack_bytes<f>(w.data + size_t(panel) * w.panel_bytes, g0, n, strip);
  for_each_tile<kQuantizedTile>(token0, token1, [&](int t, auto size) {
    constexpr int MT = decltype(size)::value;
    quantized_tile<f, MT>(strip, x, size_t(t) * groups + size_t(g0) * MT, n, partial + (t - token0) * kPanel, g0 == 0);
  });
}

// --- float activations ---

template <Format f>
inline Floats float_token(const uint8_t* panel, const Activations& x) {
  Floats sum = splat(0);
  for_each_column<f>(panel, 0, x.columns, [&sum, row = x.x](int c, Floats column) { sum = fma(column, splat(row[c]), sum); });
  return sum;
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
  const int width = x.form.group ? kGroups<f> * l.group : kStripColumns;
  for (int c0 = 0; c0 < w.columns; c0 += width) {
    const int n = c0 + width < w.columns ? width : w.columns - c0;
    for (int p = panel0; p < panel1; p++) {
      float* partial = scratch.partial[p - panel0];
      if constexpr (l.bits > 0) {
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

// to[P][MT][16] = P panels of bf16 . a tile of tokens, whose pairs begin at x. One panel alone may come from memory; two read each
// of the tile's cache lines once.
template <Format f, int MT, int P>
inline void bf16_tile(const uint8_t* panel, size_t panel_bytes, const int32_t* x, int pairs, float* to) {
  Floats sum[P][MT];
  for (int p = 0; p < P; p++)
    for (int t = 0; t < MT; t++) sum[p][t] = splat(0);
  for (int i = 0; i < pairs; i++, panel += 64) {
    Bytes line[P];
    for (int p = 0; p < P; p++) line[p] = load_bytes(panel + size_t(p) * panel_bytes);
    if constexpr (P == 1) __builtin_prefetch(panel + kAhead);
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++)
      for (int p = 0; p < P; p++) sum[p][t] = Bf16<f>::add(sum[p][t], line[p], x[size_t(i) * MT + t]);
  }
  for (int p = 0; p < P; p++)
    for (int t = 0; t < MT; t++) store(to + (p * MT + t) * kPanel, sum[p][t]);
}

template <Format f>
constexpr int kTogether = f == Format::BF16 ? 2 : 1;  // panels

// Panels [panel0, panel1) as they lie. Those of a block stay in L2 while tiles of tokens pass, each of which stays there while
// they do. No more tokens pass than stay in L3 until the next block wants them: to read the weights for each such lot costs less
// than to have activations from memory for each block.
template <Format f>
inline void panels_of(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1) {
  constexpr bool bf16 = f == Format::BF16;
  const size_t words = bf16 ? size_t(w.columns + 1) / 2 : size_t(w.columns / layout(f).group);  // pairs, or groups
  const int least = kTogether<f>, step = w.panel_bytes * least < kBlockBytes ? int(kBlockBytes / w.panel_bytes) : least;
  const int tiles = int(kLotBytes / (size_t(w.columns) * (bf16 ? 2 : 1) * kWidestTile)), lot = (tiles > 1 ? tiles : 1) * kWidestTile;
  for (int begin = 0; begin < x.tokens; begin += lot)
    for (int first = panel0; first < panel1; first += step)
      for_each_tile<kQuantizedTile>(begin, begin + lot < x.tokens ? begin + lot : x.tokens, [&](int t, auto size) {
        constexpr int MT = decltype(size)::value;
        const int end = first + step < panel1 ? first + step : panel1;
        alignas(64) float totals[kTogether<f> * MT * kPanel];
        const auto panel = [&](int p) { return w.data + size_t(p) * w.panel_bytes; };
        const auto write = [&](int p, const float* from) {
          for (int i = 0; i < MT; i++)
            finish(y + size_t(t + i) * w.rows + size_t(p) * kPanel, w.rows - p * kPanel, add_to, load(from + i * kPanel));
        };
        int p = first;
        if constexpr (bf16 && MT == kQuantizedTile)
          for (; x.tokens > kFewTokens && p + 1 < end; p += 2) {
            bf16_tile<f, MT, 2>(panel(p), w.panel_bytes, x.low + size_t(t) * words, int(words), totals);
            for (int i = 0; i < 2; i++) write(p + i, totals + i * MT * kPanel);
          }
        for (; p < end; p++) {
          if constexpr (bf16) bf16_tile<f, MT, 1>(panel(p), 0, x.low + size_t(t) * words, int(words), totals);
          else panel_tile<f, MT>(panel(p), x, size_t(t) * words, totals);
          write(p, totals);
        }
      });
}

template <Format f>
inline void linear_of(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, Scratch& scratch) {
  if constexpr (layout(f).bits > 0) {
    if (x.form.group && x.tokens <= kFromPanels) return panels_of<f>(w, x, y, add_to, panel0, panel1);
  } else if (f == Format::BF16 && x.form.pairs) {
    if constexpr (f == Format::BF16 && kHasBf16) return panels_of<f>(w, x, y, add_to, panel0, panel1);
  } else if (x.tokens == 1) {
    for (int p = panel0; p < panel1; p++)
      finish(y + size_t(p) * kPanel, w.rows - p * kPanel, add_to, float_token<f>(w.data + size_t(p) * w.panel_bytes, x));
    return;
  }
  for (int t = 0; t < x.tokens; t += kTokenBlock) {
    const int token1 = t + kTokenBlock < x.tokens ? t + kTokenBlock : x.tokens;
    const int step = x.tokens <= kFewTokens ? 1 : kPanelBlock;
    for (int p = panel0; p < panel1; p += step)
      block_of<f>(w, x, y, add_to, p, p + step < panel1 ? p + step : panel1, t, token1, scratch);
  }
}

inline void linear(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, uint8_t* memory) {
  Scratch& scratch = *(Scratch*)memory;
  switch (w.format) {
#define CASE(f) \
  case Format::f: return linear_of<Format::f>(w, x, y, add_to, panel0, panel1, scratch)
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
    CASE(Q6_K);
#undef CASE
  }
}

}  // namespace
}  // namespace ventoux
