// A weight, repacked from the file's rows into panels.
#pragma once

#include <cstdlib>
#include <memory>

#include "layout.h"
#include "pool.h"

namespace ventoux {

class Weight {
 public:
  // `data` is [rows][bytes of a row] in the file's layout (GGML's blocks); logical row i stands in row order[i], or in row
  // i when `order` is null.
  Weight(Pool& pool, Format format, int rows, int columns, const uint8_t* data, const int32_t* order);
  // Bytes of a row in the file's layout, 0 when `columns` is no multiple of the format's block.
  static size_t row_bytes(Format format, int columns);
  Matrix matrix() const;
  size_t nbytes() const { return bytes_; }
  int rows() const { return rows_; }
  int columns() const { return columns_; }
  Format format() const { return format_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  Format format_;
  int rows_, columns_, panels_;
  size_t panel_bytes_, bytes_;
  std::unique_ptr<uint8_t, Free> memory_;
};

}  // namespace ventoux
