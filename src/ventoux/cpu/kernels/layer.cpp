#include "layer.h"

namespace ventoux {

Sequences::Sequences(const Cache& cache, std::vector<Part> parts) : cache_(cache), parts_(std::move(parts)) {
  enter(0);
  for (const Part& part : parts_) held_.push_back(cache.memory(part.slot));
}

const std::vector<Span>& Sequences::enter(int layer) {
  spans_.clear();
  for (const Part& part : parts_) spans_.push_back({cache_.ring(part.slot, layer), part.row, part.count, part.start});
  return spans_;
}

void Layer::norm(Pass& pass, const std::vector<float>& weight) const {
  const Arrays& a = pass.arrays;
  rms_norm(pass.pool, a.x, weight.data(), eps_, a.tokens, a.hidden, a.normed);
}

void Layer::project_qkv(Pass& pass) const {
  const Arrays& a = pass.arrays;
  norm(pass, weights_.input_norm);
  const Product products[] = {{weights_.q, a.q}, {weights_.k, a.k}, {weights_.v, a.v}};
  linear(pass.pool, a.normed, a.tokens, a.hidden, products, 3, false, rounding_);
}

void Layer::attend(Pass& pass, const std::vector<Span>& spans) const {
  const Arrays& a = pass.arrays;
  const AttentionInput in{index_, a.heads, a.kv_heads, a.head_dim, a.tokens, a.q, a.k, a.v, a.cos, a.sin};
  attention(pass.pool, pass.cache, in, spans, a.attended, pass.plan);
}

void Layer::project_o(Pass& pass) const {
  const Arrays& a = pass.arrays;
  const Product product{weights_.o, a.x};
  linear(pass.pool, a.attended, a.tokens, a.heads * a.head_dim, &product, 1, true, rounding_);
}

void Layer::project_gate_up(Pass& pass) const {
  const Arrays& a = pass.arrays;
  norm(pass, weights_.post_norm);
  const Product products[] = {{weights_.gate, a.gate}, {weights_.up, a.up}};
  linear(pass.pool, a.normed, a.tokens, a.hidden, products, 2, false, rounding_);
}

void Layer::project_down(Pass& pass) const {
  const Arrays& a = pass.arrays;
  swiglu(pass.pool, a.gate, a.up, size_t(a.tokens) * size_t(a.intermediate));
  add_down(pass);
}

void Layer::mlp(Pass& pass) const {
  const Arrays& a = pass.arrays;
  norm(pass, weights_.post_norm);
  gated(pass.pool, a.normed, a.tokens, a.hidden, *weights_.gate, *weights_.up, a.gate, a.up, rounding_);
  add_down(pass);
}

void Layer::add_down(Pass& pass) const {
  const Arrays& a = pass.arrays;
  const Product product{weights_.down, a.x};
  linear(pass.pool, a.gate, a.tokens, a.intermediate, &product, 1, true, rounding_);
}

}  // namespace ventoux
