// bf16 weights . bf16 activations: a panel and a tile of tokens, or two panels.
#pragma once

#include "quantized.h"
#include "tiles.h"

namespace ventoux {
namespace {

// to[MT][16] = a panel . a tile of tokens, whose pairs begin at x.
template <Format f, int MT>
inline void bf16_tile(const uint8_t* panel, const int32_t* x, int pairs, float* to) {
  Floats sum[MT];
  for (int t = 0; t < MT; t++) sum[t] = splat(0);
  for (int i = 0; i < pairs; i++) {
    const Bytes line = load_bytes(panel + size_t(i) * 64);
    __builtin_prefetch(panel + size_t(i) * 64 + kAhead);
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++) sum[t] = Bf16<f>::add(sum[t], line, x[size_t(i) * MT + t]);
  }
  for (int t = 0; t < MT; t++) store(to + t * kPanel, sum[t]);
}

// to[2][MT][16] = two panels . a tile of tokens. At each `every` pairs asks L2 for a line of what lies `ahead` of them.
template <Format f, int MT>
inline void bf16_tile_of_two(const uint8_t* a, const uint8_t* b, size_t ahead, int every, const int32_t* x, int pairs, float* to) {
  Floats sum[2][MT];
  for (int p = 0; p < 2; p++)
    for (int t = 0; t < MT; t++) sum[p][t] = splat(0);
  for (int i = 0; i < pairs; ahead += 64) {
    __builtin_prefetch(a + ahead, 0, 2);
    __builtin_prefetch(b + ahead, 0, 2);
    for (const int end = i + every < pairs ? i + every : pairs; i < end; i++) {
      const Bytes line = load_bytes(a + size_t(i) * 64), other = load_bytes(b + size_t(i) * 64);
#pragma GCC unroll 16
      for (int t = 0; t < MT; t++) {
        sum[0][t] = Bf16<f>::add(sum[0][t], line, x[size_t(i) * MT + t]);
        sum[1][t] = Bf16<f>::add(sum[1][t], other, x[size_t(i) * MT + t]);
      }
    }
  }
  for (int p = 0; p < 2; p++)
    for (int t = 0; t < MT; t++) store(to + (p * MT + t) * kPanel, sum[p][t]);
}

// Two panels . the whole tiles of tokens [token0, token1): they stay in L2 while the tiles pass, and those that lie `ahead` come there
// meanwhile. Calls done(token, sums[2][MT][16]) for each tile -> the token behind the last one.
template <Format f, int MT, class Done>
inline int bf16_tiles(const uint8_t* a, const uint8_t* b, size_t ahead, const int32_t* x, int pairs, int token0, int token1, Done done) {
  const int tiles = (token1 - token0) / MT, end = token0 + tiles * MT;
  alignas(64) float totals[2 * MT * kPanel];
  for (int t = token0; t < end; t += MT, ahead += size_t(pairs / tiles) * 64) {
    bf16_tile_of_two<f, MT>(a, b, ahead, tiles, x + size_t(t) * size_t(pairs), pairs, totals);
    done(t, totals);
  }
  return end;
}

}  // namespace
}  // namespace ventoux
