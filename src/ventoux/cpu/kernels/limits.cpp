#include "limits.h"

#include <algorithm>
#include <atomic>
#include <string>

namespace ventoux {
namespace {

constexpr int kRounds = 4096;               // two ones a round fit a lane of 16 bits, and fp32 counts so far exactly
constexpr size_t kPiece = size_t(1) << 19;  // words that a thread takes at once: 4 MiB

typedef uint64_t Words __attribute__((vector_size(16), aligned(8)));
typedef uint16_t Shorts __attribute__((vector_size(16)));
typedef float Singles __attribute__((vector_size(16)));

uint64_t sum(const uint64_t* p, size_t n) {
  Words a{}, b{}, c{}, d{};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    a += *(const Words*)(p + i), b += *(const Words*)(p + i + 2);
    c += *(const Words*)(p + i + 4), d += *(const Words*)(p + i + 6);
  }
  a += b + c + d;
  uint64_t total = a[0] + a[1];
  for (; i < n; i++) total += p[i];
  return total;
}

#ifdef __aarch64__
#define OPAQUE(x) asm volatile("" : "+w"(x))
#else
#define OPAQUE(x) asm volatile("" : "+x"(x))
#endif

// Eight sums of products w * x. Were w not opaque, the compiler would see that it multiplies the same numbers each time.
template <class Vector, int kLanes>
uint64_t portable() {
  Vector sums[8] = {}, w = Vector{} + 1, x = w;
  OPAQUE(x);
  for (int round = 0; round < kRounds; round++)
    for (auto& s : sums) {
      OPAQUE(w);
      s += w * x;
    }
  uint64_t total = 0;
  for (auto& s : sums)
    for (int i = 0; i < kLanes; i++) total += uint64_t(s[i]);
  return total;
}

#ifdef VENTOUX_X86
// On x86 the loops are assembly throughout, with twelve sums in registers 0 to 11 (two instructions a cycle, each up to
// five cycles long, keep ten busy) and ones in register 14. `width` is a register's bytes, `name` the letter before "mm".
#define SUMS(line) ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n" line "\n.endr\n"
#define LOOP(name, width, line)                                                                                      \
  asm volatile("vbroadcastss (%2), %%" name "mm14\n" SUMS("vpxor %%xmm\\r, %%xmm\\r, %%xmm\\r") "1:\n" SUMS(line)     \
               "dec %0\njnz 1b\n" SUMS("vmovups %%" name "mm\\r, \\r*" #width "(%1)")                                 \
               : "+r"(rounds)                                                                                        \
               : "r"(sums), "r"(&one)                                                                                \
               : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",      \
                 "xmm10", "xmm11", "xmm14", "xmm15")

template <class Lane, size_t kLanes>
uint64_t added(const Lane (&sums)[kLanes]) {
  uint64_t total = 0;
  for (Lane lane : sums) total += uint64_t(lane);
  return total;
}

uint64_t avx2_int8() {
  const uint32_t one = 0x01010101;
  uint16_t sums[12 * 16];
  int rounds = kRounds;
  LOOP("y", 32, "vpmaddubsw %%ymm14, %%ymm14, %%ymm15\nvpaddw %%ymm15, %%ymm\\r, %%ymm\\r");
  return added(sums);
}

uint64_t avx2_fp32() {
  const float one = 1;
  float sums[12 * 8];
  int rounds = kRounds;
  LOOP("y", 32, "vfmadd231ps %%ymm14, %%ymm14, %%ymm\\r");
  return added(sums);
}

uint64_t avx512_int8() {
  const uint32_t one = 0x01010101;
  uint32_t sums[12 * 16];
  int rounds = kRounds;
  LOOP("z", 64, "vpdpbusd %%zmm14, %%zmm14, %%zmm\\r");
  return added(sums);
}

uint64_t avx512_fp32() {
  const float one = 1;
  float sums[12 * 16];
  int rounds = kRounds;
  LOOP("z", 64, "vfmadd231ps %%zmm14, %%zmm14, %%zmm\\r");
  return added(sums);
}

// A lane of fp32 adds two products.
uint64_t avx512_bf16() {
  const uint32_t one = 0x3f803f80;
  float sums[12 * 16];
  int rounds = kRounds;
  LOOP("z", 64, "vdpbf16ps %%zmm14, %%zmm14, %%zmm\\r");
  return added(sums);
}
#endif

struct Loops {
  uint64_t (*int8)();
  uint64_t (*fp32)();
};

Loops loops(const std::string& isa) {
#ifdef VENTOUX_EMULATE_AVX512
  if (isa == "avx512") return {avx2_int8, avx2_fp32};  // what the machine has
#endif
#ifdef VENTOUX_X86
  if (isa == "avx512") return {avx512_int8, avx512_fp32};
  if (isa == "avx2") return {avx2_int8, avx2_fp32};
#endif
  return {portable<Shorts, 8>, portable<Singles, 4>};
}

uint64_t multiply(Pool& pool, int blocks, uint64_t (*block)()) {
  std::atomic<uint64_t> total{0};
  pool.run(pool.threads(), [&](int, int) {
    uint64_t own = 0;
    for (int i = 0; i < blocks; i++) own += block();
    total += own;
  });
  return total;
}

}  // namespace

uint64_t read_memory(Pool& pool, const uint64_t* words, size_t count) {
  std::atomic<uint64_t> total{0};
  pool.run(int((count + kPiece - 1) / kPiece), [&](int piece, int) {
    const size_t first = size_t(piece) * kPiece;
    total += sum(words + first, std::min(kPiece, count - first));
  });
  return total;
}

uint64_t multiply_int8(Pool& pool, int blocks) { return multiply(pool, blocks, loops(pool.kernels().name).int8); }
uint64_t multiply_fp32(Pool& pool, int blocks) { return multiply(pool, blocks, loops(pool.kernels().name).fp32); }
uint64_t multiply_bf16([[maybe_unused]] Pool& pool, [[maybe_unused]] int blocks) {
#ifdef VENTOUX_X86
  if (pool.kernels().form(Format::BF16, Rounding::Mixed).pairs) return multiply(pool, blocks, avx512_bf16);
#endif
  return 0;
}

}  // namespace ventoux
