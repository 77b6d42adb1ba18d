// Weights as files have them, row by row in blocks. The layouts are GGML's:
// https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
#pragma once

#include "kernels.h"

namespace ventoux {

struct Block {
  int columns, bytes;
};

Block block_of(Format f);

// Bytes of a row, 0 when `columns` is no multiple of the format's block.
size_t row_bytes(Format f, int columns);

// The quants of group g of a block, unsigned (8 bits: as they are), one byte a column: layout.h has the groups' sizes.
void quants_of(Format f, const uint8_t* block, int g, uint8_t* q);

// The 6-bit scale and minimum of group g in the 12 bytes that a Q4_K or Q5_K block packs them into.
void six_bit_scales(const uint8_t* packed, int g, uint8_t* scale, uint8_t* min);

// A row's numbers, exactly those that the format means.
void dequantize(Format f, int columns, const uint8_t* row, float* out);

}  // namespace ventoux
