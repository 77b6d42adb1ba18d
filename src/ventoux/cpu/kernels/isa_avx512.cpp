#include "simd_avx512.h"
// after the lanes that they are written in
#include "table.h"

namespace ventoux {
const Kernels kAvx512 = kTable;
}
