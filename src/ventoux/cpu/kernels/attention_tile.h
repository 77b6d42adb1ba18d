// One tile of attention: a few queries of one KV head over one block of 256 positions.
#pragma once

#include "store_kv.h"

namespace ventoux {
namespace {

// A maximum below all scores: of blocks in which a query sees nothing. (Differences of infinities would be NaN.)
constexpr float kNothing = -3e38f;

template <KvType kv>
inline Floats load_kv(const uint8_t* p, size_t index) {
  if constexpr (kv == KvType::F32) return load((const float*)p + index);
  if constexpr (kv == KvType::F16) return load_half((const uint16_t*)p + index);
  return load_i8(p + index);
}

// Few queries wait for keys and values: while keys are multiplied their values are asked for, and while these are weighed the next block's
// keys, so that memory is busy all the time. Panels follow each other in an order that the core's own prefetching does not know.
// (Where widening takes many instructions, nobody waits.)
constexpr int kFewQueries = 4;
template <int Q>
constexpr bool kWaits = !kSlowHalf && Q <= kFewQueries;
inline void fetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }  // to L2: L1 has other lines to wait for

// Adds q . components [first, last) of the keys of P panels, 16 lanes each: q is [D][Q], keys [D][16].
template <KvType kv, int Q, int P>
inline void add_products(const float* q, const uint8_t* const* panels, size_t values, int first, int last, Floats (&sum)[Q][P]) {
  for (int d = first; d < last; d++) {
    constexpr int row = kPanel * int(kv_bytes(kv));  // bytes, of one component's keys
    if (kWaits<Q> && d % (64 / row) == 0)
      for (int p = 0; p < P; p++) fetch(panels[p] + values + d * row);
    Floats key[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) key[p] = load_kv<kv>(panels[p], size_t(d) * kPanel);
#pragma GCC unroll 12
    for (int i = 0; i < Q; i++) {
      const Floats x = splat(q[size_t(d) * Q + i]);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) sum[i][p] = fma(key[p], x, sum[i][p]);
    }
  }
}

template <int Q, int P>
inline void clear(Floats (&sum)[Q][P]) {
  for (int i = 0; i < Q; i++)
    for (int p = 0; p < P; p++) sum[i][p] = splat(0);
}

// to[Q][kBlock] = q . keys of P panels. Behind q stand the sums of each 16 components, [D / 16][Q]: what a middle is multiplied
// with.
template <KvType kv, int Q, int P>
inline void score(const float* q, const uint8_t* const* panels, size_t values, int D, float* to) {
  Floats sum[Q][P];
  if constexpr (kv != KvType::I8) {
    clear(sum);
    add_products<kv>(q, panels, values, 0, D, sum);
    for (int p = 0; p < P; p++)
      for (int i = 0; i < Q; i++) store(to + i * kBlock + p * kPanel, sum[i][p]);
    return;
  }
  const int padded = round_up(D);
  const float* sums = q + size_t(padded) * Q;
  for (int d = 0; d < D; d += kPanel) {
    clear(sum);
    add_products<kv>(q, panels, values, d, d + kPanel < D ? d + kPanel : D, sum);
    for (int p = 0; p < P; p++) {
      const uint16_t* scales = (const uint16_t*)(panels[p] + size_t(kPanel) * padded) + size_t(d) * 2;
      const Floats scale = load_half(scales), middle = load_half(scales + kPanel);
      for (int i = 0; i < Q; i++) {
        float* at = to + i * kBlock + p * kPanel;
        const Floats before = d == 0 ? splat(0) : load(at);
        store(at, fma(middle, splat(sums[size_t(d / kPanel) * Q + i]), fma(sum[i][p], scale, before)));
      }
    }
  }
}

// to[Q][.] += weights[Q][kBlock] . values of keys [low, high) of a block, P times 16 components; values [D / 16][16][16]. `next`: the
// next block's panels, if there is one.
template <KvType kv, int Q, int P>
inline void weigh(const float* weights, const uint8_t* const* panels, const uint8_t* const* next, size_t values, size_t first, int low,
                  int high, float* to, int stride) {
  Floats sum[Q][P];
  for (int i = 0; i < Q; i++)
    for (int p = 0; p < P; p++) sum[i][p] = load(to + i * stride + p * kPanel);
  for (int key = low; key < high;) {
    const uint8_t *here = panels[key / kPanel] + values + first, *behind = kWaits<Q> && next ? next[key / kPanel] + first : nullptr;
    const int end = (key | (kPanel - 1)) < high ? (key | (kPanel - 1)) + 1 : high;
    for (; key < end; key++) {
      Floats value[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) value[p] = load_kv<kv>(here, size_t((key % kPanel + p * kPanel) * kPanel));
      // As many bytes as these.
      constexpr int row = kPanel * int(kv_bytes(kv)), each = row < 64 ? 64 / row : 1;
      if (kWaits<Q> && behind && key % each == 0)
        for (int p = 0; p < P; p++) fetch(behind + (key % kPanel + p * kPanel) * row);
#pragma GCC unroll 12
      for (int i = 0; i < Q; i++) {
        const Floats x = splat(weights[i * kBlock + key]);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) sum[i][p] = fma(value[p], x, sum[i][p]);
      }
    }
  }
  for (int i = 0; i < Q; i++)
    for (int p = 0; p < P; p++) store(to + i * stride + p * kPanel, sum[i][p]);
}

// Panels, or 16 components, at once beside Q queries: enough sums that the latency of adding is hidden.
template <int Q>
constexpr int kBeside = Q >= kSums ? 1 : (kSums + Q - 1) / Q;

template <KvType kv, int Q>
inline void weigh_all(const AttentionShape& s, const float* weights, const uint8_t* const* panels, const uint8_t* const* next, int low,
                      int high, float* to) {
  const int padded = round_up(s.head_dim);
  const size_t values = key_bytes(s), step = size_t(kPanel) * kv_bytes(kv);
  int d = 0;
  for (; low < high && d + kBeside<Q> * kPanel <= padded; d += kBeside<Q> * kPanel)
    weigh<kv, Q, kBeside<Q>>(weights, panels, next, values, size_t(d) * step, low, high, to + d, padded);
  for (; low < high && d < padded; d += kPanel)
    weigh<kv, Q, 1>(weights, panels, next, values, size_t(d) * step, low, high, to + d, padded);
}

// Which keys of a block a query sees: [low, high), counted from the block's first position.
struct Seen {
  int low, high;
};

// W=4, position 258, block 1 (256..511): sees 255..258, of which 256..258 are in the block: [0, 3).
inline Seen seen(const AttentionShape& s, const Queries& of, int query, int block) {
  const int64_t high = int64_t(of.start) + query / of.group + 1 - int64_t(block) * kBlock, low = high - s.window;
  return {low < 0 ? 0 : low < kBlock ? int(low) : kBlock, high > kBlock ? kBlock : high < 0 ? 0 : int(high)};
}

// exp(score - max) in place for keys [low, high) of a block, 0 for others that share a panel with them -> max and sum.
inline void softmax_numerators(float* scores, Seen seen, float& most, float& total) {
  const int begin = seen.low & ~(kPanel - 1), end = round_up(seen.high);
  for (int i = begin; i < seen.low; i++) scores[i] = -__builtin_inff();
  for (int i = seen.high; i < end; i++) scores[i] = -__builtin_inff();
  Floats peak = load(scores + begin);
  for (int i = begin + kPanel; i < end; i += kPanel) peak = max(peak, load(scores + i));
  most = reduce_max(peak);
  const Floats top = splat(most);
  for (int i = begin; i < end; i += kPanel) store(scores + i, exp(sub(load(scores + i), top)));
  for (int i = begin; i < seen.low; i++) scores[i] = 0;
  for (int i = seen.high; i < end; i++) scores[i] = 0;
  Floats sum = splat(0);
  for (int i = begin; i < end; i += kPanel) sum = add(sum, load(scores + i));
  total = reduce_add(sum);
}

// What the queries of a tile found, in some blocks: maxima and sums of exponentials in 16 lanes, weighted values a query.
struct Found {
  float *most, *total, *values;
};

inline Found clear(Found found, int queries, int head_dim) {
  store(found.most, splat(kNothing));
  store(found.total, splat(0));
  for (int i = 0; i < queries * round_up(head_dim); i += kPanel) store(found.values + i, splat(0));
  return found;
}

// One block for Q queries, packed as [D][Q] -> `found`, which was cleared. Queries that see nothing of it leave it so.
template <KvType kv, int Q>
inline void attend_tile(const AttentionShape& s, const Seen* sees, const float* q, const uint8_t* const* panels,
                        const uint8_t* const* next, float* scores, Found found) {
  Seen any = {kBlock, 0}, all = {0, kBlock};
  for (int i = 0; i < Q; i++) {
    if (sees[i].low < sees[i].high) {
      any = {sees[i].low < any.low ? sees[i].low : any.low, sees[i].high > any.high ? sees[i].high : any.high};
    }
    all = {sees[i].low > all.low ? sees[i].low : all.low, sees[i].high < all.high ? sees[i].high : all.high};
  }
  int panel = any.low / kPanel;
  const int end = round_up(any.high) / kPanel;
  constexpr int beside = kBeside<Q>;
  const size_t values = key_bytes(s);
  for (; panel + beside <= end; panel += beside)
    score<kv, Q, beside>(q, panels + panel, values, s.head_dim, scores + panel * kPanel);
  for (; panel < end; panel++) score<kv, Q, 1>(q, panels + panel, values, s.head_dim, scores + panel * kPanel);
  for (int i = 0; i < Q; i++) {
    if (sees[i].low >= sees[i].high) continue;
    float* row = scores + i * kBlock;
    softmax_numerators(row, sees[i], found.most[i], found.total[i]);
    if constexpr (kv == KvType::I8)
      for (int p = sees[i].low / kPanel; p < round_up(sees[i].high) / kPanel; p++) {
        const float* scales = (const float*)(panels[p] + panel_bytes(s)) - kPanel;
        store(row + p * kPanel, mul(load(row + p * kPanel), load(scales)));
      }
  }
  // Keys that all of them see go together. What a query does not see must not reach it even with a weight of 0, for it
  // may be infinite.
  const int padded = round_up(s.head_dim), first = all.low < all.high ? all.low : kBlock;
  for (int i = 0; i < Q; i++)
    weigh_all<kv, 1>(s, scores + i * kBlock, panels, nullptr, sees[i].low, sees[i].high < first ? sees[i].high : first,
                     found.values + i * padded);
  if (first == kBlock) return;
  weigh_all<kv, Q>(s, scores, panels, next, all.low, all.high, found.values);
  for (int i = 0; i < Q; i++)
    weigh_all<kv, 1>(s, scores + i * kBlock, panels, nullptr, all.high, sees[i].high, found.values + i * padded);
}

}  // namespace
}  // namespace ventoux
