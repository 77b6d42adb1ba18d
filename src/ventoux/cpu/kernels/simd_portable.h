// 16 float lanes as an array: plain C++, the reference that the vector versions are tested against.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ventoux {
namespace {

constexpr const char* kName = "portable";
constexpr int kTile = 4;
constexpr int kQuantizedTile = 2;
constexpr int kSignedOffset = 0;

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

inline float from_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t to_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
// fp16 -> fp32: shift exponent and mantissa into place and let one multiplication by 2^112 rebias (subnormals too).
inline float from_half(uint16_t h) {
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, sign = uint32_t(h & 0x8000) << 16;
  if (magnitude >= 0x0f800000u) return from_bits(sign | magnitude | 0x7f800000u);  // infinity, NaN
  return from_bits(to_bits(from_bits(magnitude) * from_bits(0x77800000u)) | sign);
}
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
inline Floats load_bf16(const uint16_t* p) { Floats r; LANES r.v[i] = from_bits(uint32_t(p[i]) << 16); return r; }
inline Floats load_u8(const uint8_t* p) { Floats r; LANES r.v[i] = p[i]; return r; }
inline Floats load_i8(const uint8_t* p) { Floats r; LANES r.v[i] = int8_t(p[i]); return r; }

inline float reduce_add(const Floats& x) { float r = 0; LANES r += x.v[i]; return r; }
inline float reduce_max(const Floats& x) { float r = x.v[0]; LANES r = x.v[i] > r ? x.v[i] : r; return r; }
inline Floats abs(const Floats& x) { Floats r; LANES r.v[i] = x.v[i] < 0 ? -x.v[i] : x.v[i]; return r; }
// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number for magnitudes under 2^22.
inline Floats round(const Floats& x) { Floats r; LANES r.v[i] = (x.v[i] + 12582912.0f) - 12582912.0f; return r; }
// 2^n for whole n in [-126, 127].
inline Floats power_of_two(const Floats& n) { Floats r; LANES r.v[i] = from_bits(uint32_t(int32_t(n.v[i]) + 127) << 23); return r; }
// 16 floats of magnitude at most 127, rounded to int8.
inline void store_int8(int8_t* p, const Floats& x) { const Floats whole = round(x); LANES p[i] = int8_t(whole.v[i]); }

// 64 bytes: four columns of each of 16 rows.
struct Bytes {
  uint8_t v[64];
};

#define EACH for (int i = 0; i < 64; i++)
inline Bytes load_bytes(const uint8_t* p) { Bytes r; std::memcpy(r.v, p, 64); return r; }
inline void store_bytes(uint8_t* p, const Bytes& x) { std::memcpy(p, x.v, 64); }
inline Bytes mask(const Bytes& x, uint8_t bits) { Bytes r; EACH r.v[i] = x.v[i] & bits; return r; }
inline Bytes shift_right(const Bytes& x, int n) { Bytes r; EACH r.v[i] = uint8_t(n < 0 ? x.v[i] << -n : x.v[i] >> n); return r; }
inline Bytes either(const Bytes& x, const Bytes& y) { Bytes r; EACH r.v[i] = x.v[i] | y.v[i]; return r; }
inline Bytes from_signed(const Bytes& x) { return x; }

// Sums of products of weights (kBits wide: unsigned, but signed when 8) and int8 activations, 16 rows at once.
template <int kBits>
struct Dot {
  int32_t v[16];
  static Dot zero() { return Dot{}; }
  void add(const Bytes& w, int32_t quad, int) {
    int8_t x[4];
    std::memcpy(x, &quad, 4);
    LANES for (int c = 0; c < 4; c++) {
      const int weight = kBits == 8 ? int8_t(w.v[4 * i + c]) : w.v[4 * i + c];
      v[i] += weight * x[c];
    }
  }
};

// 256 high + low.
template <int kBits>
inline Floats total(const Dot<kBits>& high, const Dot<kBits>& low) {
  Floats r;
  LANES r.v[i] = float(256 * high.v[i] + low.v[i]);
  return r;
}
#undef EACH
#undef LANES

}  // namespace
}  // namespace ventoux
