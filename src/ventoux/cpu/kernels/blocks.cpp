#include "blocks.h"

#include <cstring>

#include "half.h"
#include "layout.h"

namespace ventoux {
namespace {

uint16_t half_at(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return bits;
}

float half(const uint8_t* bytes) { return from_half(half_at(bytes)); }

// Group g of a block: a weight is scale * (quant - offset) + plus.
void dequantize_group(Format f, const uint8_t* block, int g, int columns, float* out) {
  uint8_t q[32];
  quants_of(f, block, g, q);
  if (f == Format::Q8_0) {
    const float scale = half(block);
    for (int i = 0; i < columns; i++) out[i] = scale * float(int8_t(q[i]));
    return;
  }
  float scale, plus = 0;
  int offset = 0;
  if (f == Format::Q4_K || f == Format::Q5_K) {
    uint8_t scale6, min6;
    six_bit_scales(block + 4, g, &scale6, &min6);
    scale = half(block) * float(scale6);
    plus = -(half(block + 2) * float(min6));
  } else if (f == Format::Q6_K) {
    scale = half(block + 208) * float(int8_t(block[192 + g]));
    offset = 32;
  } else {
    scale = half(block);
    if (f == Format::Q4_1 || f == Format::Q5_1) plus = half(block + 2);
    else offset = f == Format::Q4_0 ? 8 : 16;
  }
  if (offset)
    for (int i = 0; i < columns; i++) out[i] = scale * float(int(q[i]) - offset);
  else
    for (int i = 0; i < columns; i++) out[i] = scale * float(q[i]) + plus;
}

}  // namespace

Block block_of(Format f) {
  switch (f) {
    case Format::F32: return {1, 4};
    case Format::F16:
    case Format::BF16: return {1, 2};
    case Format::Q8_0: return {32, 34};
    case Format::Q4_0: return {32, 18};
    case Format::Q4_1: return {32, 20};
    case Format::Q5_0: return {32, 22};
    case Format::Q5_1: return {32, 24};
    case Format::Q4_K: return {256, 144};
    case Format::Q5_K: return {256, 176};
    case Format::Q6_K: return {256, 210};
  }
  return {1, 4};
}

size_t row_bytes(Format f, int columns) {
  const Block block = block_of(f);
  return columns <= 0 || columns % block.columns ? 0 : size_t(columns / block.columns) * size_t(block.bytes);
}

void quants_of(Format f, const uint8_t* block, int g, uint8_t* q) {
  if (f == Format::Q8_0) {
    std::memcpy(q, block + 2, 32);
  } else if (f == Format::Q4_K || f == Format::Q5_K) {
    const uint8_t *nibbles = block + (f == Format::Q4_K ? 16 : 48) + g / 2 * 32, *upper = block + 16;
    for (int i = 0; i < 32; i++) q[i] = (nibbles[i] >> (g % 2 * 4)) & 15;
    if (f == Format::Q5_K)
      for (int i = 0; i < 32; i++) q[i] |= uint8_t((upper[i] >> g & 1) << 4);
  } else if (f == Format::Q6_K) {
    // 128 columns share 64 bytes of nibbles and 32 of upper bits; groups of 16 columns, 8 in each half.
    const int half = g / 8, quarter = g % 8 / 2, offset = g % 2 * 16;
    const uint8_t* nibbles = block + half * 64 + quarter % 2 * 32 + offset;
    const uint8_t* upper = block + 128 + half * 32 + offset;
    for (int i = 0; i < 16; i++)
      q[i] = uint8_t((nibbles[i] >> (quarter / 2 * 4) & 15) | (upper[i] >> (2 * quarter) & 3) << 4);
  } else {
    const bool five = f == Format::Q5_0 || f == Format::Q5_1;
    const int header = f == Format::Q4_0 || f == Format::Q5_0 ? 2 : 4;
    const uint8_t* nibbles = block + header + (five ? 4 : 0);
    for (int i = 0; i < 16; i++) q[i] = nibbles[i] & 15, q[i + 16] = nibbles[i] >> 4;
    if (five) {
      uint32_t upper;
      std::memcpy(&upper, block + header, 4);
      for (int i = 0; i < 32; i++) q[i] |= uint8_t((upper >> i & 1) << 4);
    }
  }
}

void six_bit_scales(const uint8_t* packed, int g, uint8_t* scale, uint8_t* min) {
  if (g < 4) {
    *scale = packed[g] & 63;
    *min = packed[g + 4] & 63;
  } else {
    *scale = uint8_t((packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4);
    *min = uint8_t((packed[g + 4] >> 4) | (packed[g] >> 6) << 4);
  }
}

void dequantize(Format f, int columns, const uint8_t* row, float* out) {
  if (f == Format::F32) {
    std::memcpy(out, row, size_t(columns) * 4);
  } else if (f == Format::F16) {
    for (int c = 0; c < columns; c++) out[c] = half(row + 2 * c);
  } else if (f == Format::BF16) {
    for (int c = 0; c < columns; c++) out[c] = from_bits(uint32_t(half_at(row + 2 * c)) << 16);
  } else {
    const Block block = block_of(f);
    const int group = layout(f).group;
    for (int c = 0; c < columns; c += block.columns, row += block.bytes)
      for (int g = 0; g * group < block.columns; g++) dequantize_group(f, row, g, group, out + c + g * group);
  }
}

}  // namespace ventoux
