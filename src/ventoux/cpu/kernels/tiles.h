// How the tokens of a batch are cut into tiles: full ones, then 8, 4, 2 and 1.
#pragma once

#include "kernels.h"

namespace ventoux {
namespace {

constexpr int kFewTokens = 16;  // wait for weights, which are then read in the order in which they lie, and used as they lie

template <int n>
struct Size {
  static constexpr int value = n;
};

// Calls visit(first token, Size<tokens>) for each tile in [first, last), full tiles having `full` tokens. `first` is a
// multiple of kWidestTile, and so is `last` unless the batch ends there: then all threads cut the batch the same way.
template <int full, class Visit>
inline void for_each_tile(int first, int last, Visit visit) {
  static_assert(kWidestTile % full == 0, "threads would cut differently");
  // The last 8 cost less as two of 4 than as 6 and 2, where they lie within kWidestTile.
  const int full_end = full == 6 && (last - first) % kWidestTile == 8 ? last - 8 : last;
  int t = first;
  for (; t + full <= full_end; t += full) visit(t, Size<full>());
  if constexpr (full > 8)
    for (; t + 8 <= last; t += 8) visit(t, Size<8>());
  if constexpr (full > 4)
    for (; t + 4 <= last; t += 4) visit(t, Size<4>());
  if constexpr (full > 2)
    for (; t + 2 <= last; t += 2) visit(t, Size<2>());
  for (; t < last; t++) visit(t, Size<1>());
}

}  // namespace
}  // namespace ventoux
