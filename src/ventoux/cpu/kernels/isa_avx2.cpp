#include "simd_avx2.h"
// after the lanes that they are written in
#include "table.h"

namespace ventoux {
const Kernels kAvx2 = kTable;
}
