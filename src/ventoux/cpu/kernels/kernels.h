// What a kernel sees: packed weights, the KV cache, and one table of functions for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ventoux {

// Rows that stand together in a packed weight: one 512-bit register of float lanes.
constexpr int kPanel = 16;

enum class Format : int { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };

// A matrix [rows, columns] in panels of 16 rows; weight.cpp describes the bytes.
struct Matrix {
  Format format;
  int rows, columns, panels;
  size_t panel_bytes;
  const uint8_t* data;
};

// Columns that share an activation scale when activations are quantized for this format; 0 for float formats.
constexpr int activation_group(Format f) { return f <= Format::BF16 ? 0 : f == Format::Q6_K ? 16 : 32; }

// Activations [tokens, columns] regrouped for a kernel: tiles of a few tokens in which neighbouring tokens are neighbouring
// scalars, so that a broadcast load follows the last one. Plain rows 4,096 bytes apart would share their L1 sets.
//   float:     x      [tile][column][token of the tile]
//   quantized: low    [tile][group][column / 4][token of the tile], four int8 in an int32
//              high   the same; zeros, not to be read, where the tile's group is not wide
//              scale  [tile][group][token of the tile]: an activation is (low + 256 high) * scale
//              sum    [tile][group][token of the tile], the group's sum: what a weight's minimum is multiplied with
//              wide   [tile][group], at the group's first token: whether any token of the tile has a high part
// A tile that starts at token t starts at offset t * (a token's length) in each array.
//
// A group of a token is rounded to 8 bits, or to 16 when its largest activation stands out of the row: such groups make
// nearly all of the error that 8 bits would (https://arxiv.org/abs/2208.07339 found so too; docs/performance.md has
// figures). Which of them, the row alone decides. Both parts are multiplied as int8 and added as integers.
struct Activations {
  int tokens, columns, group;
  float* x;
  int32_t *low, *high;
  float *scale, *sum;
  uint8_t* wide;
};

// How activations are rounded before they are multiplied with blocks: not at all; to 16 bits; to 8 where that is enough.
enum class Rounding : int { None, Int16, Mixed };

// Keys and values of one sequence in one layer; cache.h describes the layout.
struct Ring {
  uint8_t *keys, *values;
  int capacity;
};

// One sequence's part of a batch, in one layer: `count` tokens from row `row` on, at positions start, start + 1, ...
struct Span {
  Ring ring;
  int row, count, start;
};

struct AttentionShape {
  int heads, kv_heads, head_dim, window;  // window: keys, the query's own included; INT32_MAX for none
  bool half;                              // keys and values are kept in fp16
};

// static: a copy compiled for one instruction set must not be linked into another's place.
static constexpr int round_up(int n) { return (n + kPanel - 1) / kPanel * kPanel; }

// Bytes of one head's keys (or values) with room for `slots`; both dimensions are rounded up to 16 (see cache.h).
static inline size_t head_bytes(const AttentionShape& s, int slots) {
  return size_t(round_up(slots)) * size_t(round_up(s.head_dim)) * (s.half ? 2 : 4);
}

struct Kernels {
  const char* name;
  // Regroups tokens [first, last) of x into `to`; `first` is a multiple of the widest tile.
  void (*regroup)(const float* x, const Activations& to, Rounding rounding, int first, int last);
  // y[:, 16 * panel ...] (+)= x . w for panels [panel0, panel1); y has w.rows columns. `scratch`: kScratchBytes.
  void (*linear)(const Matrix& w, const Activations& x, float* y, bool add, int panel0, int panel1, uint8_t* scratch);
  // y = x / rms(x) * weight for one row.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* y);
  // gate = silu(gate) * up.
  void (*swiglu)(float* gate, const float* up, size_t n);
  // Appends the span's new keys and values [count][kv_heads][head_dim] of one head to a chunk of the cache's layout.
  void (*pack_chunk)(const AttentionShape& shape, const Span& span, int kv_head, const float* k, const float* v,
                     uint8_t* keys, uint8_t* values);
  // One token and one KV head: out[g] = softmax(q[g] . keys) . values for the heads g that share it.
  void (*attend)(const AttentionShape& shape, const Span& span, int token, int kv_head, const float* q,
                 const uint8_t* chunk_keys, const uint8_t* chunk_values, float* out, float* scores);
};

constexpr int kWidestTile = 12;              // tokens; regrouping splits its work at multiples of it
constexpr size_t kScratchBytes = 96 * 1024;  // for a thread: unpacked weights in L1, sums in L2

extern const Kernels kPortable;
#ifdef VENTOUX_X86
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace ventoux
