// How the attention of a batch is cut into pieces, and how these are shared by the threads.
#pragma once

#include <vector>

#include "kernels.h"

namespace ventoux {

// Rotates q [T, heads, D] and k [T, kv_heads, D] by cos and sin [T, D / 2] (halves i and i + D/2 are a pair), attends, and
// puts k and v into the cache.
struct AttentionInput {
  int layer, heads, kv_heads, head_dim, tokens;
  const float *q, *k, *v, *cos, *sin;
};

// A span, and where its new keys and values go: into the ring, or into a chunk beside it.
struct Placed {
  Span span;
  bool apart;
  size_t chunk, head_bytes;  // the chunk's offset in shared memory, and each head's share of it
};

// Some queries of one span and one KV head. When there are few, their blocks are cut into parts for several threads.
struct Piece {
  Queries queries;
  int64_t products;     // multiplications, each query counted with the keys that they see together
  size_t chunk, found;  // offsets in shared memory: bytes of the chunk, floats of what each block gives (unused by one part)
  int parts;
};

struct Part {
  int piece, block0, block1;
};

// New keys of a span that go into one panel: tokens [first, last).
struct Run {
  int span, first, last;
};

// How the work of one layer is shared out.
struct Plan {
  std::vector<Placed> spans;
  std::vector<Run> runs;
  std::vector<Piece> pieces;
  std::vector<Part> parts;
  std::vector<int> left;  // of each piece, the parts that are not done
  size_t chunk_bytes, found_floats;
  int64_t products;
};

// Makes `plan` anew, in the memory that it has from the layer before.
void make(Plan& plan, const AttentionShape& shape, const AttentionInput& in, const std::vector<Span>& spans, int threads,
          float* out);

// Products below which waking other threads takes longer than they save.
constexpr int64_t kAttendAlone = 1 << 18;

}  // namespace ventoux
