// Softmax attention of one query position over the ring of its sequence and the chunk that is being added.
//
// The chunk is read beside the ring, not from it: writing it first could overwrite keys that its first queries still
// see. Keys are visited in the order of their positions and every sum is grouped by position, so that the result does
// not depend, to the last bit, on how a prompt was cut into chunks.
#pragma once

#include "elementwise.h"

namespace ventoux {
namespace {

// Query heads that are scored together against one load of the keys.
constexpr int kHeads = 4;

template <bool half>
inline Floats load_kv(const uint8_t* p, size_t index) {
  if constexpr (half) return load_half((const uint16_t*)p + index);
  return load((const float*)p + index);
}

// scores[h * stride + i] = q[h] . key of slot0 + i, for i in [0, n): `keys` are panels of 16 slots, [panel][head_dim][16].
template <bool half, int H>
inline void score(const float* q, int head_dim, const uint8_t* keys, int slot0, int n, float scale, float* scores, size_t stride) {
  for (int slot = slot0 & ~15; slot < slot0 + n; slot += kPanel) {
    const size_t panel = size_t(slot) * round_up(head_dim);
    Floats sum[H];
    for (int h = 0; h < H; h++) sum[h] = splat(0);
    for (int d = 0; d < head_dim; d++) {
      const Floats key = load_kv<half>(keys, panel + size_t(d) * kPanel);
#pragma GCC unroll 4
      for (int h = 0; h < H; h++) sum[h] = fma(key, splat(q[h * head_dim + d]), sum[h]);
    }
    const int first = slot < slot0 ? slot0 - slot : 0, last = slot + kPanel > slot0 + n ? slot0 + n - slot : kPanel;
    for (int h = 0; h < H; h++) {
      const Floats scaled = mul(sum[h], splat(scale));
      float* to = scores + h * stride;
      const int at = slot - slot0;  // negative where the first panel begins before slot0
      if (last - first == kPanel) {
        store(to + at, scaled);
        continue;
      }
      float lanes[kPanel];
      store(lanes, scaled);
      for (int i = first; i < last; i++) to[at + i] = lanes[i];
    }
  }
}

// exp(score - max) in place for entries [first, n); entries before `first` become 0 -> their sum. `n` is a multiple of 16.
inline float softmax_numerators(float* scores, int first, int valid, int n) {
  for (int i = 0; i < first; i++) scores[i] = -__builtin_inff();
  for (int i = valid; i < n; i++) scores[i] = -__builtin_inff();
  Floats peak = load(scores);
  for (int i = kPanel; i < n; i += kPanel) peak = max(peak, load(scores + i));
  const Floats most = splat(reduce_max(peak));
  Floats total = splat(0);
  for (int i = 0; i < n; i += kPanel) {
    const Floats p = exp(sub(load(scores + i), most));
    store(scores + i, p);
    total = add(total, p);
  }
  for (int i = 0; i < first; i++) scores[i] = 0;
  return reduce_add(total);
}

// A run of consecutive positions that lie in consecutive slots of the ring or of the chunk.
struct Run {
  const uint8_t *keys, *values;
  int slot, count;
};

// The runs that hold positions [low, position]: at most two in the ring (it wraps), then one in the chunk.
inline int runs_of(const AttentionShape& s, const Span& span, int kv_head, int low, int position, const uint8_t* chunk_keys,
                   const uint8_t* chunk_values, Run* runs) {
  int count = 0;
  const int ring = span.ring.capacity;
  const size_t bytes = head_bytes(s, ring) * kv_head;
  for (int p = low; p < span.start;) {
    const int slot = p % ring, room = ring - slot, left = span.start - p, n = room < left ? room : left;
    runs[count++] = {span.ring.keys + bytes, span.ring.values + bytes, slot, n};
    p += n;
  }
  const int first = low > span.start ? low : span.start;
  runs[count++] = {chunk_keys, chunk_values, first - span.start, position - first + 1};
  return count;
}

template <bool half, int H>
inline void attend_heads(const AttentionShape& s, const Span& span, int token, int kv_head, const float* q,
                         const uint8_t* chunk_keys, const uint8_t* chunk_values, float* out, float* scores) {
  // W=4, position 6: low 3, sees 3..6. Scores stand at (position - base), base a multiple of 16, so that lanes depend
  // on positions alone.
  const int position = span.start + token, D = s.head_dim;
  const int low = position - s.window + 1 > 0 ? position - s.window + 1 : 0, base = low & ~15;
  const int n = (position - base + kPanel) & ~15;
  const size_t stride = size_t(n);
  Run runs[3];
  const int count = runs_of(s, span, kv_head, low, position, chunk_keys, chunk_values, runs);

  const float scale = 1 / __builtin_sqrtf(float(D));
  int at = low - base;
  for (int r = 0; r < count; at += runs[r++].count)
    score<half, H>(q, D, runs[r].keys, runs[r].slot, runs[r].count, scale, scores + at, stride);
  float total[H];
  for (int h = 0; h < H; h++) total[h] = softmax_numerators(scores + h * stride, low - base, at, n);

  for (int d = 0; d < D; d += kPanel) {
    Floats sum[H];
    for (int h = 0; h < H; h++) sum[h] = splat(0);
    at = low - base;
    for (int r = 0; r < count; at += runs[r++].count) {
      for (int i = 0; i < runs[r].count; i++) {
        const Floats value = load_kv<half>(runs[r].values, size_t(runs[r].slot + i) * round_up(D) + d);
#pragma GCC unroll 4
        for (int h = 0; h < H; h++) sum[h] = fma(value, splat(scores[h * stride + at + i]), sum[h]);
      }
    }
    for (int h = 0; h < H; h++) {
      const Floats mean = div(sum[h], splat(total[h]));
      if (d + kPanel <= D) {
        store(out + h * D + d, mean);
        continue;
      }
      float lanes[kPanel];
      store(lanes, mean);
      for (int i = d; i < D; i++) out[h * D + i] = lanes[i - d];
    }
  }
}

template <bool half>
inline void attend_of(const AttentionShape& s, const Span& span, int token, int kv_head, const float* q, const uint8_t* keys,
                      const uint8_t* values, float* out, float* scores) {
  int h = 0;
  const int group = s.heads / s.kv_heads;
  for (; h + kHeads <= group; h += kHeads)
    attend_heads<half, kHeads>(s, span, token, kv_head, q + h * s.head_dim, keys, values, out + h * s.head_dim, scores);
  for (; h < group; h++)
    attend_heads<half, 1>(s, span, token, kv_head, q + h * s.head_dim, keys, values, out + h * s.head_dim, scores);
}

inline void attend(const AttentionShape& s, const Span& span, int token, int kv_head, const float* q, const uint8_t* keys,
                   const uint8_t* values, float* out, float* scores) {
  (s.half ? attend_of<true> : attend_of<false>)(s, span, token, kv_head, q, keys, values, out, scores);
}

template <bool half>
inline void pack_chunk_of(const AttentionShape& s, const Span& span, int kv_head, const float* k, const float* v, uint8_t* keys,
                          uint8_t* values) {
  const int D = s.head_dim, padded = round_up(D);
  for (int t = 0; t < span.count; t++) {
    const size_t row = (size_t(t) * s.kv_heads + kv_head) * D, panel = size_t(t & ~15) * padded + (t & 15);
    for (int d = 0; d < padded; d += kPanel) {
      float key[kPanel] = {}, value[kPanel] = {};
      for (int i = 0; i < kPanel && d + i < D; i++) key[i] = k[row + d + i], value[i] = v[row + d + i];
      const size_t at = size_t(t) * padded + d;
      if constexpr (half) {
        uint16_t narrow[kPanel];
        store_half(narrow, load(key));
        for (int i = 0; i < kPanel; i++) ((uint16_t*)keys)[panel + size_t(d + i) * kPanel] = narrow[i];
        store_half((uint16_t*)values + at, load(value));
      } else {
        for (int i = 0; i < kPanel; i++) ((float*)keys)[panel + size_t(d + i) * kPanel] = key[i];
        store((float*)values + at, load(value));
      }
    }
  }
}

inline void pack_chunk(const AttentionShape& s, const Span& span, int kv_head, const float* k, const float* v, uint8_t* keys,
                       uint8_t* values) {
  (s.half ? pack_chunk_of<true> : pack_chunk_of<false>)(s, span, kv_head, k, v, keys, values);
}

}  // namespace
}  // namespace ventoux
