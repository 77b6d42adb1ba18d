// Norms and activations: RMSNorm (https://arxiv.org/abs/1910.07467), SwiGLU (https://arxiv.org/abs/2002.05202), exp, and
// what softmax sums.
#pragma once

#include "kernels.h"

namespace ventoux {
namespace {

// e^x: 2^n * 2^r with whole n and |r| <= 1/2; 2^r = e^(r ln 2) by its Taylor series to the 6th power: relative error under
// 3e-7. Outside [-87, 88] it saturates. NaN stays NaN: min and max give their second argument when one is not a number.
inline Floats exp(Floats x) {
  const Floats clipped = min(splat(88.0f), max(splat(-87.0f), x));
  const Floats n = round(mul(clipped, splat(1.44269504f)));
  // ln 2 in two parts, the first with few enough bits that n times it is exact.
  const Floats t = fnma(n, splat(-2.12194440e-4f), fnma(n, splat(0.693359375f), clipped));
  Floats p = splat(1.0f / 720);
  p = fma(p, t, splat(1.0f / 120));
  p = fma(p, t, splat(1.0f / 24));
  p = fma(p, t, splat(1.0f / 6));
  p = fma(p, t, splat(0.5f));
  p = fma(p, t, splat(1.0f));
  p = fma(p, t, splat(1.0f));
  return mul(p, power_of_two(n));
}

inline void rms_norm(const float* x, const float* weight, float eps, int n, float* y) {
  Floats squares = splat(0);
  int i = 0;
  for (; i + 16 <= n; i += 16) squares = fma(load(x + i), load(x + i), squares);
  float total = reduce_add(squares);
  for (; i < n; i++) total += x[i] * x[i];
  const float scale = 1 / __builtin_sqrtf(total / float(n) + eps);
  for (i = 0; i + 16 <= n; i += 16) store(y + i, mul(load(weight + i), mul(load(x + i), splat(scale))));
  for (; i < n; i++) y[i] = weight[i] * (x[i] * scale);
}

inline void swiglu(float* gate, const float* up, size_t n) {
  const Floats one = splat(1), zero = splat(0);
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Floats g = load(gate + i);
    store(gate + i, mul(div(g, add(one, exp(sub(zero, g)))), load(up + i)));
  }
  if (i == n) return;
  // The rest goes through lanes too: where a batch ends must not change a bit of its last row.
  float rest_gate[16] = {}, rest_up[16] = {};
  for (size_t j = i; j < n; j++) rest_gate[j - i] = gate[j], rest_up[j - i] = up[j];
  swiglu(rest_gate, rest_up, 16);
  for (size_t j = i; j < n; j++) gate[j] = rest_gate[j - i];
}

inline void weigh(const float* scores, float highest, float temperature, size_t n, float* weights) {
  // What exp saturates at is taken off: a score of -inf has weight 0, and to weights above 1e-30 it makes no difference. What is
  // hardly above it may come out a bit below.
  const Floats top = splat(highest), divisor = splat(temperature), least = exp(splat(-__builtin_inff()));
  const auto of = [&](const float* x) { return max(sub(exp(div(sub(load(x), top), divisor)), least), splat(0)); };
  size_t i = 0;
  for (; i + 16 <= n; i += 16) store(weights + i, of(scores + i));
  float rest[16] = {};
  for (size_t j = i; j < n; j++) rest[j - i] = scores[j];
  store(rest, of(rest));
  for (size_t j = i; j < n; j++) weights[j] = rest[j - i];
}

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

}  // namespace
}  // namespace ventoux
