// y (+)= x . w over packed weights: one token straight from memory, many through a strip that is unpacked to L1 once.
//
// Every output is the same sum in the same order, group by group (or column by column), whatever the number of tokens:
// a sequence's logits do not depend on who shares its batch.
#pragma once

#include "tiles.h"
#include "unpack.h"

namespace ventoux {
namespace {

constexpr int kStripLines = 256;  // 16 KiB of unpacked bytes: leaves half of L1 to a tile of activations
constexpr int kStripColumns = 256;  // 16 KiB of unpacked floats
constexpr int kTokenBlock = 20 * kWidestTile;  // tokens whose partial sums (16 floats each) wait between strips

struct Strip {
  alignas(64) uint8_t bytes[kStripLines * 64];
  alignas(64) float scale[kStripLines / 4 * kPanel], min[kStripLines / 4 * kPanel];
};
struct Scratch {
  union {
    Strip strip;
    alignas(64) float columns[kStripColumns * kPanel];
  };
  alignas(64) float partial[kTokenBlock * kPanel];
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

inline Floats add_group(Floats sum, Floats dot, Floats scale, Floats min, float x_scale, float x_sum) {
  return fnma(min, splat(x_sum), fma(dot, mul(scale, splat(x_scale)), sum));
}

template <Format f>
inline void quantized_token(const Matrix& w, const Activations& x, float* y, bool add_to, int panel) {
  constexpr Layout l = layout(f);
  const int groups = w.columns / l.group;
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  Floats sum = splat(0);
  for (int g = 0; g < groups; g++) {
    const Group group = group_at<f>(data, g);
    const int32_t* quads = x.quads + size_t(g) * l.lines() * kTerms;
    Dot<l.bits> high = Dot<l.bits>::zero(), low = Dot<l.bits>::zero();
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) {
      const Bytes line = line_at<f>(group.quants, j);
      high.add(line, quads[kTerms * j], j);
      low.add(line, quads[kTerms * j + 1], j);
    }
    sum = add_group(sum, total(high, low), group.scale, group.min, x.scale[g], x.sum[g]);
  }
  finish(y + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to, sum);
}

template <Format f>
inline void unpack_bytes(const uint8_t* panel, int g0, int n, Strip& to) {
  constexpr Layout l = layout(f);
  for (int g = 0; g < n; g++) {
    const Group group = group_at<f>(panel, g0 + g);
    store(to.scale + g * kPanel, group.scale);
    store(to.min + g * kPanel, group.min);
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) store_bytes(to.bytes + (g * l.lines() + j) * 64, line_at<f>(group.quants, j));
  }
}

template <int kBits, int kLines, int MT>
inline void quantized_tile(const Strip& w, const int32_t* quads, const float* x_scale, const float* x_sum, int n, float* partial,
                           bool first) {
  constexpr int rows = MT * kTerms;
  Floats sum[MT];
  for (int t = 0; t < MT; t++) sum[t] = first ? splat(0) : load(partial + t * kPanel);
  for (int g = 0; g < n; g++, quads += kLines * rows, x_scale += MT, x_sum += MT) {
    Dot<kBits> dot[rows];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) dot[r] = Dot<kBits>::zero();
#pragma GCC unroll 8
    for (int j = 0; j < kLines; j++) {
      const Bytes line = load_bytes(w.bytes + (g * kLines + j) * 64);
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) dot[r].add(line, quads[j * rows + r], j);
    }
    const Floats scale = load(w.scale + g * kPanel), min = load(w.min + g * kPanel);
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++)
      sum[t] = add_group(sum[t], total(dot[kTerms * t], dot[kTerms * t + 1]), scale, min, x_scale[t], x_sum[t]);
  }
  for (int t = 0; t < MT; t++) store(partial + t * kPanel, sum[t]);
}

// Writes the sums of tokens [token0, token1) of one panel.
inline void finish_block(const Matrix& w, const Scratch& scratch, float* y, bool add_to, int panel, int token0, int token1) {
  for (int t = token0; t < token1; t++)
    finish(y + size_t(t) * w.rows + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to,
           load(scratch.partial + (t - token0) * kPanel));
}

template <Format f>
inline void quantized_tokens(const Matrix& w, const Activations& x, float* y, bool add_to, int panel, int token0, int token1,
                             Scratch& scratch) {
  constexpr Layout l = layout(f);
  constexpr int step = kStripLines / l.lines();
  const int groups = w.columns / l.group;
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  for (int g0 = 0; g0 < groups; g0 += step) {
    const int n = g0 + step < groups ? step : groups - g0;
    unpack_bytes<f>(data, g0, n, scratch.strip);
    for_each_tile<kQuantizedTile>(token0, token1, [&](int t, auto size) {
      constexpr int MT = decltype(size)::value;
      const size_t at = size_t(t) * groups + size_t(g0) * MT;
      quantized_tile<l.bits, l.lines(), MT>(scratch.strip, x.quads + at * l.lines() * kTerms, x.scale + at, x.sum + at, n,
                                            scratch.partial + (t - token0) * kPanel, g0 == 0);
    });
  }
  finish_block(w, scratch, y, add_to, panel, token0, token1);
}

// --- float activations ---

template <Format f>
inline void float_token(const Matrix& w, const Activations& x, float* y, bool add_to, int panel) {
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  Floats sum = splat(0);
  for (int c = 0; c < w.columns; c++) sum = fma(column_at<f>(data, c), splat(x.x[c]), sum);
  finish(y + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to, sum);
}

// Columns c0 .. c0 + n of a panel as floats [column][row]; block formats start at a group.
template <Format f>
inline void unpack_floats(const uint8_t* panel, int c0, int n, float* to) {
  constexpr Layout l = layout(f);
  if constexpr (l.bits == 0) {
    for (int c = 0; c < n; c++) store(to + c * kPanel, column_at<f>(panel, c0 + c));
  } else {
    for (int c = 0; c < n; c += l.group) {
      const Group group = group_at<f>(panel, (c0 + c) / l.group);
      for (int j = 0; j < l.lines(); j++) {
        alignas(64) uint8_t line[64];
        store_bytes(line, line_at<f>(group.quants, j));
        for (int k = 0; k < 4; k++) {
          float quants[kPanel];
          for (int r = 0; r < kPanel; r++)  // an unsigned view, but for formats whose quants stay signed
            quants[r] = l.bits == 8 && kSignedOffset == 0 ? float(int8_t(line[4 * r + k])) : float(line[4 * r + k]);
          store(to + (c + 4 * j + k) * kPanel, sub(mul(load(quants), group.scale), group.min));
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
inline void float_tokens(const Matrix& w, const Activations& x, float* y, bool add_to, int panel, int token0, int token1,
                         Scratch& scratch) {
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  for (int c0 = 0; c0 < w.columns; c0 += kStripColumns) {
    const int n = c0 + kStripColumns < w.columns ? kStripColumns : w.columns - c0;
    unpack_floats<f>(data, c0, n, scratch.columns);
    for_each_tile<kTile>(token0, token1, [&](int t, auto size) {
      constexpr int MT = decltype(size)::value;
      float_tile<MT>(scratch.columns, x.x + size_t(t) * w.columns + size_t(c0) * MT, n, scratch.partial + (t - token0) * kPanel,
                     c0 == 0);
    });
  }
  finish_block(w, scratch, y, add_to, panel, token0, token1);
}

// --- both ---

template <Format f>
inline void linear_of(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, Scratch& scratch) {
  constexpr bool blocks = layout(f).bits > 0;
  if (x.tokens == 1 && (x.group || !blocks)) {
    for (int p = panel0; p < panel1; p++) {
      if constexpr (blocks) quantized_token<f>(w, x, y, add_to, p);
      else float_token<f>(w, x, y, add_to, p);
    }
    return;
  }
  for (int token0 = 0; token0 < x.tokens; token0 += kTokenBlock) {
    const int token1 = token0 + kTokenBlock < x.tokens ? token0 + kTokenBlock : x.tokens;
    for (int p = panel0; p < panel1; p++) {
      if constexpr (blocks) {
        if (x.group) {
          quantized_tokens<f>(w, x, y, add_to, p, token0, token1, scratch);
          continue;
        }
      }
      float_tokens<f>(w, x, y, add_to, p, token0, token1, scratch);
    }
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
