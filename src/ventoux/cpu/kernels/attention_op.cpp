// Attention of a batch: new keys and values go into the cache, then pieces of work are shared by the threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "ops.h"

namespace ventoux {
namespace {

// Enough pieces that no thread waits long for another.
constexpr int64_t kPiecesPerThread = 4;
// Queries of one piece: their sums and a block of keys and values fit a core's L2. For many threads there are fewer of them;
// below the least it is the blocks that are shared.
constexpr int kMostQueries = 96, kLeastQueries = 24;
// Products to add, and numbers to store, below which waking other threads takes longer than they save.
constexpr int64_t kAttendAlone = 1 << 18, kStoreAlone = 1 << 14;

// All tasks, by the pool's threads or by this one alone.
template <class Work>
void run(Pool& pool, bool alone, int tasks, Work work) {
  if (!alone) return pool.run(tasks, work);
  for (int i = 0; i < tasks; i++) work(i, 0);
}

// A span, and where its new keys and values go: into the ring, or into a chunk beside it.
struct Placed {
  Span span;
  bool apart;
  size_t chunk, head_bytes;  // the chunk's offset in shared memory, and each head's share of it
};

// New keys may overwrite old ones that the first new token still sees: then they wait in a chunk. W=4, a ring of 16: at
// position 20, 13 tokens overwrite positions 4..16, and position 20 sees 17..20; 14 tokens would overwrite 17.
bool must_wait(const Span& span, int window) {
  return int64_t(span.start) + span.count > span.ring.capacity && span.count > int64_t(span.ring.capacity) - window + 1;
}

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

struct Plan {
  std::vector<Placed> spans;
  std::vector<Piece> pieces;
  std::vector<Part> parts;
  size_t chunk_bytes = 0, found_floats = 0;
  int64_t products = 0;
};

void place(Plan& plan, const AttentionShape& shape, const std::vector<Span>& spans) {
  for (const Span& span : spans) {
    // A chunk begins with the whole panel that its first position is in.
    const size_t bytes = head_bytes(shape, span.start % kPanel + span.count);
    plan.spans.push_back({span, must_wait(span, shape.window), plan.chunk_bytes, bytes});
    if (plan.spans.back().apart) plan.chunk_bytes += bytes * size_t(shape.kv_heads);
  }
}

void cut(Plan& plan, const AttentionShape& shape, const AttentionInput& in, int threads, float* out) {
  const int group = in.heads / in.kv_heads;
  const size_t D = size_t(in.head_dim);
  int most = kMostQueries;
  while (most > kLeastQueries && int64_t(in.tokens) * in.heads < most * threads * kPiecesPerThread) most /= 2;
  for (const Placed& placed : plan.spans) {
    const Span& span = placed.span;
    const int64_t queries = int64_t(span.count) * group;
    for (int head = 0; head < in.kv_heads; head++)
      // The last queries see the most keys: whoever gets them should begin first.
      for (int64_t last = queries, first; last > 0; last = first) {
        first = (last - 1) / most * most;
        Queries q{};
        q.first = int(first), q.last = int(last);
        q.start = span.start, q.group = group;
        const size_t row = (size_t(span.row) * size_t(in.heads) + size_t(head) * size_t(group)) * D;
        q.q = in.q + row, q.out = out + row;
        q.cos = in.cos + size_t(span.row) * (D / 2), q.sin = in.sin + size_t(span.row) * (D / 2);
        q.ring = span.ring.panels + head_bytes(shape, span.ring.capacity) * size_t(head);
        q.ring_panels = span.ring.capacity / kPanel;
        q.chunk_panel = placed.apart ? span.start / kPanel : INT32_MAX;
        const int low = std::max(span.start + q.first / group - shape.window + 1, 0), high = span.start + (q.last - 1) / group;
        q.block = low / kBlock, q.blocks = high / kBlock + 1 - q.block;
        const int64_t products = int64_t(q.last - q.first) * (high + 1 - low) * 2 * in.head_dim;
        plan.pieces.push_back({q, products, placed.chunk + size_t(head) * placed.head_bytes, 0, 1});
        plan.products += products;
      }
  }
}

void share(Plan& plan, const AttentionShape& shape, int threads) {
  const int64_t fair = plan.products / (threads * kPiecesPerThread) + 1;
  const bool alone = threads == 1 || plan.products < kAttendAlone;
  for (size_t i = 0; i < plan.pieces.size(); i++) {
    Piece& piece = plan.pieces[i];
    const Queries& q = piece.queries;
    piece.parts = alone ? 1 : int(std::min<int64_t>(q.blocks, (piece.products + fair - 1) / fair));
    for (int64_t p = 0; p < piece.parts; p++)
      plan.parts.push_back({int(i), int(q.blocks * p / piece.parts), int(q.blocks * (p + 1) / piece.parts)});
    if (piece.parts == 1) continue;
    piece.found = plan.found_floats;
    plan.found_floats += size_t(q.blocks) * found_floats(shape, q.last - q.first);
  }
}

// The old positions in the panel that a chunk begins in are copied, so that each panel lies in one place.
void begin_chunks(const Plan& plan, const AttentionShape& shape, uint8_t* memory) {
  for (const Placed& placed : plan.spans) {
    const Span& span = placed.span;
    if (!placed.apart || span.start % kPanel == 0) continue;
    for (int head = 0; head < shape.kv_heads; head++)
      std::memcpy(memory + placed.chunk + size_t(head) * placed.head_bytes,
                  span.ring.panels + head_bytes(shape, span.ring.capacity) * size_t(head) +
                      size_t(span.start % span.ring.capacity / kPanel) * panel_bytes(shape),
                  panel_bytes(shape));
  }
}

void store(Pool& pool, const Plan& plan, const AttentionShape& shape, const AttentionInput& in, uint8_t* memory, size_t scratch) {
  begin_chunks(plan, shape, memory);
  struct Run {
    const Placed* placed;
    int first, last;
  };
  std::vector<Run> runs;
  for (const Placed& placed : plan.spans)
    for (int t = 0, end; t < placed.span.count; t = end) {
      end = std::min(placed.span.count, t + kPanel - (placed.span.start + t) % kPanel);  // one panel, for one thread
      runs.push_back({&placed, t, end});
    }
  const size_t D = size_t(in.head_dim), bytes = panel_bytes(shape);
  const bool alone = int64_t(in.tokens) * in.kv_heads * in.head_dim < kStoreAlone;
  run(pool, alone, int(runs.size()), [&](int i, int thread) {
    const auto [placed, first, last] = runs[size_t(i)];
    const Span& span = placed->span;
    for (int t = first; t < last; t++)
      for (int head = 0; head < in.kv_heads; head++) {
        const int position = span.start + t;
        uint8_t* panel = placed->apart ? memory + placed->chunk + size_t(head) * placed->head_bytes +
                                             size_t(position / kPanel - span.start / kPanel) * bytes
                                       : span.ring.panels + head_bytes(shape, span.ring.capacity) * size_t(head) +
                                             size_t(position % span.ring.capacity / kPanel) * bytes;
        const size_t token = size_t(span.row + t), row = (token * size_t(in.kv_heads) + size_t(head)) * D;
        pool.kernels().store_kv(shape, in.k + row, in.v + row, in.cos + token * (D / 2), in.sin + token * (D / 2), panel,
                                position % kPanel, (float*)pool.scratch(thread, scratch));
      }
  });
}

void attend(Pool& pool, const Plan& plan, const AttentionShape& shape, float* found, size_t scratch) {
  // The thread that is done last with a piece puts its parts together.
  const auto left = std::make_unique<std::atomic<int>[]>(plan.pieces.size());
  for (size_t i = 0; i < plan.pieces.size(); i++) left[i] = plan.pieces[i].parts;
  run(pool, plan.products < kAttendAlone, int(plan.parts.size()), [&](int i, int thread) {
    const Part& part = plan.parts[size_t(i)];
    const Piece& piece = plan.pieces[size_t(part.piece)];
    float* own = (float*)pool.scratch(thread, scratch);
    pool.kernels().attend(shape, piece.queries, part.block0, part.block1, found + piece.found, own);
    if (piece.parts > 1 && --left[size_t(part.piece)] == 0)
      pool.kernels().merge(shape, piece.queries, found + piece.found, own);
  });
}

void append(Pool& pool, const Plan& plan, const Cache& cache, const uint8_t* memory) {
  if (plan.chunk_bytes == 0) return;
  const int heads = cache.kv_heads();
  pool.run(int(plan.spans.size()) * heads, [&](int i, int) {
    const Placed& placed = plan.spans[size_t(i / heads)];
    if (placed.apart) cache.append(placed.span, i % heads, memory + placed.chunk + size_t(i % heads) * placed.head_bytes);
  });
}

}  // namespace

void attention(Pool& pool, const Cache& cache, const AttentionInput& in, const std::vector<Span>& spans, float* out) {
  const AttentionShape shape{in.heads, in.kv_heads, in.head_dim, cache.window(in.layer), cache.type()};
  Plan plan;
  place(plan, shape, spans);
  cut(plan, shape, in, pool.threads(), out);
  share(plan, shape, pool.threads());
  uint8_t* memory = pool.shared(plan.chunk_bytes + plan.found_floats * sizeof(float));
  int most = 1;
  for (Piece& piece : plan.pieces) {
    piece.queries.chunk = memory + piece.chunk;
    most = std::max(most, piece.queries.last - piece.queries.first);
  }
  const size_t scratch = pool.kernels().attention_scratch(shape, most);
  for (int i = 0; i < pool.threads(); i++) pool.scratch(i, scratch);
  store(pool, plan, shape, in, memory, scratch);
  attend(pool, plan, shape, (float*)(memory + plan.chunk_bytes), scratch);
  append(pool, plan, cache, memory);
}

}  // namespace ventoux
