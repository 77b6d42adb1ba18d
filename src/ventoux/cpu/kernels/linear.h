// y (+)= x . w over packed weights: one row straight from memory, many rows through a strip that is unpacked to L1 once.
//
// Every output is the same sum in the same order, group by group (or column by column), whatever the number of rows:
// a sequence's logits do not depend on who shares its batch.
#pragma once

#include "tiles.h"
#include "unpack.h"

namespace ventoux {
namespace {

constexpr int kStripLines = 256;  // 16 KiB of unpacked bytes: leaves half of L1 to a tile of activations
constexpr int kStripColumns = 256;  // 16 KiB of unpacked floats
constexpr int kRowBlock = 20 * kWidestTile;  // rows whose partial sums (16 floats each) wait in scratch between strips

struct Strip {
  alignas(64) uint8_t bytes[kStripLines * 64];
  alignas(64) float scale[kStripLines / 4 * kPanel], min[kStripLines / 4 * kPanel];
};
struct Scratch {
  union {
    Strip strip;
    alignas(64) float columns[kStripColumns * kPanel];
  };
  alignas(64) float partial[kRowBlock * kPanel];
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
inline void quantized_row(const Matrix& w, const Activations& x, float* y, bool add_to, int panel) {
  constexpr Layout l = layout(f);
  const int groups = w.columns / l.group;
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  Floats sum[kTerms] = {splat(0), splat(0)};
  for (int g = 0; g < groups; g++) {
    const Group group = group_at<f>(data, g);
    const int32_t* quads = x.quads + size_t(g) * l.lines() * kTerms;
    Dot<l.bits> dot[kTerms] = {Dot<l.bits>::zero(), Dot<l.bits>::zero()};
#pragma GCC unroll 8
    for (int j = 0; j < l.lines(); j++) {
      const Bytes line = line_at<f>(group.quants, j);
      for (int r = 0; r < kTerms; r++) dot[r].add(line, quads[kTerms * j + r], j);
    }
    for (int r = 0; r < kTerms; r++) {
      const int at = kTerms * g + r;
      sum[r] = add_group(sum[r], dot[r].total(), group.scale, group.min, x.scale[at], x.sum[at]);
    }
  }
  finish(y + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to, add(sum[0], sum[1]));
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

template <int kBits, int kLines, int MR>
inline void quantized_tile(const Strip& w, const int32_t* quads, const float* x_scale, const float* x_sum, int n, float* partial,
                      bool first) {
  Floats sum[MR];
  for (int m = 0; m < MR; m++) sum[m] = first ? splat(0) : load(partial + m * kPanel);
  for (int g = 0; g < n; g++, quads += kLines * MR, x_scale += MR, x_sum += MR) {
    Dot<kBits> dot[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) dot[m] = Dot<kBits>::zero();
#pragma GCC unroll 8
    for (int j = 0; j < kLines; j++) {
      const Bytes line = load_bytes(w.bytes + (g * kLines + j) * 64);
#pragma GCC unroll 16
      for (int m = 0; m < MR; m++) dot[m].add(line, quads[j * MR + m], j);
    }
    const Floats scale = load(w.scale + g * kPanel), min = load(w.min + g * kPanel);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) sum[m] = add_group(sum[m], dot[m].total(), scale, min, x_scale[m], x_sum[m]);
  }
  for (int m = 0; m < MR; m++) store(partial + m * kPanel, sum[m]);
}

template <Format f>
inline void quantized_rows(const Matrix& w, const Activations& x, float* y, bool add_to, int panel, int row0, int row1,
                      Scratch& scratch) {
  constexpr Layout l = layout(f);
  constexpr int step = kStripLines / l.lines();
  const size_t groups = size_t(w.columns / l.group);
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  for (int g0 = 0; g0 < int(groups); g0 += step) {
    const int n = g0 + step < int(groups) ? step : int(groups) - g0;
    unpack_bytes<f>(data, g0, n, scratch.strip);
    for_each_tile(row0, row1, [&](int m, auto size) {
      constexpr int MR = decltype(size)::value;
      const size_t at = m * groups + size_t(g0) * MR;
      quantized_tile<l.bits, l.lines(), MR>(scratch.strip, x.quads + at * l.lines(), x.scale + at, x.sum + at, n,
                                       scratch.partial + (m - row0) * kPanel, g0 == 0);
    });
  }
  for (int m = row0; m < row1; m += kTerms) {
    const float* partial = scratch.partial + (m - row0) * kPanel;
    finish(y + size_t(m / kTerms) * w.rows + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to,
           add(load(partial), load(partial + kPanel)));
  }
}

// --- float activations ---

template <Format f>
inline void float_row(const Matrix& w, const Activations& x, float* y, bool add_to, int panel) {
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

template <int MR>
inline void float_tile(const float* w, const float* x, int n, float* partial, bool first) {
  Floats sum[MR];
  for (int m = 0; m < MR; m++) sum[m] = first ? splat(0) : load(partial + m * kPanel);
  for (int c = 0; c < n; c++) {
    const Floats column = load(w + c * kPanel);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) sum[m] = fma(column, splat(x[c * MR + m]), sum[m]);
  }
  for (int m = 0; m < MR; m++) store(partial + m * kPanel, sum[m]);
}

template <Format f>
inline void float_rows(const Matrix& w, const Activations& x, float* y, bool add_to, int panel, int row0, int row1,
                       Scratch& scratch) {
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  for (int c0 = 0; c0 < w.columns; c0 += kStripColumns) {
    const int n = c0 + kStripColumns < w.columns ? kStripColumns : w.columns - c0;
    unpack_floats<f>(data, c0, n, scratch.columns);
    for_each_tile(row0, row1, [&](int m, auto size) {
      constexpr int MR = decltype(size)::value;
      float_tile<MR>(scratch.columns, x.x + size_t(m) * w.columns + size_t(c0) * MR, n, scratch.partial + (m - row0) * kPanel,
                     c0 == 0);
    });
  }
  for (int m = row0; m < row1; m++)
    finish(y + size_t(m) * w.rows + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to,
           load(scratch.partial + (m - row0) * kPanel));
}

// --- both ---

template <Format f>
inline void linear_of(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, Scratch& scratch) {
  constexpr bool blocks = layout(f).bits > 0;
  if (x.group ? x.rows == kTerms : x.rows == 1 && !blocks) {
    for (int p = panel0; p < panel1; p++) {
      if constexpr (blocks) quantized_row<f>(w, x, y, add_to, p);
      else float_row<f>(w, x, y, add_to, p);
    }
    return;
  }
  for (int row0 = 0; row0 < x.rows; row0 += kRowBlock) {
    const int row1 = row0 + kRowBlock < x.rows ? row0 + kRowBlock : x.rows;
    for (int p = panel0; p < panel1; p++) {
      if constexpr (blocks) {
        if (x.group) {
          quantized_rows<f>(w, x, y, add_to, p, row0, row1, scratch);
          continue;
        }
      }
      float_rows<f>(w, x, y, add_to, p, row0, row1, scratch);
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
