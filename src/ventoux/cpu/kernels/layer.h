// One decoder layer's work on a batch: norms, projections, attention and MLP, over arrays that all layers share.
#pragma once

#include <memory>
#include <vector>

#include "ops.h"

namespace ventoux {

// What a batch of T tokens is worked on in, float32: E hidden size, H heads, K KV heads, D head_dim, F intermediate size.
struct Arrays {
  int tokens, hidden, heads, kv_heads, head_dim, intermediate;
  float* x;                // [T, E], the residual stream
  float* normed;           // [T, E]
  float *q, *k, *v;        // [T, H * D], [T, K * D] twice
  float* attended;         // [T, H * D]
  float *gate, *up;        // [T, F]
  const float *cos, *sin;  // [T, D / 2]
};

// The sequences of a batch, whose memory stays while this is there: another thread may free them meanwhile.
class Sequences {
 public:
  // `count` tokens from row `row` on, at positions start, start + 1, ...
  struct Part {
    int slot, row, count, start;
  };
  // Throws std::out_of_range for a slot that is not allocated.
  Sequences(const Cache& cache, std::vector<Part> parts);
  // The spans in a layer, until the next call. Throws std::out_of_range when one has been freed, or there is no such layer.
  const std::vector<Span>& enter(int layer);
  // The same where only the last tokens of each are asked for, so many of them.
  const std::vector<Span>& enter(int layer, const std::vector<int>& asked);
  const std::vector<Part>& parts() const { return parts_; }

 private:
  const Cache& cache_;
  std::vector<Part> parts_;
  std::vector<Span> spans_;
  std::vector<std::shared_ptr<uint8_t>> held_;
};

// A batch on its way through the layers.
struct Pass {
  Pool& pool;
  const Cache& cache;
  Arrays arrays;
  Sequences sequences;
  Plan plan;  // of a layer's attention
};

// A layer's five parts, in their order. Each takes from the pass's arrays what the one before it left there, so something
// may be added between them.
class Layer {
 public:
  struct Weights {
    std::vector<float> input_norm, post_norm;
    const Weight *q, *k, *v, *o, *gate, *up, *down;
  };
  Layer(int index, Weights weights, float eps, Rounding rounding)
      : index_(index), weights_(std::move(weights)), eps_(eps), rounding_(rounding) {}
  int index() const { return index_; }
  const Weights& weights() const { return weights_; }

  void project_qkv(Pass& pass) const;      // normed = norm(x); q, k, v = their weights . normed
  void attend(Pass& pass, const std::vector<Span>& spans) const;  // attended = attention(q, k, v); k, v go to the spans
  void project_o(Pass& pass) const;        // x += o . attended
  void project_gate_up(Pass& pass) const;  // normed = norm(x); gate, up = their weights . normed
  void project_down(Pass& pass) const;     // gate = silu(gate) * up; x += down . gate

  void mlp(Pass& pass) const;  // the last two in one, which leave `up` as it is where that is faster

  // All of it for the rows alone that the spans ask for, which are the first ones of x then, and all that the pass has. The others'
  // k and v go to the spans, too.
  void run_asked(Pass& pass, const std::vector<Span>& spans) const;

 private:
  Input normed(const Arrays& a, const std::vector<float>& weight, int first, int tokens) const;  // rows of x on their way
  void add_down(Pass& pass, float* x, int tokens) const;  // x += down . gate
  int index_;
  Weights weights_;
  float eps_;
  Rounding rounding_;
};

}  // namespace ventoux
