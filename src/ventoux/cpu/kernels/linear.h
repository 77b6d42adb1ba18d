// y (+)= x . w over packed weights: one token straight from memory, many through a strip that is unpacked to L1 once.
//
// Every output is the same sum in the same order, group by group (or column by column), whatever the number of tokens:
// a sequence's logits do not depend on who shares its batch.
#pragma once

#include "tiles.h"
#include "unpack.h"

namespace ventoux {
namespace {

constexpr int kStripLines = 256;    // 16 KiB of unpacked bytes: leaves half of L1 to a tile of activations
constexpr int kStripColumns = 256;  // 16 KiB of unpacked floats
// A strip's columns of a block of tokens stay in L2 while these panels pass; sums of 16 floats wait between strips.
constexpr int kTokenBlock = 10 * kWidestTile, kPanelBlock = 8;

struct Strip {
  alignas(64) uint8_t bytes[kStripLines * 64];
  alignas(64) float scale[kStripLines / 4 * kPanel], min[kStripLines / 4 * kPanel];
};
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

inline Floats add_group(Floats sum, Ints dot, Floats scale, Floats min, float x_scale, float x_sum) {
  return fnma(min, splat(x_sum), fma(to_floats(dot), mul(scale, splat(x_scale)), sum));
}

template <Format f>
inline Ints dot_of_group(const uint8_t* quants, const int32_t* quads) {
  constexpr Layout l = layout(f);
  constexpr int fits = Dot<l.bits>::kFits < l.lines() ? Dot<l.bits>::kFits : l.lines();
  Ints sum = zero_ints();
#pragma GCC unroll 8
  for (int j = 0; j < l.lines(); j += fits) {
    Dot<l.bits> dot = Dot<l.bits>::zero();
#pragma GCC unroll 8
    for (int i = j; i < j + fits; i++) dot.add(line_at<f>(quants, i), quads[i]);
    sum = dot.add_to(sum);
  }
  return sum;
}

template <Format f>
inline void quantized_token(const Matrix& w, const Activations& x, float* y, bool add_to, int panel) {
  constexpr Layout l = layout(f);
  const int groups = w.columns / l.group;
  const uint8_t* data = w.data + size_t(panel) * w.panel_bytes;
  Floats sum = splat(0);
  for (int g = 0; g < groups; g++) {
    const Group group = group_at<f>(data, g);
    const size_t quads = size_t(g) * l.lines();
    Ints dot = dot_of_group<f>(group.quants, x.low + quads);
    if (x.wide[g]) dot = add_256(dot, dot_of_group<f>(group.quants, x.high + quads));
    sum = add_group(sum, dot, group.scale, group.min, x.scale[g], x.sum[g]);
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
  Ints sum = zero_ints();
  Sums<n - 1> rest;
  template <int kBits>
  void add(const Dots<kBits, n>& dots) {
    sum = dots.dot.add_to(sum);
    rest.add(dots.rest);
  }
  void add_256(const Sums& high) {
    sum = ventoux::add_256(sum, high.sum);
    rest.add_256(high.rest);
  }
  // Scaled, to the sums in floats: the tokens' own scales and sums stand one after the other.
  void scale_to(float* partial, bool first, Floats scale, Floats min, const float* x_scale, const float* x_sum) const {
    store(partial, add_group(first ? splat(0) : load(partial), sum, scale, min, *x_scale, *x_sum));
    rest.scale_to(partial + kPanel, first, scale, min, x_scale + 1, x_sum + 1);
  }
};
template <>
struct Sums<0> {
  template <int kBits>
  void add(const Dots<kBits, 0>&) {}
  void add_256(const Sums&) {}
  void scale_to(float*, bool, Floats, Floats, const float*, const float*) const {}
};

// One group of unpacked lines . n tokens of a tile of MT.
template <int kBits, int kLines, int MT, int n>
inline Sums<n> dots_of_group(const uint8_t* lines, const int32_t* quads) {
  constexpr int fits = Dot<kBits>::kFits < kLines ? Dot<kBits>::kFits : kLines;
  Sums<n> sums;
  for (int j = 0; j < kLines; j += fits) {
    Dots<kBits, n> dots;
#pragma GCC unroll 8
    for (int i = j; i < j + fits; i++) dots.add(load_bytes(lines + i * 64), quads + i * MT);
    sums.add(dots);
  }
  return sums;
}

// Apart, so that the sums of low parts do not take its registers.
template <int kBits, int kLines, int MT, int n>
[[gnu::noinline]] Sums<n> high_dots_of_group(const uint8_t* lines, const int32_t* quads) {
  return dots_of_group<kBits, kLines, MT, n>(lines, quads);
}

// The sums in floats stay in memory from group to group: registers are for those in integers.
template <int kBits, int kLines, int MT>
inline void quantized_tile(const Strip& w, const Activations& x, size_t at, int groups, float* partial, bool first) {
  constexpr int n = MT < kAtOnce<kBits> ? MT : kAtOnce<kBits>;
  for (int g = 0; g < groups; g++, at += MT, first = false) {
    const uint8_t* lines = w.bytes + g * kLines * 64;
    for (int t = 0; t < MT; t += n) {
      Sums<n> sums = dots_of_group<kBits, kLines, MT, n>(lines, x.low + at * kLines + t);
      if (x.wide[at]) sums.add_256(high_dots_of_group<kBits, kLines, MT, n>(lines, x.high + at * kLines + t));
      sums.scale_to(partial + t * kPanel, first, load(w.scale + g * kPanel), load(w.min + g * kPanel), x.scale + at + t,
                    x.sum + at + t);
    }
  }
}

// Writes the sums of tokens [token0, token1) of one panel.
inline void finish_block(const Matrix& w, const float* partial, float* y, bool add_to, int panel, int token0, int token1) {
  for (int t = token0; t < token1; t++)
    finish(y + size_t(t) * w.rows + size_t(panel) * kPanel, w.rows - panel * kPanel, add_to, load(partial + (t - token0) * kPanel));
}

// Groups g0 .. g0 + n of one panel, for tokens [token0, token1): adds to their partial sums.
template <Format f>
inline void quantized_strip(const Matrix& w, const Activations& x, int panel, int g0, int n, int token0, int token1, Strip& strip,
                            float* partial) {
  constexpr Layout l = layout(f);
  const size_t groups = size_t(w.columns / l.group);
  unpack_bytes<f>(w.data + size_t(panel) * w.panel_bytes, g0, n, strip);
  for_each_tile<kQuantizedTile>(token0, token1, [&](int t, auto size) {
    constexpr int MT = decltype(size)::value;
    quantized_tile<l.bits, l.lines(), MT>(strip, x, size_t(t) * groups + size_t(g0) * MT, n, partial + (t - token0) * kPanel,
                                          g0 == 0);
  });
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
inline void float_strip(const Matrix& w, const Activations& x, int panel, int c0, int n, int token0, int token1, float* columns,
                        float* partial) {
  unpack_floats<f>(w.data + size_t(panel) * w.panel_bytes, c0, n, columns);
  for_each_tile<kTile>(token0, token1, [&](int t, auto size) {
    constexpr int MT = decltype(size)::value;
    float_tile<MT>(columns, x.x + size_t(t) * w.columns + size_t(c0) * MT, n, partial + (t - token0) * kPanel, c0 == 0);
  });
}

// --- both ---

// Tokens [token0, token1) of panels [panel0, panel1), at most kTokenBlock and kPanelBlock, strip by strip.
template <Format f>
inline void block_of(const Matrix& w, const Activations& x, float* y, bool add_to, int panel0, int panel1, int token0, int token1,
                     Scratch& scratch) {
  constexpr Layout l = layout(f);
  const int width = x.group ? kStripLines * 4 : kStripColumns;
  for (int c0 = 0; c0 < w.columns; c0 += width) {
    const int n = c0 + width < w.columns ? width : w.columns - c0;
    for (int p = panel0; p < panel1; p++) {
      float* partial = scratch.partial[p - panel0];
      if constexpr (l.bits > 0) {
        if (x.group) {
          quantized_strip<f>(w, x, p, c0 / l.group, n / l.group, token0, token1, scratch.strip, partial);
          continue;
        }
      }
      float_strip<f>(w, x, p, c0, n, token0, token1, scratch.columns, partial);
    }
  }
  for (int p = panel0; p < panel1; p++) finish_block(w, scratch.partial[p - panel0], y, add_to, p, token0, token1);
}

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
  for (int t = 0; t < x.tokens; t += kTokenBlock) {
    const int token1 = t + kTokenBlock < x.tokens ? t + kTokenBlock : x.tokens;
    for (int p = panel0; p < panel1; p += kPanelBlock)
      block_of<f>(w, x, y, add_to, p, p + kPanelBlock < panel1 ? p + kPanelBlock : panel1, t, token1, scratch);
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
