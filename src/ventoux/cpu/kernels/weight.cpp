#include "weight.h"

#include <algorithm>
#include <cstring>

#include "blocks.h"

namespace ventoux {
namespace {

// One row's quants of a group, into the lines of the panel.
void write_quants(const Layout& l, const uint8_t* q, int row, uint8_t* out) {
  uint32_t words[8];  // words[j]: the four columns of line j
  std::memcpy(words, q, size_t(l.group));
  const int lines = l.lines(), half = lines / 2;
  const auto put = [&](int line, uint32_t word) { std::memcpy(out + line * 64 + row * 4, &word, 4); };
  if (l.bits == 8) {
    for (int j = 0; j < lines; j++) put(j, words[j]);
    return;
  }
  for (int j = 0; j < half; j++) put(j, (words[j] & 0x0f0f0f0fu) | (words[j + half] & 0x0f0f0f0fu) << 4);
  uint32_t upper = 0;
  if (l.bits == 5)
    for (int j = 0; j < lines; j++) upper |= (words[j] >> 4 & 0x01010101u) << j;
  if (l.bits == 6)
    for (int j = 0; j < lines; j++) upper |= (words[j] >> 4 & 0x03030303u) << (2 * j);
  if (l.bits > 4) put(half, upper);
}

void pack_block(Format f, const uint8_t* block, int row, uint8_t* out) {
  const Layout l = layout(f);
  const bool super = l.block_header > 0;
  if (f == Format::Q6_K) std::memcpy(out + 2 * row, block + 208, 2);
  else if (super) std::memcpy(out + 2 * row, block, 2), std::memcpy(out + 32 + 2 * row, block + 2, 2);
  out += l.block_header;
  for (int g = 0; g < l.per_block; g++, out += l.group_bytes()) {
    if (f == Format::Q6_K) {
      out[row] = block[192 + g];
    } else if (super) {
      six_bit_scales(block + 4, g, out + row, out + 16 + row);
    } else {
      std::memcpy(out + 2 * row, block, 2);
      if (l.group_header == 64) std::memcpy(out + 32 + 2 * row, block + 2, 2);
    }
    uint8_t q[32];
    quants_of(f, block, g, q);
    write_quants(l, q, row, out + l.group_header);
  }
}

// Columns of floats, one row's part of a panel: [column][row], or [column / 2][row][2] for bf16.
void pack_floats(Format f, size_t columns, const uint8_t* in, int row, uint8_t* out) {
  const size_t size = size_t(block_of(f).bytes), pair = f == Format::BF16 ? 2 : 1;
  for (size_t c = 0; c < columns; c++)
    std::memcpy(out + ((c / pair * kPanel + size_t(row)) * pair + c % pair) * size, in + c * size, size);
}

// Bytes that a block's columns take in a panel, in all of its 16 rows.
size_t block_in_panel(Format f) {
  const Block block = block_of(f);
  const Layout l = layout(f);
  return l.bits ? size_t(l.block_bytes()) * size_t(block.columns / (l.group * l.per_block)) : size_t(kPanel * block.bytes);
}

}  // namespace

size_t Weight::memory_bytes(Format format, int rows, int columns) {
  return (Weight(format, rows, columns, nullptr).bytes_ + kSlack + 63) / 64 * 64;
}

Weight::Weight(Format format, int rows, int columns, const uint8_t* packed)
    : format_(format), rows_(rows), columns_(columns), panels_((rows + kPanel - 1) / kPanel), data_(packed) {
  // Half a pair is filled up with zeros.
  const int whole = format == Format::BF16 ? columns + columns % 2 : columns;
  panel_bytes_ = size_t(whole / block_of(format).columns) * block_in_panel(format);
  bytes_ = panel_bytes_ * size_t(panels_);
}

Weight::Weight(Pool& pool, Format format, int rows, int columns, const uint8_t* data, const int32_t* order)
    : Weight(format, rows, columns, nullptr) {
  const Block block = block_of(format);
  const Layout l = layout(format);
  const size_t blocks = size_t(columns / block.columns), row_bytes = blocks * size_t(block.bytes);
  const size_t out_bytes = block_in_panel(format), memory = memory_bytes(format, rows, columns);
  memory_ = Pages(memory, true);  // zeros: scales of the rows that fill the last panel, the half of a pair that is not there
  data_ = memory_.data();
  pool.run(panels_, [&](int panel, int) {
    uint8_t* out = memory_.data() + size_t(panel) * panel_bytes_;
    const int lanes = std::min(kPanel, rows_ - panel * kPanel);
    for (int row = 0; row < lanes; row++) {
      const int logical = panel * kPanel + row;
      const uint8_t* in = data + size_t(order ? order[logical] : logical) * row_bytes;
      if (l.bits) {
        for (size_t b = 0; b < blocks; b++) pack_block(format_, in + b * size_t(block.bytes), row, out + b * out_bytes);
      } else {
        pack_floats(format_, blocks, in, row, out);
      }
    }
  });
}

void Weight::settle(uint8_t* memory) {
  if (memory_.data()) return;
  std::memcpy(memory, data(), memory_bytes(format_, rows_, columns_));
  data_.store(memory, std::memory_order_release);
}

Matrix Weight::matrix() const { return {format_, rows_, columns_, panels_, panel_bytes_, data()}; }

}  // namespace ventoux
