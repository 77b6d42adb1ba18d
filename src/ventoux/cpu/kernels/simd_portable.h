// 16 float lanes as an array: plain C++, the reference that the vector versions are tested against.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "kernels.h"

namespace ventoux {
namespace {

constexpr const char* kName = "portable";
constexpr int kTile = 4;
constexpr int kQuantizedTile = 2;
constexpr int kAtOnce = 1;  // one token's sums in 16 bits fill half of SSE2's 16 registers
constexpr int kScattered = 2;       // high parts are multiplied one by one where at most one token in so many has one
constexpr int kFromPanels = 1, kSuperblocksFromPanels = 1;
constexpr int kAheadOfOne = 4096;  // bytes, unpack.h
constexpr int kQueries = 2;        // attention's queries at once
constexpr int kSums = 1;  // sums that hide the latency of an fma
constexpr bool kSlowHalf = true;  // widening fp16 takes many instructions
constexpr bool multiplies_bf16() { return false; }
constexpr bool kHasBf16 = false;
template <Format f>
struct Bf16;  // of simd_avx512.h alone
constexpr bool kHasCrossed = false, kHasNibbles = false, kHasSuperblocks = false;
constexpr int kNibbleSteps = 16;  // of nibbles.h, which is not used here
constexpr bool adds_beside() { return false; }
template <Format f>
struct Crossed;  // of simd_avx512.h alone
template <Format f>
struct Nibbles;  // of the others alone
template <Format f>
struct Shorts;  // of simd_avx512.h alone
constexpr int kSignedOffset = 0;
constexpr bool kInPairs = false;
constexpr bool straight(int) { return false; }
template <int kBits>
struct Straight;  // of the others alone

struct Floats {
  float v[16];
};

#define LANES for (int i = 0; i < 16; i++)
inline Floats splat(float x) { Floats r; LANES r.v[i] = x; return r; }
inline Floats load(const float* p) { Floats r; LANES r.v[i] = p[i]; return r; }
inline void store(float* p, const Floats& x) { LANES p[i] = x.v[i]; }
inline Floats add(const Floats& x, const Floats& y) { Floats r; LANES r.v[i] = x.v[i] + y.v[i]; return r; }
inline Floats sub(const Floats& x, const Floats& y) { Floats r; LANES r.v[i] = x.v[i] - y.v[i]; return r; }
inline Floats mul(const Floats& x, const Floats& y) { Floats r; LANES r.v[i] = x.v[i] * y.v[i]; return r; }
inline Floats div(const Floats& x, const Floats& y) { Floats r; LANES r.v[i] = x.v[i] / y.v[i]; return r; }
inline Floats max(const Floats& x, const Floats& y) { Floats r; LANES r.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i]; return r; }
inline Floats min(const Floats& x, const Floats& y) { Floats r; LANES r.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i]; return r; }
// Rounded twice: without the instruction a fused product is a slow library call.
inline Floats fma(const Floats& x, const Floats& y, const Floats& z) { Floats r; LANES r.v[i] = x.v[i] * y.v[i] + z.v[i]; return r; }
inline Floats fnma(const Floats& x, const Floats& y, const Floats& z) { Floats r; LANES r.v[i] = z.v[i] - x.v[i] * y.v[i]; return r; }

// fp32 -> fp16, to the nearest, ties to even.
inline uint16_t to_half(float x) {
  const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u)  // subnormal: adding 0.5 puts the unit in the last place where fp16 has it
    return uint16_t(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u));
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}
inline Floats load_half(const uint16_t* p) { Floats r; LANES r.v[i] = from_half(p[i]); return r; }
inline void store_half(uint16_t* p, const Floats& x) { LANES p[i] = to_half(x.v[i]); }
// The even or the odd ones of 32 bf16.
inline Floats load_bf16(const uint16_t* p, bool odd) { Floats r; LANES r.v[i] = from_bits(uint32_t(p[2 * i + odd]) << 16); return r; }
inline Floats load_u8(const uint8_t* p) { Floats r; LANES r.v[i] = p[i]; return r; }
inline Floats load_i8(const uint8_t* p) { Floats r; LANES r.v[i] = int8_t(p[i]); return r; }

inline float reduce_add(const Floats& x) { float r = 0; LANES r += x.v[i]; return r; }
inline float reduce_max(const Floats& x) { float r = x.v[0]; LANES r = x.v[i] > r ? x.v[i] : r; return r; }
inline Floats abs(const Floats& x) { Floats r; LANES r.v[i] = x.v[i] < 0 ? -x.v[i] : x.v[i]; return r; }
// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number for magnitudes under 2^22.
inline Floats round(const Floats& x) { Floats r; LANES r.v[i] = (x.v[i] + 12582912.0f) - 12582912.0f; return r; }
// 2^n for whole n in [-126, 127]: the sum has n + 127 in its lowest bits. (A cast to int would be undefined for NaN.)
inline float power_of_two(float n) { return from_bits(to_bits(n + (12582912.0f + 127)) << 23); }
inline Floats power_of_two(const Floats& n) { Floats r; LANES r.v[i] = power_of_two(n.v[i]); return r; }
// 16 floats of magnitude at most 127, rounded to int8.
inline void store_int8(int8_t* p, const Floats& x) { const Floats whole = round(x); LANES p[i] = int8_t(whole.v[i]); }
inline void store_int8(int8_t* p, const Floats& x, const Floats& y) {
  store_int8(p, x);
  store_int8(p + kPanel, y);
}

// 64 bytes: four columns of each of 16 rows; a row's columns 0 and 1 are one 16-bit number (the low byte first), 2 and
// 3 the next. Vector types of GCC and clang: what GCC 12 makes of the same sums over arrays is several times slower.
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef int16_t Words __attribute__((vector_size(16)));
typedef int32_t Four __attribute__((vector_size(16)));
struct Bytes {
  Halves v[4];
};

#define EACH for (int i = 0; i < 4; i++)
inline Bytes load_bytes(const uint8_t* p) { Bytes r; std::memcpy(r.v, p, 64); return r; }
inline void store_bytes(uint8_t* p, const Bytes& x) { std::memcpy(p, x.v, 64); }
inline Bytes mask(const Bytes& x, uint8_t bits) { Bytes r; EACH r.v[i] = x.v[i] & uint16_t(bits * 257); return r; }
// Shifts cross bytes: mask afterwards. A negative n shifts left.
inline Bytes shift_right(const Bytes& x, int n) { Bytes r; EACH r.v[i] = n < 0 ? x.v[i] << -n : x.v[i] >> n; return r; }
inline Bytes either(const Bytes& x, const Bytes& y) { Bytes r; EACH r.v[i] = x.v[i] | y.v[i]; return r; }
inline Bytes from_signed(const Bytes& x) { return x; }

// 16 int32, one for each row.
struct Ints {
  Four v[4];
};

inline Ints splat_ints(int32_t x) { const Four four = {x, x, x, x}; return Ints{{four, four, four, four}}; }
inline Ints zero_ints() { return Ints{}; }
inline Ints load_ints(const int32_t* p) { Ints r; std::memcpy(r.v, p, 64); return r; }
inline void store_ints(int32_t* p, const Ints& x) { std::memcpy(p, x.v, 64); }
template <int bits>
inline Ints add_shifted(const Ints& x, const Ints& y) { Ints r; EACH r.v[i] = x.v[i] + y.v[i] * (1 << bits); return r; }  // x + y 2^bits
inline Ints add_ints(Ints x, const Ints& y) {
  for (int i = 0; i < 4; i++) x.v[i] += y.v[i];
  return x;
}
inline Floats to_floats(const Ints& x) { Floats r; LANES r.v[i] = float(x.v[i / 4][i % 4]); return r; }

// Sums of products of weights (kBits wide: unsigned, but signed when 8) and int8 activations, 16 rows at once. As on
// AVX2, products of neighbours are added in 16 bits, where 2 * 127 * (2^kBits - 1) fits kFits times, and widened then.
template <int kBits>
struct Dot {
  static constexpr int kFits = kBits == 8 ? 1 : 1 << (7 - kBits);
  Words narrow[4];

  static Dot zero() { return Dot{}; }
  void add(const Bytes& w, int32_t quad) {
    const Four four = {quad, quad, quad, quad};
    const Words even = Words(Halves(four) << 8) >> 8, odd = Words(four) >> 8;
    EACH {
      const Words low = kBits == 8 ? Words(w.v[i] << 8) >> 8 : Words(w.v[i] & 255);
      const Words high = kBits == 8 ? Words(w.v[i]) >> 8 : Words(w.v[i] >> 8);
      narrow[i] += low * even + high * odd;
    }
  }
  Ints add_to(const Ints& sum) const {
    Ints r;
    EACH {
      const Four both = Four(narrow[i]);
      r.v[i] = sum.v[i] + (both >> 16) + (both << 16 >> 16);
    }
    return r;
  }
};
#undef EACH
#undef LANES

}  // namespace
}  // namespace ventoux
