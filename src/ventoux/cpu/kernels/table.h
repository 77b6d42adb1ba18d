// All kernels of one instruction set. Included after a simd_*.h. Everything here has internal linkage, and nothing from
// the standard library is instantiated: code compiled for one instruction set must not be linked into another's place.
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "regroup.h"

namespace ventoux {
namespace {
constexpr Kernels kTable = {kName, form, regroup, linear, gated, gates, rms_norm, swiglu, weigh, store_kv, attend, merge, attention_scratch};
}
}  // namespace ventoux
