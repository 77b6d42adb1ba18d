#include "ops.h"

#include <algorithm>
#include <atomic>

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

constexpr int kForms = 12;  // floats, bf16, and those of the block formats: more than any instruction set has

// Bytes of each of a form's arrays.
struct Sizes {
  size_t x, low, more, scale, sum, start, wide;
};
Sizes sizes_of(int tokens, int columns, Form form) {
  const size_t n = size_t(tokens) * size_t(columns), pairs = size_t(tokens) * (size_t(columns + 1) / 2);
  if (form.group == 0) return form.pairs ? Sizes{0, pairs * 4, 0, 0, 0, 0, 0} : Sizes{n * 4, 0, 0, 0, 0, 0, 0};
  const size_t groups = n / size_t(form.group);
  if (form.superblocks()) return {0, groups * kSuperWords * 4, 0, groups * 4, groups * 4, groups * kSuperStarts * 4, 0};
  const size_t sum = form.offset ? 0 : groups * 4, start = form.offset || form.nibbles ? groups * 4 : 0;
  if (form.pairs) return {0, 2 * n, 0, groups * 4, sum, start, 0};
  return {0, n, form.nibbles ? n / 2 : n, groups * 4, sum, start, groups * 2};
}

size_t placed_bytes(int tokens, int columns, Form form) {
  const Sizes s = sizes_of(tokens, columns, form);
  return padded(s.x) + padded(s.low) + padded(s.more) + padded(s.scale) + padded(s.sum) + padded(s.start) + padded(s.wide);
}

// Activations of some tokens in one form, in memory from `at` on; moves `at` behind them.
Activations place(int tokens, int columns, Form form, uint8_t*& at) {
  const auto take = [&](size_t bytes) {
    uint8_t* p = at;
    at += padded(bytes);
    return bytes ? p : nullptr;
  };
  const Sizes s = sizes_of(tokens, columns, form);
  Activations a{tokens, columns, form, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  a.x = (float*)take(s.x);
  a.low = (int32_t*)take(s.low);
  a.more = (int32_t*)take(s.more);
  a.scale = (float*)take(s.scale);
  a.sum = (float*)take(s.sum);
  a.start = (int32_t*)take(s.start);
  a.wide = (uint16_t*)take(s.wide);
  return a;
}

// Activations in each form that the products of an operation want.
struct Regrouped {
  Activations of[kForms];
  int forms = 0;

  void want(Form form) {
    if (!find(form)) of[forms++].form = form;
  }
  const Activations* find(Form form) const {
    const Activations* end = of + forms;
    const Activations* at = std::find_if(of, end, [&](const Activations& a) { return a.form == form; });
    return at == end ? nullptr : at;
  }
  size_t bytes(const Input& x) const {
    size_t sum = 0;
    for (int i = 0; i < forms; i++) sum += placed_bytes(x.tokens, x.columns, of[i].form);
    return sum;
  }
  void place_at(uint8_t* memory, const Input& x) {
    for (int i = 0; i < forms; i++) of[i] = place(x.tokens, x.columns, of[i].form, memory);
  }
  // Of rows [first, last), normed into `normed` if there are weights: it and what follows find them in L1 or L2.
  void make(const Kernels& kernels, const Input& x, float* normed, int first, int last) const {
    for (int row = first; x.weight && row < last; row++) {
      const size_t at = size_t(row) * size_t(x.columns);
      kernels.rms_norm(x.x + at, x.weight, x.eps, x.columns, normed + at);
    }
    for (int i = 0; i < forms; i++) kernels.regroup(x.weight ? normed : x.x, of[i], first, last);
  }
};

// What a thread has regrouped for itself, and for which operation: its arrays lie behind it.
struct Own {
  uint64_t operation;
  Regrouped activations;
};
std::atomic<uint64_t> operations{uint64_t(1) << 62};  // no number that other bytes, moved as the memory grew, could be taken for

Regrouped regrouped(Pool& pool, const Input& x, Regrouped to) {
  to.place_at(pool.shared(to.bytes(x)), x);
  run_parts(pool, x.tokens, kWidestTile, [&](int first, int last, int) { to.make(pool.kernels(), x, x.normed, first, last); });
  return to;
}

}  // namespace

void linear(Pool& pool, const Input& x, const Product* products, int count, bool add, Rounding rounding) {
  const Kernels& kernels = pool.kernels();
  const auto form_of = [&](const Product& p) { return kernels.form(p.weight->format(), rounding); };
  Regrouped wanted;
  for (const Product* p = products; p < products + count; p++) wanted.want(form_of(*p));
  // Where it would be one thread's work each does it for itself: others would wait for it, and then for its bytes, which come several times
  // slower from a core with another L3 than from one's own.
  const bool own = x.tokens <= kWidestTile;
  const size_t normed_bytes = x.weight ? padded(size_t(x.tokens) * size_t(x.columns) * sizeof(float)) : 0;
  const size_t own_bytes = own ? padded(sizeof(Own)) + normed_bytes + wanted.bytes(x) : 0;
  for (int i = 0; i < pool.threads(); i++) pool.scratch(i, kScratchBytes), pool.regrouped(i, own_bytes);
  if (!own) wanted = regrouped(pool, x, wanted);
  const uint64_t operation = ++operations;
  const auto activations = [&](int thread) -> const Regrouped& {
    if (!own) return wanted;
    uint8_t* memory = pool.regrouped(thread, own_bytes);
    Own& mine = *(Own*)memory;
    if (mine.operation == operation) return mine.activations;
    memory += padded(sizeof(Own));
    mine.activations = wanted;
    mine.activations.place_at(memory + normed_bytes, x);
    mine.activations.make(kernels, x, thread == 0 ? x.normed : (float*)memory, 0, x.tokens);
    mine.operation = operation;
    return mine.activations;
  };

  // All products in one run: a thread that is done with the first goes on with the second. Each has ceil(panels / step) parts.
  int panels = 0, parts = 0;
  for (const Product* p = products; p < products + count; p++) panels += p->weight->matrix().panels;
  // An even number of panels, for some kernels take two at once.
  const int step = std::max(2, panels / (pool.threads() * kPartsPerThread) / 2 * 2);
  for (const Product* p = products; p < products + count; p++) parts += (p->weight->matrix().panels + step - 1) / step;
  pool.run(parts, [&](int part, int thread) {
    const Product* p = products;
    int first = part * step;
    for (; first >= p->weight->matrix().panels; p++) first -= (p->weight->matrix().panels + step - 1) / step * step;
    const Matrix matrix = p->weight->matrix();
    kernels.linear(matrix, *activations(thread).find(form_of(*p)), p->y, add, first, std::min(first + step, matrix.panels),
                   pool.scratch(thread, kScratchBytes));
  });
  if (own && x.weight) activations(0);  // `normed` is wanted also when others have done all the parts
}

void gated(Pool& pool, const Input& x, const Weight& gate, const Weight& up, float* y, float* spare, Rounding rounding) {
  const Kernels& kernels = pool.kernels();
  const Form form = kernels.form(gate.format(), rounding);
  if (gate.format() != up.format() || !kernels.gates(gate.format(), form, x.tokens)) {
    const Product products[] = {{&gate, y}, {&up, spare}};
    linear(pool, x, products, 2, false, rounding);
    return swiglu(pool, y, spare, size_t(x.tokens) * size_t(gate.rows()));
  }
  Regrouped wanted;
  wanted.want(form);
  const Activations a = *regrouped(pool, x, wanted).of;
  for (int i = 0; i < pool.threads(); i++) pool.scratch(i, kScratchBytes);
  run_parts(pool, gate.matrix().panels, 1, [&](int first, int last, int thread) {
    kernels.gated(gate.matrix(), up.matrix(), a, y, first, last, pool.scratch(thread, kScratchBytes));
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

}  // namespace ventoux
