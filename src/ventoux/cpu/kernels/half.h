// fp16 without the instruction for it. Internal linkage, as all that a translation unit of one instruction set may include.
#pragma once

#include <cstdint>
#include <cstring>

namespace ventoux {
namespace {

inline float from_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t to_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
// fp16 -> fp32: shift exponent and mantissa into place and let one multiplication by 2^112 rebias (subnormals too);
// what had the largest exponent (infinity, NaN) gets the largest again. No branch: 16 of them become vector code.
inline float from_half(uint16_t h) {
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, sign = uint32_t(h & 0x8000) << 16;
  const uint32_t special = int32_t(magnitude) >= 0x0f800000 ? 0x7f800000u : 0;
  return from_bits(to_bits(from_bits(magnitude) * from_bits(0x77800000u)) | special | sign);
}

}  // namespace
}  // namespace ventoux
