// What sampling asks of logits and weights: where a sorted list would be cut, without sorting it, and what is drawn.
#pragma once

#include <cstddef>

namespace ventoux {

// The k-th largest of n values, 1 <= k <= n. None is a NaN.
float kth_largest(const float* values, size_t n, size_t k);

// The smallest of the fewest largest weights that hold `share` of the sum of all n, 0 < share <= 1. None is negative, not all
// are 0.
float nucleus_floor(const float* weights, size_t n, double share);

// The first of n weights with which their running sum passes `share` of the whole, 0 <= share < 1: drawn with its weight's
// probability where `share` is a uniform random number. None is negative, not all are 0, and none that is 0 is drawn.
size_t draw(const float* weights, size_t n, double share);

}  // namespace ventoux
