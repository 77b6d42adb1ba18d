#include "layer.h"

#include <algorithm>
#include <cstring>

namespace ventoux {
namespace {

// Tokens that pass the MLP at once: enough that reading its weights anew for each such block costs nothing, and so few that
// silu(gate) * up (15 MB in Mistral 7B) is still in L3 when it is read.
constexpr int kMlpTokens = 22 * kWidestTile;

}  // namespace

Sequences::Sequences(const Cache& cache, std::vector<Part> parts) : cache_(cache), parts_(std::move(parts)) {
  enter(0);
  for (const Part& part : parts_) held_.push_back(cache.memory(part.slot));
}

const std::vector<Span>& Sequences::enter(int layer) {
  spans_.clear();
  for (const Part& part : parts_) spans_.push_back({cache_.ring(part.slot, layer), part.row, part.count, part.start, 0, part.row});
  return spans_;
}

const std::vector<Span>& Sequences::enter(int layer, const std::vector<int>& asked) {
  enter(layer);
  int row = 0;
  for (size_t i = 0; i < spans_.size(); row += asked[i], i++) spans_[i].skipped = spans_[i].count - asked[i], spans_[i].query_row = row;
  return spans_;
}

Input Layer::normed(const Arrays& a, const std::vector<float>& weight, int first, int tokens) const {
  const size_t row = size_t(first) * size_t(a.hidden);
  return {a.x + row, tokens, a.hidden, weight.data(), eps_, a.normed + row};
}

void Layer::project_qkv(Pass& pass) const {
  const Arrays& a = pass.arrays;
  const Product products[] = {{weights_.q, a.q}, {weights_.k, a.k}, {weights_.v, a.v}};
  linear(pass.pool, normed(a, weights_.input_norm, 0, a.tokens), products, 3, false, rounding_);
}

void Layer::attend(Pass& pass, const std::vector<Span>& spans) const {
  const Arrays& a = pass.arrays;
  const AttentionInput in{index_, a.heads, a.kv_heads, a.head_dim, a.tokens, a.q, a.k, a.v, a.cos, a.sin};
  attention(pass.pool, pass.cache, in, spans, a.attended, pass.plan);
}

void Layer::project_o(Pass& pass) const {
  const Arrays& a = pass.arrays;
  const Product product{weights_.o, a.x};
  linear(pass.pool, {a.attended, a.tokens, a.heads * a.head_dim}, &product, 1, true, rounding_);
}

void Layer::project_gate_up(Pass& pass) const {
  const Arrays& a = pass.arrays;
  const Product products[] = {{weights_.gate, a.gate}, {weights_.up, a.up}};
  linear(pass.pool, normed(a, weights_.post_norm, 0, a.tokens), products, 2, false, rounding_);
}

void Layer::project_down(Pass& pass) const {
  const Arrays& a = pass.arrays;
  swiglu(pass.pool, a.gate, a.up, size_t(a.tokens) * size_t(a.intermediate));
  add_down(pass, a.x, a.tokens);
}

void Layer::mlp(Pass& pass) const {
  const Arrays& a = pass.arrays;
  // Blocks of one size: weights are not read for a few tokens that are left over.
  const int blocks = (a.tokens + kMlpTokens - 1) / kMlpTokens;
  const int block = blocks > 1 ? ((a.tokens + blocks - 1) / blocks + kWidestTile - 1) / kWidestTile * kWidestTile : a.tokens;
  for (int first = 0; first < a.tokens; first += block) {
    const int tokens = std::min(block, a.tokens - first);
    gated(pass.pool, normed(a, weights_.post_norm, first, tokens), *weights_.gate, *weights_.up, a.gate, a.up, rounding_);
    add_down(pass, a.x + size_t(first) * size_t(a.hidden), tokens);
  }
}

void Layer::run_asked(Pass& pass, const std::vector<Span>& spans) const {
  Arrays& a = pass.arrays;
  const Product keys[] = {{weights_.k, a.k}, {weights_.v, a.v}}, queries{weights_.q, a.q};
  linear(pass.pool, normed(a, weights_.input_norm, 0, a.tokens), keys, 2, false, rounding_);
  const size_t hidden = size_t(a.hidden);
  int asked = 0;
  for (const Span& span : spans)
    for (int t = span.skipped; t < span.count; t++, asked++)
      for (float* rows : {a.x, a.normed})  // upwards: what is written over has been moved, or is not asked for
        std::memmove(rows + size_t(asked) * hidden, rows + size_t(span.row + t) * hidden, hidden * sizeof(float));
  if (asked > 0) linear(pass.pool, {a.normed, asked, a.hidden}, &queries, 1, false, rounding_);
  attend(pass, spans);
  a.tokens = asked;
  if (asked == 0) return;
  project_o(pass);
  mlp(pass);
}

void Layer::add_down(Pass& pass, float* x, int tokens) const {
  const Arrays& a = pass.arrays;
  const Product product{weights_.down, x};
  linear(pass.pool, {a.gate, tokens, a.intermediate}, &product, 1, true, rounding_);
}

}  // namespace ventoux
