// 16 float lanes as two 256-bit registers; int8 products through vpmaddubsw.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace ventoux {
namespace {

constexpr const char* kName = "avx2";
constexpr int kTile = 6;          // tokens at once: their 2 x 6 sums, the weights and a broadcast fit 16 registers
constexpr int kQuantizedTile = 4;  // quantized tokens
constexpr int kAtOnce = 4;  // of them, whose integer sums fit the registers: two each
constexpr int kScattered = 2;  // no token has high parts: kInPairs
constexpr int kFromPanels = 16, kSuperblocksFromPanels = 2;  // tokens of a batch that are multiplied with panels as they lie where strips are an alternative
constexpr int kAheadOfOne = 1280;  // bytes, unpack.h: 3% to 8% faster than 4,096 on a Zen 3
constexpr int kQueries = 6;        // attention's queries at once: 2 x 6 sums, keys and a broadcast fit 16 registers
constexpr int kSums = 4;  // sums that hide the latency of an fma
constexpr bool kSlowHalf = false;
constexpr bool multiplies_bf16() { return false; }
constexpr bool kHasBf16 = false;
template <Format f>
struct Bf16;  // of simd_avx512.h alone
constexpr bool kHasCrossed = false, kHasNibbles = true, kHasSuperblocks = true;
constexpr int kNibbleSteps = 8;  // nibbles.h: half of AVX-512's, so that two products with whole bytes add up to 16 bits
constexpr bool adds_beside() { return false; }
template <Format f>
struct Crossed;  // of simd_avx512.h alone
constexpr int kSignedOffset = 0;  // signed bytes are multiplied as they are
// What has 16 bits is multiplied two columns at once (vpmaddwd), which takes as long as two products of four columns in 8 bits (vpmaddubsw)
// and no list of who needs the second. Beside weights of 5 bits and more that is all of it: they are unpacked to strips once,
// which holds one of the two, and for 8 bits signs would have to move to the activations.
constexpr bool kInPairs = true;
constexpr bool straight(int) { return false; }

struct Floats {
  __m256 a, b;
};

inline Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
// x * y + z, rounded once.
inline Floats fma(Floats x, Floats y, Floats z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
// z - x * y, rounded once.
inline Floats fnma(Floats x, Floats y, Floats z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }

inline Floats load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store_half(uint16_t* p, Floats x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 half_of_bf16(const uint16_t* p, bool odd) {
  const __m256i both = _mm256_loadu_si256((const __m256i*)p);
  return _mm256_castsi256_ps(odd ? _mm256_and_si256(both, _mm256_set1_epi32(int(0xffff0000u))) : _mm256_slli_epi32(both, 16));
}
// The even or the odd ones of 32 bf16.
inline Floats load_bf16(const uint16_t* p, bool odd) { return {half_of_bf16(p, odd), half_of_bf16(p + 16, odd)}; }
inline Floats load_u8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
inline Floats load_i8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}

// Lanes are added and compared in one fixed order, so that results do not depend on who calls.
inline float reduce_add(Floats x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(Floats x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline Floats abs(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Floats round(Floats x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// 2^n for whole n in [-126, 127].
inline Floats power_of_two(Floats n) { return {power_of_two(n.a), power_of_two(n.b)}; }
// 32 or 16 floats of magnitude at most 127, rounded to int8.
inline void store_int8(int8_t* p, Floats x, Floats y) {
  const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32(y.a), _mm256_cvtps_epi32(y.b));
  // Of each eight columns four are in either half.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order));
}
inline void store_int8(int8_t* p, Floats x) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}

// 64 bytes: four columns of each of 16 rows.
struct Bytes {
  __m256i a, b;
};

inline Bytes load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline void store_bytes(uint8_t* p, Bytes x) {
  _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)(p + 32), x.b);
}
inline Bytes mask(Bytes x, uint8_t bits) {
  const __m256i m = _mm256_set1_epi8((char)bits);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
// Shifts cross bytes: mask afterwards. A negative n shifts left.
inline Bytes shift_right(Bytes x, int n) {
  if (n < 0) return {_mm256_slli_epi16(x.a, -n), _mm256_slli_epi16(x.b, -n)};
  return {_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)};
}
inline Bytes either(Bytes x, Bytes y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
// Signed bytes as they are (see kSignedOffset).
inline Bytes from_signed(Bytes x) { return x; }

// 16 int32, one for each row.
struct Ints {
  __m256i a, b;
};

inline Ints splat_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints add_ints(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Ints load_ints(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline void store_ints(int32_t* p, Ints x) {
  _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
// x + y 2^bits
template <int bits>
inline Ints add_shifted(Ints x, Ints y) {
  return {_mm256_add_epi32(x.a, _mm256_slli_epi32(y.a, bits)), _mm256_add_epi32(x.b, _mm256_slli_epi32(y.b, bits))};
}

// Weights as 16 bits, and their products with int16 activations, two columns of 16 rows at once.
template <int kBits>
struct Straight {
  // Of four columns 0 and 2, and 1 and 3. Only 8 bits are signed.
  static Bytes even(Bytes x) {
    if (kBits == 8) return {_mm256_srai_epi16(_mm256_slli_epi16(x.a, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(x.b, 8), 8)};
    return {_mm256_and_si256(x.a, _mm256_set1_epi16(255)), _mm256_and_si256(x.b, _mm256_set1_epi16(255))};
  }
  static Bytes odd(Bytes x) {
    if (kBits == 8) return {_mm256_srai_epi16(x.a, 8), _mm256_srai_epi16(x.b, 8)};
    return {_mm256_srli_epi16(x.a, 8), _mm256_srli_epi16(x.b, 8)};
  }
  // One of the four nibbles of each 16 bits, from bit `first` on.
  static Bytes nibbles(Bytes x, int first) {
    const Bytes down{_mm256_srli_epi16(x.a, first), _mm256_srli_epi16(x.b, first)};
    if (first == 12) return down;
    return {_mm256_and_si256(down.a, _mm256_set1_epi16(15)), _mm256_and_si256(down.b, _mm256_set1_epi16(15))};
  }
  static Ints add(Ints sum, Bytes w, int32_t pair) {
    const __m256i x = _mm256_set1_epi32(pair);
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(w.a, x)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(w.b, x))};
  }
};

template <Format f>
struct Shorts : Straight<16> {
  static Bytes splat(int16_t x) { return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
  static Bytes add(Bytes x, Bytes y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
  static Bytes mul(Bytes x, Bytes y) { return {_mm256_mullo_epi16(x.a, y.a), _mm256_mullo_epi16(x.b, y.b)}; }
  static Ints mul(Ints x, Ints y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
  static Ints load_u8(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)), _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
  }
  static Ints load_i8(const uint8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)), _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
  }
  static Bytes both(Ints x, Ints y) { return {both(x.a, y.a), both(x.b, y.b)}; }

 private:
  // The lower halves of both in one.
  static __m256i both(__m256i x, __m256i y) { return _mm256_blend_epi16(x, _mm256_slli_epi32(y, 16), 0xaa); }
};

// Sums of products of unsigned weights, kBits wide, and int8 activations, 16 rows at once. Products of neighbours are added in 16 bits;
// 2 * 127 * (2^kBits - 1) fits there kFits times, and is widened then.
template <int kBits>
struct Dot {
  static_assert(kBits < 8);
  static constexpr int kFits = 1 << (7 - kBits);
  __m256i a, b;

  static Dot zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  void add(Bytes w, int32_t quad) {
    const __m256i x = _mm256_set1_epi32(quad);
    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w.a, x));
    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w.b, x));
  }
  Ints add_to(Ints sum) const {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(a, ones)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(b, ones))};
  }
};

// What nibbles.h loads, and the product of whole bytes and int8 of -64 .. 63.
template <Format f>
struct Nibbles {
  // Once: the compiler would load them again for each token.
  static Bytes load(const uint8_t* p) {
    Bytes x = load_bytes(p);
    asm("" : "+x"(x.a), "+x"(x.b));
    return x;
  }
  static Ints add(Ints sum, Bytes line, int32_t quad) {
    const __m256i x = _mm256_set1_epi32(quad), ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(_mm256_maddubs_epi16(line.a, x), ones)),
            _mm256_add_epi32(sum.b, _mm256_madd_epi16(_mm256_maddubs_epi16(line.b, x), ones))};
  }
};

}  // namespace
}  // namespace ventoux
