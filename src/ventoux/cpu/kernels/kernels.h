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
//   quantized: quads  [tile][group][column / 4][token of the tile][high, low], four int8 in an int32
//              scale  [tile][group][token of the tile]
//              sum    [tile][group][token of the tile], the group's sum: what a weight's minimum is multiplied with
// A tile that starts at token t starts at offset t * (a token's length) in each array.
//
// A quantized activation has 16 bits: x = (256 high + low) * scale, both int8, whose products are added as integers.
// One int8 is not enough: on the default model it costs 0.5% of perplexity, and Paris (docs/performance.md).
struct Activations {
  int tokens, columns, group;
  float* x;
  int32_t* quads;
  float *scale, *sum;
};

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
  void (*regroup)(const float* x, const Activations& to, int first, int last);
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

constexpr int kTerms = 2;                    // int8 for a quantized activation: high and low
constexpr int kWidestTile = 12;              // tokens; regrouping splits its work at multiples of it
constexpr size_t kScratchBytes = 64 * 1024;  // for a thread: unpacked weights, in L1 and L2

extern const Kernels kPortable;
#ifdef VENTOUX_X86
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace ventoux
