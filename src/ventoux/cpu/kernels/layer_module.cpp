// The Python face of a layer and of a batch's pass through the layers: checks shapes once, then computes.
#include "bindings.h"

namespace ventoux {

Rounding rounding_of(const std::string& compute) {
  if (compute == "f32") return Rounding::None;
  if (compute == "int16") return Rounding::Int16;
  require(compute == "mixed", "compute must be f32, int16 or mixed");
  return Rounding::Mixed;
}

Sequences sequences_of(const Cache& cache, const Ints& slots, const Ints& starts, const Ints& counts, int tokens) {
  require(slots.shape(0) == starts.shape(0) && slots.shape(0) == counts.shape(0), "spans differ in length");
  std::vector<Sequences::Part> parts;
  int row = 0;
  for (size_t i = 0; i < slots.shape(0); i++) {
    const int start = starts.data()[i], count = counts.data()[i];
    require(start >= 0 && count > 0 && start <= INT_MAX - count, "a span is out of range");
    require(count <= tokens - row, "the spans do not cover the tokens");
    parts.push_back({slots.data()[i], row, count, start});
    row += count;
  }
  require(row == tokens, "the spans do not cover the tokens");
  Sequences sequences(cache, parts);
  for (const auto& part : parts)
    require(part.start + part.count <= cache.length(part.slot), "a sequence is longer than the cache was told");
  return sequences;
}

namespace {

// A pass that holds on to what its arrays lie in.
struct BoundPass : Pass {
  std::vector<Out2> outs;
  std::vector<Floats2> angles;
};

void make_pass(BoundPass* at, Pool& pool, const Cache& cache, Out2 x, Out2 normed, Out2 q, Out2 k, Out2 v, Out2 attended, Out2 gate,
               Out2 up, Floats2 cos, Floats2 sin, Ints slots, Ints starts, Ints counts) {
  const int D = cache.head_dim(), T = size(x, 0), K = cache.kv_heads(), H = size(q, 1) / D;
  for (const auto* a : {&normed, &q, &k, &v, &attended, &gate, &up}) require(size(*a, 0) == T, "arrays differ in tokens");
  for (const auto* a : {&cos, &sin}) require(size(*a, 0) == T && size(*a, 1) == D / 2, "angles have the wrong shape");
  require(size(k, 1) == K * D && size(v, 1) == K * D, "the cache was made for another model");
  require(H > 0 && H % K == 0 && size(q, 1) == H * D && size(attended, 1) == H * D, "q and k must be whole heads, shared evenly");
  require(size(normed, 1) == size(x, 1) && size(gate, 1) == size(up, 1), "arrays differ in shape");
  const Arrays arrays{T, size(x, 1), H, K, D, size(gate, 1), x.data(), normed.data(), q.data(), k.data(), v.data(),
                      attended.data(), gate.data(), up.data(), cos.data(), sin.data()};
  Sequences sequences = sequences_of(cache, slots, starts, counts, T);
  new (at) BoundPass{{pool, cache, arrays, std::move(sequences), {}}, {x, normed, q, k, v, attended, gate, up}, {cos, sin}};
}

void make_layer(Layer* at, int index, Floats1 input_norm, const Weight& q, const Weight& k, const Weight& v, const Weight& o,
                Floats1 post_norm, const Weight& gate, const Weight& up, const Weight& down, float eps, const std::string& compute) {
  require(index >= 0, "a layer's index cannot be negative");
  const int E = q.columns();
  for (const Weight* each : {&k, &v, &gate, &up}) require(each->columns() == E, "weights differ in columns");
  require(input_norm.shape(0) == size_t(E) && post_norm.shape(0) == size_t(E), "a norm differs from the weights in size");
  require(o.rows() == E && o.columns() == q.rows() && v.rows() == k.rows(), "the weights around attention differ in shape");
  require(down.rows() == E && down.columns() == gate.rows() && up.rows() == gate.rows(), "the MLP's weights differ in shape");
  const auto copied = [](const Floats1& a) { return std::vector<float>(a.data(), a.data() + a.shape(0)); };
  new (at) Layer(index, {copied(input_norm), copied(post_norm), &q, &k, &v, &o, &gate, &up, &down}, eps, rounding_of(compute));
}

void check(const Layer& layer, const Pass& pass) {
  const auto& w = layer.weights();
  const Arrays& a = pass.arrays;
  require(w.q->columns() == a.hidden && w.q->rows() == a.heads * a.head_dim && w.k->rows() == a.kv_heads * a.head_dim &&
              w.gate->rows() == a.intermediate,
          "the layer is of another model than the arrays");
}

template <void (Layer::*part)(Pass&) const>
void run_part(const Layer& layer, BoundPass& pass) {
  check(layer, pass);
  nb::gil_scoped_release release;
  if (pass.arrays.tokens > 0) (layer.*part)(pass);
}

void attend(const Layer& layer, BoundPass& pass) {
  check(layer, pass);
  const std::vector<Span>& spans = pass.sequences.enter(layer.index());  // while nobody frees or allocates
  nb::gil_scoped_release release;
  if (pass.arrays.tokens > 0) layer.attend(pass, spans);
}

void run(const Layer& layer, BoundPass& pass) {
  check(layer, pass);
  const std::vector<Span>& spans = pass.sequences.enter(layer.index());
  nb::gil_scoped_release release;
  if (pass.arrays.tokens == 0) return;
  layer.project_qkv(pass);
  layer.attend(pass, spans);
  layer.project_o(pass);
  layer.mlp(pass);
}

void run_asked(const Layer& layer, BoundPass& pass, Ints rows) {
  check(layer, pass);
  std::vector<int> asked;
  size_t found = 0;
  for (const auto& part : pass.sequences.parts()) {
    const size_t first = found;
    while (found < rows.shape(0) && rows.data()[found] < part.row + part.count) found++;
    asked.push_back(int(found - first));
    for (size_t i = first; i < found; i++)
      require(rows.data()[i] == part.row + part.count - int(found - i), "rows must be the last ones of their spans, in order");
  }
  require(found == rows.shape(0), "rows must be the last ones of their spans, in order");
  const std::vector<Span>& spans = pass.sequences.enter(layer.index(), asked);
  nb::gil_scoped_release release;
  if (pass.arrays.tokens > 0) layer.run_asked(pass, spans);
}

}  // namespace

void bind_layer(nb::module_& m) {
  nb::class_<BoundPass>(m, "Pass", "A batch on its way through the layers, and the arrays that they work in.")
      .def("__init__", &make_pass, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), "pool"_a, "cache"_a, "x"_a.noconvert(),
           "normed"_a.noconvert(), "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(), "attended"_a.noconvert(),
           "gate"_a.noconvert(), "up"_a.noconvert(), "cos"_a, "sin"_a, "slots"_a, "starts"_a, "counts"_a);
  nb::class_<Layer>(m, "Layer", "A decoder layer: `run`, or its five parts, between which arrays may be read and added to.")
      .def("__init__", &make_layer, nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(),
           nb::keep_alive<1, 9>(), nb::keep_alive<1, 10>(), nb::keep_alive<1, 11>(), "index"_a, "input_norm"_a, "q"_a, "k"_a,
           "v"_a, "o"_a, "post_norm"_a, "gate"_a, "up"_a, "down"_a, "eps"_a, "compute"_a)
      .def("project_qkv", &run_part<&Layer::project_qkv>, "batch"_a, "normed = norm(x); q, k, v = their weights . normed")
      .def("attend", &attend, "batch"_a, "attended = attention(q, k, v); k and v go into the cache")
      .def("project_o", &run_part<&Layer::project_o>, "batch"_a, "x += o . attended")
      .def("project_gate_up", &run_part<&Layer::project_gate_up>, "batch"_a, "normed = norm(x); gate, up = their weights . normed")
      .def("project_down", &run_part<&Layer::project_down>, "batch"_a, "gate = silu(gate) * up; x += down . gate")
      .def("run", &run, "batch"_a, "All five, in this order.")
      .def("run_asked", &run_asked, "batch"_a, "rows"_a,
           "`run` for some rows alone, the last ones of their spans: they are x's first ones then, and the batch has no others. Keys and "
           "values of all go into the cache.");
}

}  // namespace ventoux
