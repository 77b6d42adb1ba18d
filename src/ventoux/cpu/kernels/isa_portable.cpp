#include "simd_portable.h"
// after the lanes that they are written in
#include "table.h"

namespace ventoux {
const Kernels kPortable = kTable;
}
