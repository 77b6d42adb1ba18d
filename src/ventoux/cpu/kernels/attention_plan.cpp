#include "attention_plan.h"

#include <algorithm>

namespace ventoux {
namespace {

// Enough pieces that no thread waits long for another.
constexpr int64_t kPiecesPerThread = 4;
// Queries of one piece: their sums and a block of keys and values fit a core's L2. For many threads there are fewer of them;
// below the least it is the blocks that are shared.
constexpr int kMostQueries = 96, kLeastQueries = 24;

// New keys may overwrite old ones that the first new token still sees: then they wait in a chunk. W=4, a ring of 16: at
// position 20, 13 tokens overwrite positions 4..16, and position 20 sees 17..20; 14 tokens would overwrite 17.
bool must_wait(const Span& span, int window) {
  return int64_t(span.start) + span.count > span.ring.capacity && span.count > int64_t(span.ring.capacity) - window + 1;
}

void place(Plan& plan, const AttentionShape& shape, const std::vector<Span>& spans) {
  for (const Span& span : spans) {
    // A chunk begins with the whole panel that its first position is in.
    const size_t bytes = head_bytes(shape, span.start % kPanel + span.count);
    plan.spans.push_back({span, must_wait(span, shape.window), plan.chunk_bytes, bytes});
    if (plan.spans.back().apart) plan.chunk_bytes += bytes * size_t(shape.kv_heads);
    for (int t = 0, end; t < span.count; t = end) {
      end = std::min(span.count, t + kPanel - (span.start + t) % kPanel);  // one panel, for one thread
      plan.runs.push_back({int(plan.spans.size()) - 1, t, end});
    }
  }
}

void cut(Plan& plan, const AttentionShape& shape, const AttentionInput& in, int threads, float* out) {
  const int group = in.heads / in.kv_heads;
  const size_t D = size_t(in.head_dim);
  int most = kMostQueries;
  while (most > kLeastQueries && int64_t(in.tokens) * in.heads < most * threads * kPiecesPerThread) most /= 2;
  for (const Placed& placed : plan.spans) {
    const Span& span = placed.span;
    const int start = span.start + span.skipped;
    const int64_t queries = int64_t(span.count - span.skipped) * group;
    for (int head = 0; head < in.kv_heads; head++)
      // The last queries see the most keys: whoever gets them should begin first.
      for (int64_t last = queries, first; last > 0; last = first) {
        first = (last - 1) / most * most;
        Queries q{};
        q.first = int(first), q.last = int(last);
        q.start = start, q.group = group;
        const size_t row = (size_t(span.query_row) * size_t(in.heads) + size_t(head) * size_t(group)) * D;
        const size_t angle = size_t(span.row + span.skipped) * (D / 2);
        q.q = in.q + row, q.out = out + row;
        q.cos = in.cos + angle, q.sin = in.sin + angle;
        q.ring = span.ring.panels + head_bytes(shape, span.ring.capacity) * size_t(head);
        q.next_ring = head + 1 < in.kv_heads ? q.ring + head_bytes(shape, span.ring.capacity) : nullptr;
        q.ring_panels = span.ring.capacity / kPanel;
        q.chunk_panel = placed.apart ? span.start / kPanel : INT32_MAX;
        const int low = std::max(start + q.first / group - shape.window + 1, 0), high = start + (q.last - 1) / group;
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
    plan.left.push_back(piece.parts);
    if (piece.parts == 1) continue;
    piece.found = plan.found_floats;
    plan.found_floats += size_t(q.blocks) * found_floats(shape, q.last - q.first);
  }
}

}  // namespace

void make(Plan& plan, const AttentionShape& shape, const AttentionInput& in, const std::vector<Span>& spans, int threads,
          float* out) {
  plan.spans.clear(), plan.runs.clear(), plan.pieces.clear(), plan.parts.clear(), plan.left.clear();
  plan.chunk_bytes = plan.found_floats = 0;
  plan.products = 0;
  place(plan, shape, spans);
  cut(plan, shape, in, threads, out);
  share(plan, shape, threads);
}

}  // namespace ventoux
