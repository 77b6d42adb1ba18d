// What the Python face of the kernels is made of: arrays, and checks of them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <climits>
#include <stdexcept>

#include "layer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ventoux {

using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out1 = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

inline void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// The size of an axis, as the kernels count; they round up to whole panels.
template <class Array>
inline int size(const Array& array, int axis) {
  require(array.shape(size_t(axis)) <= size_t(INT_MAX - kPanel), "an array is too long");
  return int(array.shape(size_t(axis)));
}

// "f32", "int16" or "mixed".
Rounding rounding_of(const std::string& compute);

// The sequences that cover a batch of `tokens`, none longer than the cache was told.
Sequences sequences_of(const Cache& cache, const Ints& slots, const Ints& starts, const Ints& counts, int tokens);

// Adds Pass and Layer to the module.
void bind_layer(nb::module_& m);

}  // namespace ventoux
