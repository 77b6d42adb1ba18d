// Whole operations on a batch: each splits its work over a pool.
#pragma once

#include <vector>

#include "cache.h"
#include "pool.h"
#include "weight.h"

namespace ventoux {

// One of the matrices that are multiplied with the same activations; y is [tokens, weight->rows()].
struct Product {
  const Weight* weight;
  float* y;
};

// y (+)= x . w for each product, x [tokens, columns]. `rounding`: of the activations that block formats are multiplied with.
void linear(Pool& pool, const float* x, int tokens, int columns, const std::vector<Product>& products, bool add,
            Rounding rounding);

void rms_norm(Pool& pool, const float* x, const float* weight, float eps, int rows, int columns, float* y);

void swiglu(Pool& pool, float* gate, const float* up, size_t n);

// Rotates q [T, heads, D] and k [T, kv_heads, D] by cos and sin [T, D / 2] (halves i and i + D/2 are a pair), attends, and
// puts k and v into the cache. out is [T, heads, D].
struct AttentionInput {
  int layer, heads, kv_heads, head_dim, tokens;
  const float *q, *k, *v, *cos, *sin;
};
void attention(Pool& pool, const Cache& cache, const AttentionInput& in, const std::vector<Span>& spans, float* out);

}  // namespace ventoux
