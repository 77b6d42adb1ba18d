// 16 float lanes as one 512-bit register; int8 products through vpdpbusd (AVX-512 VNNI).
#pragma once

#ifdef VENTOUX_EMULATE_AVX512
#include "emulated_avx512.h"
#else
#include <immintrin.h>
#endif

#include <cstdint>

#include "kernels.h"

namespace ventoux {
namespace {

constexpr const char* kName = "avx512";
constexpr int kTile = 12;           // tokens at once: 12 sums, the weights and a broadcast fit 32 registers
constexpr int kQuantizedTile = 12;  // quantized tokens: 12 integer sums
constexpr int kAtOnce = 12;
constexpr int kScattered = 4;       // high parts are multiplied one by one where at most one token in so many has one
constexpr int kFromPanels = 1 << 30, kSuperblocksFromPanels = kFromPanels;  // tokens of a batch that are multiplied with panels as they lie
constexpr int kAheadOfOne = 4096;  // bytes, unpack.h
constexpr int kQueries = 12;        // attention's queries at once
constexpr int kSums = 8;  // sums that hide the latency of an fma
constexpr bool kSlowHalf = false;
constexpr int kSignedOffset = 128;  // vpdpbusd wants unsigned weights: signed bytes are moved up, their minimum down
constexpr bool kInPairs = false;
constexpr bool straight(int) { return true; }  // vpdpbusd adds in 32 bits: Straight
template <int kBits>
struct Dot;  // of the others alone

struct Floats {
  __m512 v;
};

inline Floats splat(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
inline Floats add(Floats x, Floats y) { return {_mm512_add_ps(x.v, y.v)}; }
inline Floats sub(Floats x, Floats y) { return {_mm512_sub_ps(x.v, y.v)}; }
inline Floats mul(Floats x, Floats y) { return {_mm512_mul_ps(x.v, y.v)}; }
inline Floats div(Floats x, Floats y) { return {_mm512_div_ps(x.v, y.v)}; }
inline Floats max(Floats x, Floats y) { return {_mm512_max_ps(x.v, y.v)}; }
inline Floats min(Floats x, Floats y) { return {_mm512_min_ps(x.v, y.v)}; }
// x * y + z, rounded once.
inline Floats fma(Floats x, Floats y, Floats z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
// z - x * y, rounded once.
inline Floats fnma(Floats x, Floats y, Floats z) { return {_mm512_fnmadd_ps(x.v, y.v, z.v)}; }

inline Floats load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_half(uint16_t* p, Floats x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
// The even or the odd ones of 32 bf16.
inline Floats load_bf16(const uint16_t* p, bool odd) {
  const __m512i both = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(odd ? _mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000u))) : _mm512_slli_epi32(both, 16))};
}
inline Floats load_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline Floats load_i8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}

inline __m256 upper_half(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
// Lanes are added and compared in one fixed order, so that results do not depend on who calls.
inline float reduce_add(Floats x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), upper_half(x.v));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(Floats x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), upper_half(x.v));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline Floats abs(Floats x) { return {_mm512_abs_ps(x.v)}; }
inline Floats round(Floats x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for whole n in [-126, 127].
inline Floats power_of_two(Floats n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
// 16 floats of magnitude at most 127, rounded to int8.
inline void store_int8(int8_t* p, Floats x) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
inline void store_int8(int8_t* p, Floats x, Floats y) {
  const auto bytes = [](Floats z) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(z.v)); };
  _mm256_storeu_si256((__m256i*)p, _mm256_inserti128_si256(_mm256_castsi128_si256(bytes(x)), bytes(y), 1));
}

// 64 bytes: four columns of each of 16 rows.
struct Bytes {
  __m512i v;
};

inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(uint8_t* p, Bytes x) { _mm512_storeu_si512(p, x.v); }
inline Bytes mask(Bytes x, uint8_t bits) { return {_mm512_and_si512(x.v, _mm512_set1_epi8((char)bits))}; }
// Shifts cross bytes: mask afterwards. A negative n shifts left.
inline Bytes shift_right(Bytes x, int n) {
  return {n < 0 ? _mm512_slli_epi16(x.v, (unsigned)-n) : _mm512_srli_epi16(x.v, (unsigned)n)};
}
inline Bytes either(Bytes x, Bytes y) { return {_mm512_or_si512(x.v, y.v)}; }
// Signed bytes moved up by 128 (see kSignedOffset).
inline Bytes from_signed(Bytes x) { return {_mm512_xor_si512(x.v, _mm512_set1_epi8((char)0x80))}; }

// 16 int32, one for each row.
struct Ints {
  __m512i v;
};

inline Ints splat_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints zero_ints() { return {_mm512_setzero_si512()}; }
inline Ints add_ints(Ints x, Ints y) { return {_mm512_add_epi32(x.v, y.v)}; }
inline Floats to_floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline Ints load_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_ints(int32_t* p, Ints x) { _mm512_storeu_si512(p, x.v); }
// x + y 2^bits
template <int bits>
inline Ints add_shifted(Ints x, Ints y) { return {_mm512_add_epi32(x.v, _mm512_slli_epi32(y.v, bits))}; }

// Products of unsigned weights and int8 activations, four columns of 16 rows at once. Compilers would load the word that all lanes share
// first: as an operand it takes no instruction of its own, and a core that waits for memory has only so many under way.
template <int kBits>
struct Straight {
  static Ints add(Ints sum, Bytes w, const int32_t& quad) {
#ifdef VENTOUX_EMULATE_AVX512
    return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(quad))};
#else
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(w.v), "m"(quad));
    return sum;
#endif
  }
};

// What crossed.h multiplies with, where bytes are added beside products: on AMD's processors, from Zen 4 on. Intel's have two ports
// for all of it.
inline bool adds_beside() {
#ifdef VENTOUX_EMULATE_AVX512
  return true;
#else
  return __builtin_cpu_is("amd");
#endif
}
constexpr bool kHasCrossed = true, kHasNibbles = true, kHasSuperblocks = true;
constexpr int kNibbleSteps = 16;  // nibbles.h
struct Words {
  static Bytes splat_word(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static Ints minus(Ints x) { return {_mm512_sub_epi32(_mm512_setzero_si512(), x.v)}; }
};
template <Format f>
struct Crossed : Words {
  static Bytes splat(int8_t x) { return {_mm512_set1_epi8(x)}; }
  static Bytes add(Bytes x, Bytes y) { return {_mm512_add_epi8(x.v, y.v)}; }
  // Of 32 int8 the sum of (x + up) (y + down), for each even word x and the odd one y behind it.
  static int of_activations(const int8_t* words, int up, int down) {
    const __m256i all = _mm256_load_si256((const __m256i*)words);
    const __m256i x = _mm256_add_epi8(all, _mm256_set1_epi8(char(up)));
    const __m256i y = _mm256_add_epi8(_mm256_shuffle_epi32(all, _MM_SHUFFLE(2, 3, 0, 1)), _mm256_set1_epi8(char(down)));
    const __m256i even = _mm256_blend_epi32(_mm256_setzero_si256(), x, 0x55);
    const __m256i eight = _mm256_dpbusd_epi32(_mm256_setzero_si256(), even, y);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  static Ints add_products(Ints sum, Bytes is_unsigned, Bytes is_signed) {
    return {_mm512_dpbusd_epi32(sum.v, is_unsigned.v, is_signed.v)};
  }
};

// What nibbles.h loads.
template <Format f>
struct Nibbles {
  // Once: the compiler would load again what is used again, and 64 bytes take a load a cycle.
  static Bytes load(const uint8_t* p) {
    Bytes x = load_bytes(p);
#ifndef VENTOUX_EMULATE_AVX512
    asm("" : "+v"(x.v));
#endif
    return x;
  }
  static Ints add(Ints sum, Bytes line, const int32_t& quad) { return Straight<4>::add(sum, line, quad); }
};

// Products of 16-bit integers, two columns of 16 rows at once, which superblock.h multiplies with.
template <>
struct Straight<16> {
  static Ints add(Ints sum, Bytes w, const int32_t& pair) {
#ifdef VENTOUX_EMULATE_AVX512
    return {_mm512_dpwssd_epi32(sum.v, w.v, _mm512_set1_epi32(pair))};
#else
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(w.v), "m"(pair));
    return sum;
#endif
  }
};
template <Format f>
struct Shorts : Words {
  // Bytes 0 and 2, or 1 and 3, of each four.
  static Bytes even(Bytes x) { return {_mm512_and_si512(x.v, _mm512_set1_epi16(255))}; }
  static Bytes odd(Bytes x) { return {_mm512_srli_epi16(x.v, 8)}; }
  static Bytes splat(int16_t x) { return {_mm512_set1_epi16(x)}; }
  static Bytes add(Bytes x, Bytes y) { return {_mm512_add_epi16(x.v, y.v)}; }
  static Bytes mul(Bytes x, Bytes y) { return {_mm512_mullo_epi16(x.v, y.v)}; }
  static Ints mul(Ints x, Ints y) { return {_mm512_mullo_epi32(x.v, y.v)}; }
  static Ints add_products(Ints sum, Bytes x, Bytes y) { return {_mm512_dpwssd_epi32(sum.v, x.v, y.v)}; }
  static Ints load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
  static Ints load_i8(const uint8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
  // The lower halves of both in one.
  static Bytes both(Ints x, Ints y) { return {_mm512_mask_blend_epi16(0xaaaaaaaau, x.v, _mm512_slli_epi32(y.v, 16))}; }
};

// Products of bf16, two columns of 16 rows at once; of AVX512_BF16, which not every machine with AVX-512 has. Numbers below 1e-38
// count as zero.
constexpr bool kHasBf16 = true;
template <Format f>
struct Bf16 {
#ifdef VENTOUX_EMULATE_AVX512
  static Floats add(Floats sum, Bytes, const int32_t&) { return sum; }
#else
  static Floats add(Floats sum, Bytes w, const int32_t& pair) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(w.v), "m"(pair));
    return sum;
  }
#endif
};
inline bool multiplies_bf16() {
#ifdef VENTOUX_EMULATE_AVX512
  return false;
#else
  return __builtin_cpu_supports("avx512bf16");
#endif
}

}  // namespace
}  // namespace ventoux
