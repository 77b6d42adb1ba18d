// The Python face of the kernels: checks shapes, releases the GIL, computes.
#include <memory>
#include <optional>

#include "bindings.h"
#include "blocks.h"
#include "layout.h"
#include "limits.h"
#include "selection.h"

using namespace ventoux;

namespace {

Format format_of(const std::string& name) {
  constexpr const char* names[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};
  for (int i = 0; i < 11; i++)
    if (name == names[i]) return Format(i);
  throw std::invalid_argument("no kernel for the number format " + name);
}

KvType kv_type_of(const std::string& name) {
  constexpr const char* names[] = {"f32", "f16", "int8"};
  for (int i = 0; i < 3; i++)
    if (name == names[i]) return KvType(i);
  throw std::invalid_argument("no KV cache of the number format " + name);
}

const char* activations_of(const Pool& pool, const std::string& format) {
  const Form form = pool.kernels().form(format_of(format), Rounding::Mixed);
  if (form.group == 0) return form.pairs ? "bf16" : "fp32";
  return form.superblocks() ? "int14" : form.pairs ? "int16" : form.nibbles == 16 ? "int12" : form.nibbles ? "int11" : "int8";
}

void make_weight(Weight* at, Pool& pool, const std::string& format, int columns, Rows data, std::optional<Ints> order) {
  const int rows = size(data, 0);
  require(!order || order->shape(0) == data.shape(0), "order must have one entry a row");
  if (order)
    for (size_t i = 0; i < order->shape(0); i++)
      require(order->data()[i] >= 0 && order->data()[i] < rows, "order names a row that is not there");
  const Format f = format_of(format);
  const uint8_t* bytes = data.data();
  const int32_t* to = order ? order->data() : nullptr;
  require(data.shape(1) == row_bytes(f, columns), "a row has another number of bytes than its format and columns say");
  nb::gil_scoped_release release;
  new (at) Weight(pool, f, rows, columns, bytes, to);
}

size_t packed_bytes(const std::string& format, int rows, int columns) {
  const Format f = format_of(format);
  require(rows > 0 && rows <= INT_MAX - kPanel && row_bytes(f, columns) > 0, "no matrix of this format has this shape");
  return Weight::memory_bytes(f, rows, columns);
}

Weight* mapped_weight(const std::string& format, int rows, int columns, Bytes packed) {
  require(packed.shape(0) == packed_bytes(format, rows, columns), "packed bytes of another shape or format");
  require(reinterpret_cast<uintptr_t>(packed.data()) % 64 == 0, "packed bytes must begin at a multiple of 64");
  return new Weight(format_of(format), rows, columns, packed.data());
}

void settle(Weight& weight, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> memory) {
  require(memory.shape(0) == Weight::memory_bytes(weight.format(), weight.rows(), weight.columns()), "memory of another size");
  require(reinterpret_cast<uintptr_t>(memory.data()) % 64 == 0, "memory must begin at a multiple of 64");
  nb::gil_scoped_release release;
  weight.settle(memory.data());
}

nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> packed_of(nb::handle self) {
  const Weight& w = nb::cast<const Weight&>(self);
  return {w.data(), {Weight::memory_bytes(w.format(), w.rows(), w.columns())}, self};
}

nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> pages(size_t bytes, bool whole) {
  require(bytes > 0, "no memory was asked for");
  auto memory = std::make_unique<Pages>(bytes, whole);
  uint8_t* data = memory->data();
  const nb::capsule owner(memory.release(), [](void* it) noexcept { delete static_cast<Pages*>(it); });
  return {data, {bytes}, owner};
}

void linear_py(Pool& pool, Floats2 x, const std::vector<Weight*>& weights, const std::vector<Out2>& outs, bool add,
               const std::string& compute) {
  const Rounding rounding = rounding_of(compute);
  require(weights.size() == outs.size() && !weights.empty(), "one output for each weight");
  std::vector<Product> products;
  const int tokens = size(x, 0), columns = size(x, 1);
  for (size_t i = 0; i < weights.size(); i++) {
    require(weights[i], "a weight is None");
    require(weights[i]->columns() == columns, "x and a weight differ in columns");
    require(size(outs[i], 0) == tokens && size(outs[i], 1) == weights[i]->rows(), "an output has the wrong shape");
    products.push_back({weights[i], outs[i].data()});
  }
  nb::gil_scoped_release release;
  if (tokens > 0) linear(pool, {x.data(), tokens, columns}, products.data(), int(products.size()), add, rounding);
}

void dequantize_py(const std::string& format, Rows data, Ints index, Out2 out) {
  const Format f = format_of(format);
  const int rows = size(data, 0), columns = size(out, 1);
  require(data.shape(1) == row_bytes(f, columns), "a row has another number of bytes than its format and columns say");
  require(index.shape(0) == out.shape(0), "one row of the output for each index");
  for (size_t i = 0; i < index.shape(0); i++) require(0 <= index.data()[i] && index.data()[i] < rows, "no such row");
  nb::gil_scoped_release release;
  for (size_t i = 0; i < index.shape(0); i++)
    dequantize(f, columns, data.data() + size_t(index.data()[i]) * data.shape(1), out.data() + i * out.shape(1));
}

void rms_norm_py(Pool& pool, Floats2 x, Floats1 weight, float eps, Out2 out) {
  require(x.shape(1) == weight.shape(0) && out.shape(0) == x.shape(0) && out.shape(1) == x.shape(1), "shapes differ");
  const int rows = size(x, 0), columns = size(x, 1);
  nb::gil_scoped_release release;
  rms_norm(pool, x.data(), weight.data(), eps, rows, columns, out.data());
}

void swiglu_py(Pool& pool, Out2 gate, Floats2 up) {
  require(gate.shape(0) == up.shape(0) && gate.shape(1) == up.shape(1), "gate and up differ in shape");
  nb::gil_scoped_release release;
  swiglu(pool, gate.data(), up.data(), gate.size());
}

void attention_py(Pool& pool, const Cache& cache, int layer, int head_dim, Floats2 q, Floats2 k, Floats2 v, Floats2 cos, Floats2 sin,
                  Ints slots, Ints starts, Ints counts, Out2 out) {
  require(head_dim > 0 && cache.head_dim() == head_dim, "the cache was made for another model");
  const int tokens = size(q, 0), heads = size(q, 1) / head_dim, kv_heads = size(k, 1) / head_dim;
  require(kv_heads == cache.kv_heads(), "the cache was made for another model");
  require(heads % kv_heads == 0 && size(q, 1) == heads * head_dim && size(k, 1) == kv_heads * head_dim,
          "q and k must be whole heads, shared evenly");
  for (const auto* a : {&v, &cos, &sin}) require(size(*a, 0) == tokens, "arrays differ in tokens");
  require(size(k, 0) == tokens && size(out, 0) == tokens && out.shape(1) == q.shape(1), "arrays differ in shape");
  require(v.shape(1) == k.shape(1), "arrays differ in shape");
  require(size(cos, 1) == head_dim / 2 && size(sin, 1) == head_dim / 2, "arrays differ in shape");
  Sequences sequences = sequences_of(cache, slots, starts, counts, tokens);
  const std::vector<Span>& spans = sequences.enter(layer);
  const AttentionInput in{layer, heads, kv_heads, head_dim, tokens, q.data(), k.data(), v.data(), cos.data(), sin.data()};
  Plan plan;
  nb::gil_scoped_release release;
  attention(pool, cache, in, spans, out.data(), plan);
}

void copy_positions(const Cache& cache, int from, int to, int layer, int first, int end) {
  require(0 <= first && first <= end && end <= cache.length(to), "no such positions");
  const Ring source = cache.ring(from, layer), target = cache.ring(to, layer);
  const std::shared_ptr<uint8_t> held[] = {cache.memory(from), cache.memory(to)};
  nb::gil_scoped_release release;
  cache.copy(source, target, first, end);
}

nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> ring_of(const Cache& cache, int slot, int layer) {
  const Ring ring = cache.ring(slot, layer);
  auto held = std::make_unique<std::shared_ptr<uint8_t>>(cache.memory(slot));
  nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<std::shared_ptr<uint8_t>*>(p); });
  held.release();
  return {ring.panels, {cache.ring_bytes(ring)}, owner};
}

void weigh_py(const std::string& isa, Floats1 scores, float highest, float temperature, Out1 out) {
  require(out.shape(0) == scores.shape(0), "scores and weights differ in number");
  require(temperature > 0, "a temperature is above 0");
  kernels_of(isa).weigh(scores.data(), highest, temperature, scores.shape(0), out.data());
}

float kth_largest_py(Floats1 values, size_t k) {
  require(1 <= k && k <= values.shape(0), "k must be from 1 to the number of values");
  return kth_largest(values.data(), values.shape(0), k);
}

float nucleus_floor_py(Floats1 weights, double share) {
  require(weights.shape(0) > 0 && 0 < share && share <= 1, "a share is above 0 and at most 1, of at least one weight");
  return nucleus_floor(weights.data(), weights.shape(0), share);
}

size_t draw_py(Floats1 weights, double share) {
  require(weights.shape(0) > 0 && 0 <= share && share < 1, "a share is at least 0 and below 1, of at least one weight");
  return draw(weights.data(), weights.shape(0), share);
}

uint64_t read_memory_py(Pool& pool, Words words) {
  const uint64_t* data = words.data();
  const size_t count = words.shape(0);
  nb::gil_scoped_release release;
  return read_memory(pool, data, count);
}

}  // namespace

// What is written to is never converted (noconvert): the results would go to a copy.
NB_MODULE(_kernels, m) {
  m.doc() = "Ventoux's CPU kernels. Arrays are C-contiguous float32; T tokens, H heads, K KV heads, D head_dim.";

  m.def("instruction_sets", &instruction_sets, "Names of the instruction sets that this machine can run, best first.");

  m.attr("LAYOUT_VERSION") = kLayoutVersion;
  m.def("packed_bytes", &packed_bytes, "format"_a, "rows"_a, "columns"_a, "Bytes of a weight's memory when it is packed.");

  nb::class_<Pool>(m, "Pool", "Threads, and the instruction set that they run.")
      .def(nb::init<int, const std::string&>(), "threads"_a, "isa"_a)
      .def_prop_ro("threads", &Pool::threads)
      .def("activations", &activations_of, "format"_a,
           "What `mixed` makes of activations for weights of this format: fp32, bf16, int16, int8 (int16 in groups that stand out), int11 or\n"
           "int12 (int8 in groups that do not), or int14 (with one scale for 256 columns).")
      .def("drop_shared", &Pool::drop_shared, "Give back what kernels share, which is as large as the largest batch was.")
      .def_prop_ro("isa", [](const Pool& p) { return std::string(p.kernels().name); });

  nb::class_<Weight>(m, "Weight", "A matrix, packed for the kernels in its own bit width.")
      .def("__init__", &make_weight, "pool"_a, "format"_a, "columns"_a, "data"_a, "order"_a.none() = nb::none(),
           "data: uint8 [rows, bytes of a row]; logical row i is data[order[i]].")
      .def_static("mapped", &mapped_weight, "format"_a, "rows"_a, "columns"_a, "packed"_a.noconvert(), nb::keep_alive<0, 4>(),
                  "A weight whose memory is `packed`, uint8 [packed_bytes(...)], the bytes of another one's `packed`.")
      .def("settle", &settle, "memory"_a.noconvert(), nb::keep_alive<1, 2>(),
           "Copy a mapped weight to `memory`, uint8 [packed_bytes(...)], which it uses from then on; kernels may run meanwhile.")
      .def_prop_ro("packed", &packed_of, "Its memory, uint8 [packed_bytes(...)], read-only.")
      .def_prop_ro("nbytes", &Weight::nbytes)
      .def_prop_ro("rows", &Weight::rows)
      .def_prop_ro("columns", &Weight::columns);

  nb::class_<Cache>(m, "Cache", "Keys and values: min(window, length) positions of each sequence and layer.")
      .def(
          "__init__",
          [](Cache* at, int kv_heads, int head_dim, const std::vector<std::optional<int>>& windows, const std::string& dtype) {
            require(kv_heads > 0 && head_dim > 0 && head_dim % 2 == 0, "head_dim must be even, as its halves are rotated in pairs");
            std::vector<int> bounds;
            for (const auto& w : windows) {
              require(!w || *w > 0, "a window must be at least 1");
              bounds.push_back(w.value_or(INT_MAX));
            }
            new (at) Cache(kv_heads, head_dim, std::move(bounds), kv_type_of(dtype));
          },
          "kv_heads"_a, "head_dim"_a, "windows"_a, "dtype"_a)
      .def(
          "allocate",
          [](Cache& c, int length, int lookahead) {
            require(length > 0, "a sequence needs at least one position");
            require(length <= INT_MAX - 2 * kPanel, "a sequence is longer than positions can count");
            require(lookahead >= 0, "a lookahead cannot be negative");
            return c.allocate(length, lookahead);
          },
          "length"_a, "lookahead"_a = 0,
          "Make room for a sequence of at most `length` positions, of which the last `lookahead` can be taken back -> slot.")
      .def("free", &Cache::free, "slot"_a, "Give a sequence's memory back.")
      .def("capacity", [](const Cache& c, int slot, int layer) { return c.ring(slot, layer).capacity; }, "slot"_a, "layer"_a,
           "Positions that a sequence keeps in a layer.")
      .def("copy", &copy_positions, "source"_a, "to"_a, "layer"_a, "first"_a, "end"_a,
           "Copy positions first .. end - 1 of a sequence's layer to another sequence.")
      .def("ring", &ring_of, "slot"_a, "layer"_a, "The bytes of a sequence's layer, which may be written to.")
      .def_prop_ro("nbytes", &Cache::nbytes, "Bytes that the allocated sequences hold.")
      .def_prop_ro("sequences", &Cache::sequences, "Sequences that are allocated.");

  m.def("pages", &pages, "bytes"_a, "whole"_a,
        "Zeros, uint8 [bytes], from the system, which has them back with the array's end; in huge pages if all will be written.");
  m.def("linear", &linear_py, "pool"_a, "x"_a, "weights"_a, "outs"_a.noconvert(), "add"_a, "compute"_a,
        "outs[i] (+)= x . weights[i] for x [T, columns], outs[i] [T, rows], which lie apart from x.");
  m.def("dequantize", &dequantize_py, "format"_a, "data"_a.noconvert(), "index"_a, "out"_a.noconvert(),
        "out [N, columns] = rows index [N] of data, uint8 [rows, bytes of a row].");
  m.def("rms_norm", &rms_norm_py, "pool"_a, "x"_a, "weight"_a, "eps"_a, "out"_a.noconvert(),
        "out = x / rms(x) * weight, row by row.");
  m.def("swiglu", &swiglu_py, "pool"_a, "gate"_a.noconvert(), "up"_a, "gate = silu(gate) * up.");
  m.def("attention", &attention_py, "pool"_a, "cache"_a, "layer"_a, "head_dim"_a, "q"_a, "k"_a,
        "v"_a, "cos"_a, "sin"_a, "slots"_a, "starts"_a, "counts"_a, "out"_a.noconvert(),
        "Rotate q [T, H*D] and k [T, K*D], attend into out [T, H*D], put k and v [T, K*D] into the cache.");

  bind_layer(m);

  m.def("weigh", &weigh_py, "isa"_a, "scores"_a, "highest"_a, "temperature"_a, "out"_a.noconvert(),
        "out = exp((scores - highest) / temperature), 0 for what is below exp(-87); scores [C] float32, `highest` the largest.");
  m.def("kth_largest", &kth_largest_py, "values"_a, "k"_a, "The k-th largest of values [C] float32, none a NaN.");
  m.def("nucleus_floor", &nucleus_floor_py, "weights"_a, "share"_a,
        "The smallest of the fewest largest weights [C] float32 that hold `share` of the whole; none is negative, not all are 0.");
  m.def("draw", &draw_py, "weights"_a, "share"_a,
        "The first of weights [C] float32 with which their running sum passes `share` of the whole; none is negative, not all are 0.");

  m.def("read_memory", &read_memory_py, "pool"_a, "words"_a.noconvert(), "The sum of uint64 words, modulo 2^64.");
  m.def("multiply_int8", &multiply_int8, "pool"_a, "blocks"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Multiply int8 in registers, `blocks` times 4,096 rounds on each thread -> products in all.");
  m.def("multiply_fp32", &multiply_fp32, "pool"_a, "blocks"_a, nb::call_guard<nb::gil_scoped_release>(),
        "The same for fp32.");
  m.def("multiply_bf16", &multiply_bf16, "pool"_a, "blocks"_a, nb::call_guard<nb::gil_scoped_release>(),
        "The same for bf16; 0 where the kernels do not multiply that.");
}
