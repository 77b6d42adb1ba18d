// Attention of a batch: new keys and values go into the cache, then pieces of work are shared by the threads.
#include <algorithm>
#include <cstring>

#include "ops.h"

namespace ventoux {
namespace {

// Numbers to store below which waking other threads takes longer than they save.
constexpr int64_t kStoreAlone = 1 << 14;

// All tasks, by the pool's threads or by this one alone.
void run(Pool& pool, bool alone, int tasks, Work work) {
  if (!alone) return pool.run(tasks, work);
  for (int i = 0; i < tasks; i++) work(i, 0);
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
  const size_t D = size_t(in.head_dim), bytes = panel_bytes(shape);
  const bool alone = int64_t(in.tokens) * in.kv_heads * in.head_dim < kStoreAlone;
  run(pool, alone, int(plan.runs.size()), [&](int i, int thread) {
    const Run& part = plan.runs[size_t(i)];
    const Placed& placed = plan.spans[size_t(part.span)];
    const Span& span = placed.span;
    for (int t = part.first; t < part.last; t++)
      for (int head = 0; head < in.kv_heads; head++) {
        const int position = span.start + t;
        uint8_t* panel = placed.apart ? memory + placed.chunk + size_t(head) * placed.head_bytes +
                                             size_t(position / kPanel - span.start / kPanel) * bytes
                                       : span.ring.panels + head_bytes(shape, span.ring.capacity) * size_t(head) +
                                             size_t(position % span.ring.capacity / kPanel) * bytes;
        const size_t token = size_t(span.row + t), row = (token * size_t(in.kv_heads) + size_t(head)) * D;
        pool.kernels().store_kv(shape, in.k + row, in.v + row, in.cos + token * (D / 2), in.sin + token * (D / 2), panel,
                                position % kPanel, (float*)pool.scratch(thread, scratch));
      }
  });
}

void attend(Pool& pool, Plan& plan, const AttentionShape& shape, float* found, size_t scratch) {
  // The thread that is done last with a piece puts its parts together.
  run(pool, plan.products < kAttendAlone, int(plan.parts.size()), [&](int i, int thread) {
    const Part& part = plan.parts[size_t(i)];
    const Piece& piece = plan.pieces[size_t(part.piece)];
    float* own = (float*)pool.scratch(thread, scratch);
    pool.kernels().attend(shape, piece.queries, part.block0, part.block1, found + piece.found, own);
    if (piece.parts > 1 && __atomic_sub_fetch(&plan.left[size_t(part.piece)], 1, __ATOMIC_SEQ_CST) == 0)
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

void attention(Pool& pool, const Cache& cache, const AttentionInput& in, const std::vector<Span>& spans, float* out, Plan& plan) {
  const AttentionShape shape{in.heads, in.kv_heads, in.head_dim, cache.window(in.layer), cache.type()};
  make(plan, shape, in, spans, pool.threads(), out);
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
