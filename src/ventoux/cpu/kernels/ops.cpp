#include "ops.h"

#include <algorithm>

namespace ventoux {
namespace {

// Enough parts that a thread which lost its core for a moment does not hold up the others.
constexpr int kPartsPerThread = 8;

template <class Work>
void run_parts(Pool& pool, int count, int unit, Work work) {
  const int units = (count + unit - 1) / unit;
  const int parts = std::min(units, pool.threads() * kPartsPerThread);
  pool.run(parts, [&](int part, int thread) {
    const int first = int(int64_t(units) * part / parts) * unit, last = int(int64_t(units) * (part + 1) / parts) * unit;
    work(first, std::min(last, count), thread);
  });
}

size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Activations of some tokens for one group size, in memory from `at` on; moves `at` behind them.
Activations place(int tokens, int columns, int group, uint8_t*& at) {
  Activations a{tokens, columns, group, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const size_t n = size_t(tokens) * size_t(columns);
  const auto take = [&](size_t bytes) {
    uint8_t* p = at;
    at += padded(bytes);
    return p;
  };
  if (group == 0) {
    a.x = (float*)take(n * 4);
  } else {
    const size_t groups = n / size_t(group);
    a.low = (int32_t*)take(n);
    a.high = (int32_t*)take(n);
    a.scale = (float*)take(groups * 4);
    a.sum = (float*)take(groups * 4);
    a.wide = take(groups);
  }
  return a;
}

size_t placed_bytes(int tokens, int columns, int group) {
  const size_t n = size_t(tokens) * size_t(columns);
  if (group == 0) return padded(n * 4);
  const size_t groups = n / size_t(group);
  return 2 * padded(n) + 2 * padded(groups * 4) + padded(groups);
}

}  // namespace

void linear(Pool& pool, const float* x, int tokens, int columns, const std::vector<Product>& products, bool add,
            Rounding rounding) {
  const auto group_of = [&](const Product& p) {
    return rounding == Rounding::None ? 0 : activation_group(p.weight->format());
  };
  const Kernels& kernels = pool.kernels();
  std::vector<int> groups;
  size_t bytes = 0;
  for (const Product& p : products) {
    const int group = group_of(p);
    if (std::find(groups.begin(), groups.end(), group) != groups.end()) continue;
    groups.push_back(group);
    bytes += placed_bytes(tokens, columns, group);
  }
  uint8_t* memory = pool.shared(bytes);
  std::vector<Activations> activations;
  for (int group : groups) {
    activations.push_back(place(tokens, columns, group, memory));
    const Activations& to = activations.back();
    run_parts(pool, to.tokens, kWidestTile, [&](int first, int last, int) { kernels.regroup(x, to, rounding, first, last); });
  }

  // All products in one run: a thread that is done with the first goes on with the second.
  struct Part {
    const Product* product;
    const Activations* x;
    int first, last;
  };
  std::vector<Part> parts;
  int panels = 0;
  for (const Product& p : products) panels += p.weight->matrix().panels;
  const int step = std::max(1, panels / (pool.threads() * kPartsPerThread));
  for (const Product& p : products) {
    const size_t which = size_t(std::find(groups.begin(), groups.end(), group_of(p)) - groups.begin());
    const int end = p.weight->matrix().panels;
    for (int first = 0; first < end; first += step) parts.push_back({&p, &activations[which], first, std::min(first + step, end)});
  }
  for (int i = 0; i < pool.threads(); i++) pool.scratch(i, kScratchBytes);
  pool.run(int(parts.size()), [&](int i, int thread) {
    const Part& part = parts[size_t(i)];
    kernels.linear(part.product->weight->matrix(), *part.x, part.product->y, add, part.first, part.last,
                   pool.scratch(thread, kScratchBytes));
  });
}

void rms_norm(Pool& pool, const float* x, const float* weight, float eps, int rows, int columns, float* y) {
  run_parts(pool, rows, 4, [&](int first, int last, int) {
    for (int r = first; r < last; r++)
      pool.kernels().rms_norm(x + size_t(r) * size_t(columns), weight, eps, columns, y + size_t(r) * size_t(columns));
  });
}

void swiglu(Pool& pool, float* gate, const float* up, size_t n) {
  constexpr size_t kUnit = 4096;
  run_parts(pool, int((n + kUnit - 1) / kUnit), 1, [&](int first, int last, int) {
    const size_t from = size_t(first) * kUnit, to = std::min(size_t(last) * kUnit, n);
    pool.kernels().swiglu(gate + from, up + from, to - from);
  });
}

namespace {

void rotate(float* x, int heads, int head_dim, const float* cos, const float* sin) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; h++, x += head_dim)
    for (int i = 0; i < half; i++) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cos[i] - b * sin[i];
      x[i + half] = b * cos[i] + a * sin[i];
    }
}

}  // namespace

void attention(Pool& pool, const Cache& cache, const AttentionInput& in, std::vector<Span> spans, float* out) {
  const size_t D = size_t(in.head_dim), half = D / 2;
  const AttentionShape shape{in.heads, in.kv_heads, in.head_dim, cache.window(in.layer), cache.half()};
  run_parts(pool, in.tokens, 4, [&](int first, int last, int) {
    for (int t = first; t < last; t++) {
      rotate(in.q + size_t(t) * size_t(in.heads) * D, in.heads, in.head_dim, in.cos + size_t(t) * half, in.sin + size_t(t) * half);
      rotate(in.k + size_t(t) * size_t(in.kv_heads) * D, in.kv_heads, in.head_dim, in.cos + size_t(t) * half,
             in.sin + size_t(t) * half);
    }
  });

  // The new keys and values of each span and head, in the cache's layout and precision.
  std::vector<size_t> offsets;
  size_t bytes = 0, longest = 0;
  for (const Span& span : spans) {
    offsets.push_back(bytes);
    bytes += 2 * size_t(in.kv_heads) * head_bytes(shape, span.count);
    longest = std::max(longest, std::min(size_t(span.start) + size_t(span.count), size_t(shape.window)));
  }
  uint8_t* chunk = pool.shared(bytes);
  const auto chunk_keys = [&](int s, int head) { return chunk + offsets[size_t(s)] + size_t(2 * head) * head_bytes(shape, spans[size_t(s)].count); };
  const auto chunk_values = [&](int s, int head) { return chunk_keys(s, head) + head_bytes(shape, spans[size_t(s)].count); };
  const int jobs = int(spans.size()) * in.kv_heads;
  run_parts(pool, jobs, 1, [&](int first, int last, int) {
    for (int i = first; i < last; i++) {
      const int s = i / in.kv_heads, head = i % in.kv_heads;
      const size_t row = size_t(spans[size_t(s)].row) * size_t(in.kv_heads) * D;
      pool.kernels().pack_chunk(shape, spans[size_t(s)], head, in.k + row, in.v + row, chunk_keys(s, head), chunk_values(s, head));
    }
  });

  std::vector<int> span_of;
  for (size_t s = 0; s < spans.size(); s++) span_of.insert(span_of.end(), size_t(spans[s].count), int(s));
  const size_t group = size_t(in.heads / in.kv_heads), score_bytes = group * (longest + 2 * kPanel) * sizeof(float);
  for (int i = 0; i < pool.threads(); i++) pool.scratch(i, score_bytes);
  // Tokens vary fastest: neighbouring jobs share a head's keys.
  const int tokens = in.tokens;
  run_parts(pool, tokens * in.kv_heads, 1, [&](int first, int last, int thread) {
    float* scores = (float*)pool.scratch(thread, score_bytes);
    for (int i = first; i < last; i++) {
      const int head = i / tokens, t = i % tokens, s = span_of[size_t(t)];
      const size_t at = (size_t(t) * size_t(in.heads) + size_t(head) * group) * D;
      pool.kernels().attend(shape, spans[size_t(s)], t - spans[size_t(s)].row, head, in.q + at, chunk_keys(s, head),
                            chunk_values(s, head), out + at, scores);
    }
  });
  run_parts(pool, jobs, 1, [&](int first, int last, int) {
    for (int i = first; i < last; i++)
      cache.append(spans[size_t(i / in.kv_heads)], i % in.kv_heads, chunk_keys(i / in.kv_heads, i % in.kv_heads),
                   chunk_values(i / in.kv_heads, i % in.kv_heads));
  });
}

}  // namespace ventoux
