// Whole operations on a batch: each splits its work over a pool.
#pragma once

#include <vector>

#include "attention_plan.h"
#include "cache.h"
#include "pool.h"
#include "weight.h"

namespace ventoux {

// One of the matrices that are multiplied with the same activations; y is [tokens, weight->rows()].
struct Product {
  const Weight* weight;
  float* y;
};

// Activations [tokens, columns], as they are or normed on their way to the products: x / rms(x) * weight, which is left in `normed`.
struct Input {
  const float* x;
  int tokens, columns;
  const float* weight = nullptr;
  float eps = 0;
  float* normed = nullptr;
};

// y (+)= x . w for `count` products; y lies apart from x, which threads may still read. `rounding`: of the activations that block formats are
// multiplied with.
void linear(Pool& pool, const Input& x, const Product* products, int count, bool add, Rounding rounding);

// y = silu(gate . x) * (up . x), [tokens, gate.rows()]; `spare` is of the same size, and may be written to.
void gated(Pool& pool, const Input& x, const Weight& gate, const Weight& up, float* y, float* spare, Rounding rounding);

void rms_norm(Pool& pool, const float* x, const float* weight, float eps, int rows, int columns, float* y);

void swiglu(Pool& pool, float* gate, const float* up, size_t n);

// What AttentionInput says; out is [T, heads, D]. `plan` is memory to work in.
void attention(Pool& pool, const Cache& cache, const AttentionInput& in, const std::vector<Span>& spans, float* out, Plan& plan);

}  // namespace ventoux
