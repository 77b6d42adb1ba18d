// AVX-512 through SIMDe (https://github.com/simd-everywhere/simde), to test its kernels on a machine without it; the few
// conversions that SIMDe 0.7 lacks are loops over lanes. CONTRIBUTING.md has the command.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ventoux_emulated {

template <class To, class From, class Lane>
inline To lanes(From x, Lane convert) {
  using In = typename Lane::In;
  using Out = typename Lane::Out;
  In in[16];
  Out out[16];
  static_assert(sizeof in == sizeof x && sizeof out == sizeof(To), "16 lanes on both sides");
  std::memcpy(in, &x, sizeof in);
  for (int i = 0; i < 16; i++) out[i] = convert(in[i]);
  To result;
  std::memcpy(&result, out, sizeof out);
  return result;
}

template <class I, class O>
struct Cast {
  using In = I;
  using Out = O;
  O operator()(I x) const { return O(x); }
};
struct Nearest : Cast<float, int32_t> {
  int32_t operator()(float x) const { return int32_t(std::lrintf(x)); }
};
struct FromHalf : Cast<uint16_t, float> {
  float operator()(uint16_t x) const { return _cvtsh_ss(x); }
};
struct ToHalf : Cast<float, uint16_t> {
  uint16_t operator()(float x) const { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
};

}  // namespace ventoux_emulated

#define _mm512_cvtepi32_epi8(x) (ventoux_emulated::lanes<__m128i>(x, ventoux_emulated::Cast<int32_t, int8_t>()))
#define _mm512_cvtepi32_ps(x) (ventoux_emulated::lanes<simde__m512>(x, ventoux_emulated::Cast<int32_t, float>()))
#define _mm512_cvtepi8_epi32(x) (ventoux_emulated::lanes<simde__m512i>(x, ventoux_emulated::Cast<int8_t, int32_t>()))
#define _mm512_cvtepu16_epi32(x) (ventoux_emulated::lanes<simde__m512i>(x, ventoux_emulated::Cast<uint16_t, int32_t>()))
#define _mm512_cvtepu8_epi32(x) (ventoux_emulated::lanes<simde__m512i>(x, ventoux_emulated::Cast<uint8_t, int32_t>()))
#define _mm512_cvtph_ps(x) (ventoux_emulated::lanes<simde__m512>(x, ventoux_emulated::FromHalf()))
#define _mm512_cvtps_epi32(x) (ventoux_emulated::lanes<simde__m512i>(x, ventoux_emulated::Nearest()))
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) (ventoux_emulated::lanes<__m256i>(x, ventoux_emulated::ToHalf()))

// SIMDe's shifts want constants; here the count is constant only after inlining.
#undef _mm512_slli_epi16
#undef _mm512_srli_epi16
#define _mm512_slli_epi16(x, n) simde_mm512_sll_epi16(x, _mm_cvtsi32_si128(int(n)))
#define _mm512_srli_epi16(x, n) simde_mm512_srl_epi16(x, _mm_cvtsi32_si128(int(n)))
