// Rotary embedding (https://arxiv.org/abs/2104.09864), and writing keys and values into the KV cache's panels.
#pragma once

#include "elementwise.h"

namespace ventoux {
namespace {

// to[D] = x rotated and scaled; components i and i + D/2 are a pair.
inline void rotate(const float* x, int head_dim, const float* cos, const float* sin, float scale, float* to) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    to[i] = (a * cos[i] - b * sin[i]) * scale;
    to[i + half] = (b * cos[i] + a * sin[i]) * scale;
  }
}

// Rounds n numbers to int8 in one scale, which is returned: NaN if one of them is not finite, for that must not be lost.
inline float round_to_int8(const float* x, int n, int8_t* to) {
  Floats most = splat(0), bad = splat(0);
  for (int i = 0; i < n; i += kPanel) {
    most = max(most, abs(load(x + i)));
    bad = fma(load(x + i), splat(0), bad);
  }
  const float largest = reduce_max(most);
  const Floats inverse = splat(largest > 0 ? 127 / largest : 0);
  for (int i = 0; i < n; i += kPanel) store_int8(to + i, min(max(mul(load(x + i), inverse), splat(-127)), splat(127)));
  return largest / 127 + reduce_add(bad);
}

template <class Number>
inline void store_lane(const Number* row, int n, bool key, Number* plane, int lane) {
  for (int d = 0; d < n; d++) plane[key ? d * kPanel + lane : (d / kPanel * kPanel + lane) * kPanel + d % kPanel] = row[d];
}

// Rounds n <= 16 numbers to int8 around their middle; both are rounded to fp16 first. NaN as above.
inline void round_around_middle(const float* x, int n, int8_t* to, uint16_t* scale, uint16_t* middle) {
  float low = x[0], high = x[0], bad = 0;
  for (int i = 0; i < n; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high, bad += x[i] * 0;
  uint16_t narrow[kPanel];
  store_half(narrow, splat(low / 2 + high / 2 + bad));
  *middle = narrow[0];
  float m[kPanel];
  store(m, load_half(narrow));
  const float above = high - m[0], below = m[0] - low;
  store_half(narrow, splat((above > below ? above : below) / 127 + bad));
  *scale = narrow[0];
  float s[kPanel], padded[kPanel] = {};
  store(s, load_half(narrow));
  for (int i = 0; i < n; i++) padded[i] = x[i];
  const Floats inverse = splat(s[0] > 0 ? 1 / s[0] : 0);
  store_int8(to, min(max(mul(sub(load(padded), splat(m[0])), inverse), splat(-127)), splat(127)));
}

// One token's key or value [D] into lane `lane` of its plane. `row` is zero from D on; `narrow` has room for it.
inline void store_row(const AttentionShape& s, const float* row, bool key, uint8_t* plane, int lane, void* narrow) {
  const int n = round_up(s.head_dim);
  if (s.kv == KvType::F32) return store_lane(row, n, key, (float*)plane, lane);
  if (s.kv == KvType::F16) {
    for (int i = 0; i < n; i += kPanel) store_half((uint16_t*)narrow + i, load(row + i));
    return store_lane((const uint16_t*)narrow, n, key, (uint16_t*)plane, lane);
  }
  uint8_t* behind = plane + size_t(n) * kPanel;
  if (key) {
    uint16_t* scales = (uint16_t*)behind + lane;
    for (int i = 0; i < n; i += kPanel, scales += 2 * kPanel)
      round_around_middle(row + i, s.head_dim - i < kPanel ? s.head_dim - i : kPanel, (int8_t*)narrow + i, scales, scales + kPanel);
  } else {
    ((float*)behind)[lane] = round_to_int8(row, n, (int8_t*)narrow);
  }
  store_lane((const int8_t*)narrow, n, key, (int8_t*)plane, lane);
}

inline void store_kv(const AttentionShape& s, const float* k, const float* v, const float* cos, const float* sin, uint8_t* panel,
                     int lane, float* scratch) {
  const int D = s.head_dim, n = round_up(D);
  for (int i = D; i < n; i++) scratch[i] = 0;
  rotate(k, D, cos, sin, 1, scratch);
  store_row(s, scratch, true, panel, lane, scratch + n);
  for (int i = 0; i < D; i++) scratch[i] = v[i];
  store_row(s, scratch, false, panel + key_bytes(s), lane, scratch + n);
}

}  // namespace
}  // namespace ventoux
