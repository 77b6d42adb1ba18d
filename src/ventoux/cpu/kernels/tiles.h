// How the rows of a batch are cut into tiles: full ones of kTile rows, then 4, 2 and 1.
#pragma once

#include "kernels.h"

namespace ventoux {
namespace {

template <int n>
struct Size {
  static constexpr int value = n;
};

// Calls visit(first row, Size<rows>) for each tile in [row0, row1). row0 is a multiple of kWidestTile, and so is
// row1 unless the batch ends there: then all threads cut the batch the same way.
template <class Visit>
inline void for_each_tile(int row0, int row1, Visit visit) {
  static_assert(kWidestTile % kTile == 0 && kTile % kTerms == 0, "threads would cut differently, or split a token");
  int m = row0;
  for (; m + kTile <= row1; m += kTile) visit(m, Size<kTile>());
  if constexpr (kTile > 4)
    for (; m + 4 <= row1; m += 4) visit(m, Size<4>());
  for (; m + 2 <= row1; m += 2) visit(m, Size<2>());
  if (m < row1) visit(m, Size<1>());
}

}  // namespace
}  // namespace ventoux
