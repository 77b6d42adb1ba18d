// Softmax attention of a span's queries over the panels of one KV head, block by block of 256 positions.
//
// Each (query, block) has a maximum, a sum of exponentials and weighted values of its own, made in the order of positions;
// they are added to what the query found before in the order of blocks. So no bit depends on the tile that a query is in,
// on how a prompt was cut into chunks, or on how many threads share the blocks.
#pragma once

#include "attention_tile.h"

namespace ventoux {
namespace {

// Adds what n queries found in one block more.
inline void add_block(Found to, Found block, int n, int head_dim) {
  const Floats before = load(to.most), here = load(block.most), top = max(before, here);
  float keep[kPanel], take[kPanel];
  store(keep, exp(sub(before, top)));
  store(take, exp(sub(here, top)));
  store(to.most, top);
  store(to.total, fma(load(block.total), load(take), mul(load(to.total), load(keep))));
  for (int i = 0; i < n; i++)
    for (int d = i * round_up(head_dim); d < (i + 1) * round_up(head_dim); d += kPanel)
      store(to.values + d, fma(load(block.values + d), splat(take[i]), mul(load(to.values + d), splat(keep[i]))));
}

template <int n>
struct Tile {
  static constexpr int value = n;
};

// Calls visit(first, Tile<n>, i) for tile i of n queries, of those in [0, count).
template <class Visit>
inline void for_each_query_tile(int count, Visit visit) {
  int at = 0, i = 0;
  for (; at + kQueries <= count; at += kQueries) visit(at, Tile<kQueries>(), i++);
  if constexpr (kQueries > 6)
    for (; at + 6 <= count; at += 6) visit(at, Tile<6>(), i++);
  if constexpr (kQueries > 4)
    for (; at + 4 <= count; at += 4) visit(at, Tile<4>(), i++);
  if constexpr (kQueries > 3)
    for (; at + 3 <= count; at += 3) visit(at, Tile<3>(), i++);
  if constexpr (kQueries > 2)
    for (; at + 2 <= count; at += 2) visit(at, Tile<2>(), i++);
  for (; at < count; at++) visit(at, Tile<1>(), i++);
}

// The part of `found` that belongs to tile i, which begins with query `first`: all maxima and sums lie before the values.
inline Found part(float* found, int queries, int first, int i, int head_dim) {
  return {found + 2 * kPanel * i, found + 2 * kPanel * i + kPanel, found + 2 * kPanel * queries + first * round_up(head_dim)};
}

inline float* query_out(const AttentionShape& s, const Queries& of, int query) {
  return of.out + (size_t(query / of.group) * s.heads + query % of.group) * s.head_dim;
}

inline void write_out(const AttentionShape& s, const Queries& of, int first, int n, Found found) {
  const int D = s.head_dim;
  for (int i = 0; i < n; i++) {
    float* out = query_out(s, of, first + i);
    const float* values = found.values + i * round_up(D);
    const Floats total = splat(found.total[i]);
    int d = 0;
    for (; d + kPanel <= D; d += kPanel) store(out + d, div(load(values + d), total));
    if (d == D) continue;
    float lanes[kPanel];
    store(lanes, div(load(values + d), total));
    for (int j = d; j < D; j++) out[j] = lanes[j - d];
  }
}

// Floats that a packed query takes: its components, and the sums of each 16 of them.
inline size_t packed_floats(const AttentionShape& s) { return size_t(round_up(s.head_dim)) + size_t(round_up(s.head_dim) / kPanel); }

// The queries of a tile, rotated and scaled, as [D][Q], and for int8 keys, behind them, their sums [D / 16][Q].
template <int Q>
inline void pack_queries(const AttentionShape& s, const Queries& of, int first, float* row, float* to) {
  const int D = s.head_dim;
  const float scale = 1 / __builtin_sqrtf(float(D));
  for (int i = 0; i < Q; i++) {
    const size_t token = size_t((first + i) / of.group), head = size_t((first + i) % of.group), angle = token * (D / 2);
    rotate(of.q + (token * s.heads + head) * D, D, of.cos + angle, of.sin + angle, scale, row);
    for (int d = 0; d < D; d++) to[d * Q + i] = row[d];
    if (s.kv != KvType::I8) continue;
    float* sums = to + size_t(round_up(D)) * Q + i;
    for (int d = 0; d < D; d++) {
      float& sum = sums[size_t(d / kPanel) * Q];
      sum = d % kPanel ? sum + row[d] : row[d];
    }
  }
}

// Where the panels of a block are. Those that nobody has written, or that have been overwritten, are not looked at.
inline void find_panels(const AttentionShape& s, const Queries& of, const uint8_t* ring, int block, const uint8_t** panels) {
  const size_t bytes = panel_bytes(s);
  for (int i = 0, panel = block * (kBlock / kPanel); i < kBlock / kPanel; i++, panel++)
    panels[i] = panel >= of.chunk_panel ? of.chunk + size_t(panel - of.chunk_panel) * bytes
                                        : ring + size_t(panel % of.ring_panels) * bytes;
}

// fp16 panels [first, last) of a block as fp32, for machines that take long to widen a number, and many queries.
inline void widen_panels(const AttentionShape& s, int first, int last, const uint8_t** panels, float* to) {
  const size_t numbers = panel_bytes(s) / sizeof(uint16_t);
  for (int i = first; i < last; i++, to += numbers) {
    for (size_t j = 0; j < numbers; j += kPanel) store(to + j, load_half((const uint16_t*)panels[i] + j));
    panels[i] = (const uint8_t*)to;
  }
}

// A thread's scratch, in floats: what all the queries found, what a tile found in one block, its scores, the queries as
// [D][Q], one of them, and widened panels.
struct Workspace {
  float *sum, *one, *scores, *packed, *row, *wide, *end;
};

inline Workspace divide(const AttentionShape& s, int n, float* memory) {
  Workspace at;
  const size_t D = size_t(round_up(s.head_dim));
  at.sum = memory;
  at.one = at.sum + found_floats(s, n);
  at.scores = at.one + found_floats(s, kQueries);
  at.packed = at.scores + kQueries * kBlock;
  at.row = at.packed + size_t(n) * packed_floats(s);
  at.wide = at.row + 2 * D;
  at.end = at.wide + (kSlowHalf && s.kv == KvType::F16 ? 2 * kBlock * D : 0);
  return at;
}

inline size_t attention_scratch(const AttentionShape& s, int n) { return uintptr_t(divide(s, n, nullptr).end); }

// One block for the queries of a piece: added to their sums, or written to `found`.
template <KvType kv>
inline void attend_block(const AttentionShape& s, const Queries& of, int block, const uint8_t* const* panels,
                         const uint8_t* const* next, const Workspace& at, float* found) {
  const int D = s.head_dim, n = of.last - of.first;
  for_each_query_tile(n, [&](int first, auto tile, int i) {
    constexpr int Q = tile.value;
    Seen sees[Q];
    bool some = false;
    for (int j = 0; j < Q; j++) {
      sees[j] = seen(s, of, of.first + first + j, block);
      some |= sees[j].low < sees[j].high;
    }
    if (!some && !found) return;
    const Found here = clear(found ? part(found, n, first, i, D) : part(at.one, kQueries, 0, 0, D), Q, D);
    if (!some) return;
    attend_tile<kv, Q>(s, sees, at.packed + size_t(first) * packed_floats(s), panels, next, at.scores, here);
    if (!found) add_block(part(at.sum, n, first, i, D), here, Q, D);
  });
}

template <KvType kv>
inline void attend_of(const AttentionShape& s, const Queries& of, int block0, int block1, float* found, float* scratch) {
  const int D = s.head_dim, n = of.last - of.first;
  const bool whole = block0 == 0 && block1 == of.blocks;
  const Workspace at = divide(s, n, scratch);
  for_each_query_tile(n, [&](int first, auto tile, int i) {
    pack_queries<tile.value>(s, of, of.first + first, at.row, at.packed + size_t(first) * packed_floats(s));
    if (whole) clear(part(at.sum, n, first, i, D), tile.value, D);
  });
  for (int b = block0; b < block1; b++) {
    const uint8_t *panels[kBlock / kPanel], *next[kBlock / kPanel];
    find_panels(s, of, of.ring, of.block + b, panels);
    const bool more = b + 1 < of.blocks;  // of this head, if maybe in another part
    const uint8_t* ring = more ? of.ring : of.next_ring;
    if (ring) find_panels(s, of, ring, of.block + (more ? b + 1 : 0), next);
    float* to = whole ? nullptr : found + size_t(b) * found_floats(s, n);
    if constexpr (kSlowHalf && kv == KvType::F16)
      if (n > 2 * kQueries) {
        // The first query sees the oldest keys, the last one the newest.
        const int low = seen(s, of, of.first, of.block + b).low, high = seen(s, of, of.last - 1, of.block + b).high;
        widen_panels(s, low / kPanel, round_up(high) / kPanel, panels, at.wide);
        AttentionShape wide = s;
        wide.kv = KvType::F32;
        attend_block<KvType::F32>(wide, of, of.block + b, panels, nullptr, at, to);
        continue;
      }
    attend_block<kv>(s, of, of.block + b, panels, ring ? next : nullptr, at, to);
  }
  if (!whole) return;
  for_each_query_tile(n, [&](int first, auto tile, int i) {
    write_out(s, of, of.first + first, tile.value, part(at.sum, n, first, i, D));
  });
}

inline void attend(const AttentionShape& s, const Queries& of, int block0, int block1, float* found, float* scratch) {
  if (s.kv == KvType::F32) attend_of<KvType::F32>(s, of, block0, block1, found, scratch);
  else if (s.kv == KvType::F16) attend_of<KvType::F16>(s, of, block0, block1, found, scratch);
  else attend_of<KvType::I8>(s, of, block0, block1, found, scratch);
}

inline void merge(const AttentionShape& s, const Queries& of, const float* found, float* scratch) {
  const int D = s.head_dim, n = of.last - of.first;
  for_each_query_tile(n, [&](int first, auto tile, int i) {
    const Found sum = clear(part(scratch, kQueries, 0, 0, D), tile.value, D);
    for (int b = 0; b < of.blocks; b++)
      add_block(sum, part(const_cast<float*>(found) + size_t(b) * found_floats(s, n), n, first, i, D), tile.value, D);
    write_out(s, of, of.first + first, tile.value, sum);
  });
}

}  // namespace
}  // namespace ventoux
