// Where a sorted list would be cut, without sorting it: what top_k and top_p ask of logits.
#pragma once

#include <cstddef>

namespace ventoux {

// The k-th largest of n values, 1 <= k <= n. None is a NaN.
float kth_largest(const float* values, size_t n, size_t k);

// The smallest of the fewest largest weights that hold `share` of the sum of all n, 0 < share <= 1. None is negative, not all
// are 0.
float nucleus_floor(const float* weights, size_t n, double share);

}  // namespace ventoux
