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

// How activations are rounded before they are multiplied with blocks: not at all; to 16 bits; to 8 where that is enough. With
// weights in bf16 the last is bf16, which is as exact on the whole, where the machine multiplies that.
enum class Rounding : int { None, Int16, Mixed };

// Activations [tokens, columns] regrouped for a kernel: tiles of a few tokens in which neighbouring tokens are neighbouring
// scalars, so that a broadcast load follows the last one. Plain rows 4,096 bytes apart would share their L1 sets.
//   float:     x      [tile][column][token of the tile]
//   quantized: low    [tile][group][column / 4][token of the tile], four int8 in an int32
//              more   the same: the high parts of groups that are wide, zeros elsewhere
//              scale  [tile][group][token of the tile]: an activation is (low + 256 more) * scale
//              sum    [tile][group][token of the tile], the group's sum: what a weight's minimum is multiplied with
//              start  instead of `sum` where quants have an offset: what the group's sum of products begins with,
//                     -offset * (sum of the group's integers), so that it ends as that of the quants without the offset
//              wide   [tile][group]: bit t for token t of the tile, whose high part is not 0; all bits where many would be set
//   bf16:      low    [tile][column / 2][token of the tile], two bf16 in an int32: of columns 0 and 1, 2 and 3, ...
//   in pairs:  low    [tile][group][column / 2][token of the tile], two int16 in an int32: of columns 0 and 2, 1 and 3, ...
//              scale, sum, start  as above: an activation is int16 * scale
//   nibbles:   low    [tile][group][8][token of the tile], four int8 in an int32: nibbles.h says which
//              more   [tile][group][4][token of the tile]: what goes to both nibbles
//              scale, sum, start  as above; `start` always, of many tokens with the activations' part that crossed.h needs
//              wide   [tile][group]: whether the tile's tokens are in 11 or 12 bits there, or all in 8
//   super-blocks: low [tile][super-block][kSuperWords][token of the tile], two int16 in an int32: superblock.h says which
//              scale  [tile][super-block][token of the tile]: an activation is int16 * scale
//              sum    [tile][super-block][token of the tile]: what its words of sums are multiplied with
//              start  [tile][super-block][kSuperStarts][token of the tile]: the activations' part of the sums of 64 columns that
//                     superblock.h needs
// A tile that starts at token t starts at offset t * (a token's length) in each array.
//
// A group of a token is rounded to 8 bits, or to 16 when its largest activation stands out of the row: such groups make
// nearly all of the error that 8 bits would (https://arxiv.org/abs/2208.07339 found so too; docs/performance.md has
// figures). Which of them, the row alone decides. Both parts are multiplied as int8 and added as integers. Q4_0 and Q4_1 take 11 or 12 bits
// in place of 16 where the machine can (nibbles.h), and formats with super-blocks all activations in 14 (superblock.h).
constexpr int kSuperBlock = 256, kSuperWords = 132, kSuperStarts = 4;
struct Form {  // how activations are regrouped for weights of a format
  int group;     // columns that share a scale; 0 for floats, which are bf16 in pairs
  bool pairs;    // two columns to an int32, as above: all groups have 16 bits
  int offset;    // of the weights' quants: a weight is scale * (quant - offset), or scale * quant - minimum where it is 0. Super-blocks
                 // have 0, as their weights are multiplied without their offset
  bool crossed;  // many tokens are multiplied as crossed.h says
  int nibbles;   // as nibbles.h says, in so many steps; 0: not so
  bool all_wide = false;  // all groups have 16 bits
  bool superblocks() const { return group == kSuperBlock; }
  bool operator==(const Form& other) const {
    return group == other.group && pairs == other.pairs && offset == other.offset && crossed == other.crossed && nibbles == other.nibbles &&
           all_wide == other.all_wide;
  }
};
struct Activations {
  int tokens, columns;
  Form form;
  float* x;
  int32_t *low, *more;
  float *scale, *sum;
  int32_t* start;
  uint16_t* wide;
};

// How numbers are kept in the KV cache. I8: one scale for a token's value in each head, and a scale and a middle for each 16
// components of its key: keys have components that are large, or far from zero, throughout a text.
enum class KvType : int { F32, F16, I8 };

struct AttentionShape {
  int heads, kv_heads, head_dim, window;  // window: keys, the query's own included; INT32_MAX for none
  KvType kv;
};

// Keys and values of one sequence in one layer: `capacity` slots, a multiple of 16, of each KV head; cache.h describes them.
struct Ring {
  uint8_t* panels;
  int capacity;
};

// One sequence's part of a batch, in one layer: `count` tokens from row `row` on, at positions start, start + 1, ... Nobody asks for
// what the first `skipped` of them find; the others' queries, and what they find, stand from row `query_row` on.
struct Span {
  Ring ring;
  int row, count, start;
  int skipped, query_row;
};

// static: a copy compiled for one instruction set must not be linked into another's place.
static constexpr int round_up(int n) { return (n + kPanel - 1) / kPanel * kPanel; }

static constexpr size_t kv_bytes(KvType type) { return type == KvType::F32 ? 4 : type == KvType::F16 ? 2 : 1; }

// Bytes of one head's keys in a panel of 16 positions; I8 has fp16 scales [16] and middles [16] of each 16 components behind
// them.
static inline size_t key_bytes(const AttentionShape& s) {
  const size_t components = size_t(round_up(s.head_dim));
  return kPanel * components * kv_bytes(s.kv) + (s.kv == KvType::I8 ? components / kPanel * 2 * kPanel * sizeof(uint16_t) : 0);
}

// Bytes of its values; I8 has float scales [16] behind them.
static inline size_t value_bytes(const AttentionShape& s) {
  return size_t(kPanel) * size_t(round_up(s.head_dim)) * kv_bytes(s.kv) + (s.kv == KvType::I8 ? kPanel * sizeof(float) : 0);
}

// A panel: the keys of 16 positions, then their values.
static inline size_t panel_bytes(const AttentionShape& s) { return key_bytes(s) + value_bytes(s); }

// Bytes of one head's panels with room for `slots`.
static inline size_t head_bytes(const AttentionShape& s, int slots) {
  return size_t(round_up(slots) / kPanel) * panel_bytes(s);
}

// Positions whose keys are weighed together, counted from position 0: 0..255, 256..511, ... Every sum of attention is made
// within such a block and then over the blocks in their order, so it does not depend on who else is in the batch.
constexpr int kBlock = 256;

// Queries [first, last) of one span and one KV head. Query i is that of the span's token i / group, of head i % group among
// the `group` that share the KV head.
struct Queries {
  int first, last, group;
  int start;                   // the position of the span's first token, with which q, cos, sin and out begin
  const float *q, *cos, *sin;  // [token][heads][head_dim], from the group's first head on; [token][head_dim / 2] twice
  float* out;                  // as q
  // The head's panels. Positions 16 i .. 16 i + 15 are panel i mod ring_panels of the ring, or from i = chunk_panel on
  // panel i - chunk_panel of the chunk.
  const uint8_t *ring, *chunk;
  const uint8_t* next_ring;  // the next head's, if there is one: what will be read behind this
  int ring_panels, chunk_panel;
  int block, blocks;  // the first block that one of them sees, and how many there are
};

struct Kernels {
  const char* name;
  // How activations are regrouped for weights of this format.
  Form (*form)(Format, Rounding);
  // Regroups tokens [first, last) of x into `to`; `first` is a multiple of the widest tile.
  void (*regroup)(const float* x, const Activations& to, int first, int last);
  // y[:, 16 * panel ...] (+)= x . w for panels [panel0, panel1); y has w.rows columns. `scratch`: kScratchBytes.
  void (*linear)(const Matrix& w, const Activations& x, float* y, bool add, int panel0, int panel1, uint8_t* scratch);
  // y[:, 16 * panel ...] = silu(gate . x) * (up . x), of two matrices of one format and shape, for so many tokens as `gates` says yes to.
  void (*gated)(const Matrix& gate, const Matrix& up, const Activations& x, float* y, int panel0, int panel1, uint8_t* scratch);
  bool (*gates)(Format, Form, int tokens);
  // y = x / rms(x) * weight for one row.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* y);
  // gate = silu(gate) * up.
  void (*swiglu)(float* gate, const float* up, size_t n);
  // weights = e^((scores - highest) / temperature), 0 for those below e^-87; `highest` is the largest score.
  void (*weigh)(const float* scores, float highest, float temperature, size_t n, float* weights);
  // Rotates one token's key [D] of one head and puts it and its value into lane `lane` of a panel.
  void (*store_kv)(const AttentionShape& shape, const float* k, const float* v, const float* cos, const float* sin,
                   uint8_t* panel, int lane, float* scratch);
  // What the queries find in blocks [block0, block1) of theirs (counted from 0). All of them: the result goes to `out`.
  // Else each block's goes to its place in `found`: found_floats for each.
  void (*attend)(const AttentionShape& shape, const Queries& queries, int block0, int block1, float* found, float* scratch);
  // The result of all the blocks in `found`, in their order, to `out`.
  void (*merge)(const AttentionShape& shape, const Queries& queries, const float* found, float* scratch);
  // Bytes of scratch that attend and merge need for n queries; store_kv needs no more.
  size_t (*attention_scratch)(const AttentionShape& shape, int n);
};

constexpr int kWidestTile = 12;              // tokens; regrouping splits its work at multiples of it
constexpr size_t kScratchBytes = 160 * 1024;  // for a thread: unpacked weights in L1, sums in L2

// Floats that n queries' findings take: a maximum and a sum in 16 lanes for each tile, and D sums for each query. A tile
// may hold a single query.
static inline size_t found_floats(const AttentionShape& s, int n) {
  return size_t(n) * (2 * kPanel + size_t(round_up(s.head_dim)));
}

extern const Kernels kPortable;
#ifdef VENTOUX_X86
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace ventoux
