// The bytes of a packed weight: what weight.cpp writes and unpack.h reads.
//
// A panel holds 16 rows. Float formats: [column][row]; bf16: [column / 2][row][2], as vdpbf16ps takes it. Block formats: groups of 32 columns (16 for Q6_K), one after
// the other; formats with super-blocks put a header before every 256 columns. In a group:
//   header   fp16 scale[16] (Q4_0, Q5_0, Q8_0); fp16 scale[16], fp16 min[16] (Q4_1, Q5_1);
//            u8 scale[16], u8 min[16] (Q4_K, Q5_K); i8 scale[16] (Q6_K)
//   quants   "lines" of 64 bytes; line j holds columns 4j .. 4j+3 of row 0, then of row 1, ...
//            8 bits: the lines themselves. Fewer: lines of nibbles, line j in the low ones, line j + lines/2 in the
//            high ones, so that a mask (or a shift and a mask) gives an operand for the dot product. Then the upper
//            bits: one line in which bit j of a byte belongs to line j (5 bits), or bits 2j and 2j+1 (6 bits).
// Every format keeps its own size, but for Q4_K and Q5_K, whose 6-bit scales become bytes (2.8% and 2.3% more).
#pragma once

#include "kernels.h"

namespace ventoux {

// Packed weights are kept in files (cpu/kept.py). Another number makes the files of all machines anew: whoever changes
// a byte of what weight.cpp writes raises it; tests/cpu/test_kept.py knows the bytes of small weights.
constexpr int kLayoutVersion = 2;

struct Layout {
  int bits;          // of a quant; 0 for float formats
  int group;         // columns
  int per_block;     // groups behind one block header
  int block_header;  // bytes
  int group_header;  // bytes
  constexpr int lines() const { return group / 4; }
  constexpr int quants() const { return 16 * group * bits / 8; }  // bytes
  constexpr int group_bytes() const { return group_header + quants(); }
  constexpr int block_bytes() const { return block_header + per_block * group_bytes(); }
};

constexpr Layout layout(Format f) {
  switch (f) {
    case Format::Q8_0: return {8, 32, 1, 0, 32};
    case Format::Q4_0: return {4, 32, 1, 0, 32};
    case Format::Q4_1: return {4, 32, 1, 0, 64};
    case Format::Q5_0: return {5, 32, 1, 0, 32};
    case Format::Q5_1: return {5, 32, 1, 0, 64};
    case Format::Q4_K: return {4, 32, 8, 64, 32};
    case Format::Q5_K: return {5, 32, 8, 64, 32};
    case Format::Q6_K: return {6, 16, 16, 32, 16};
    default: return {0, 1, 1, 0, 0};
  }
}

}  // namespace ventoux
