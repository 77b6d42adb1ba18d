// A weight, repacked from the file's rows into panels, or such panels where they lie already.
#pragma once

#include <atomic>

#include "layout.h"
#include "pool.h"

namespace ventoux {

constexpr size_t kSlack = 64;  // bytes behind a weight's panels that a kernel may load and not use

class Weight {
 public:
  // `data` is [rows][bytes of a row] in the file's layout (GGML's blocks); logical row i stands in row order[i], or in row
  // i when `order` is null.
  Weight(Pool& pool, Format format, int rows, int columns, const uint8_t* data, const int32_t* order);
  // The memory of an equal weight, kept elsewhere: `packed` is aligned to 64 bytes and outlives this weight.
  Weight(Format format, int rows, int columns, const uint8_t* packed);
  // Copies what is kept elsewhere to `memory`, which is as large and aligned and outlives this weight, and from where the next
  // kernels read it; those at work go on with what they have begun. What was packed here stays. One caller at a time.
  void settle(uint8_t* memory);
  // Bytes of a weight's memory: its panels and kSlack behind them, a multiple of 64.
  static size_t memory_bytes(Format format, int rows, int columns);
  Matrix matrix() const;
  const uint8_t* data() const { return data_.load(std::memory_order_acquire); }
  size_t nbytes() const { return bytes_; }
  int rows() const { return rows_; }
  int columns() const { return columns_; }
  Format format() const { return format_; }

 private:
  Format format_;
  int rows_, columns_, panels_;
  size_t panel_bytes_, bytes_;
  Pages memory_;  // none when the bytes are somebody else's
  std::atomic<const uint8_t*> data_;
};

}  // namespace ventoux
