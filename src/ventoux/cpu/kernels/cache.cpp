#include "cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace ventoux {

Cache::Cache(int kv_heads, int head_dim, std::vector<int> windows, bool half)
    : shape_{0, kv_heads, head_dim, 0, half}, windows_(std::move(windows)) {}

int Cache::capacity(const Sequence& sequence, size_t layer) const {
  return int(std::min(int64_t(windows_.at(layer)) + sequence.lookahead, int64_t(sequence.length)));
}

int Cache::allocate(int length, int lookahead) {
  Sequence sequence;
  sequence.length = length;
  sequence.lookahead = lookahead;
  for (size_t l = 0; l < windows_.size(); l++)
    sequence.bytes += 2 * head_bytes(shape_, capacity(sequence, l)) * size_t(shape_.kv_heads);
  sequence.memory.reset(static_cast<uint8_t*>(std::calloc(sequence.bytes + 64, 1)), std::free);
  if (!sequence.memory) throw std::bad_alloc();
  bytes_ += sequence.bytes;
  const auto free = std::find_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.memory; });
  const int slot = int(free - sequences_.begin());
  if (free == sequences_.end()) sequences_.push_back(std::move(sequence));
  else *free = std::move(sequence);
  return slot;
}

void Cache::free(int slot) {
  if (slot < 0 || size_t(slot) >= sequences_.size() || !sequences_[size_t(slot)].memory)
    throw std::out_of_range("cache slot " + std::to_string(slot) + " is not allocated");
  bytes_ -= sequences_[size_t(slot)].bytes;
  sequences_[size_t(slot)] = Sequence();
}

int Cache::sequences() const {
  return int(std::count_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return bool(s.memory); }));
}

Ring Cache::ring(int slot, int layer) const {
  if (slot < 0 || size_t(slot) >= sequences_.size() || !sequences_[size_t(slot)].memory)
    throw std::out_of_range("cache slot " + std::to_string(slot) + " is not allocated");
  const Sequence& sequence = sequences_[size_t(slot)];
  const int slots = capacity(sequence, size_t(layer));  // first: it checks `layer`
  uint8_t* at = sequence.memory.get();
  for (int l = 0; l < layer; l++) at += 2 * head_bytes(shape_, capacity(sequence, size_t(l))) * size_t(shape_.kv_heads);
  return {at, at + head_bytes(shape_, slots) * size_t(shape_.kv_heads), slots};
}

void Cache::append(const Span& span, int kv_head, const uint8_t* keys, const uint8_t* values) const {
  const size_t D = size_t(round_up(shape_.head_dim)), size = shape_.half ? 2 : 4, step = kPanel * size;
  const int capacity = span.ring.capacity;
  uint8_t* ring_keys = span.ring.keys + head_bytes(shape_, capacity) * size_t(kv_head);
  uint8_t* ring_values = span.ring.values + head_bytes(shape_, capacity) * size_t(kv_head);
  for (int t = std::max(0, span.count - capacity); t < span.count; t++) {
    const int slot = (span.start + t) % capacity;
    const uint8_t* from = keys + (size_t(t & ~15) * D + size_t(t & 15)) * size;
    uint8_t* to = ring_keys + (size_t(slot & ~15) * D + size_t(slot & 15)) * size;
    for (size_t d = 0; d < D; d++, from += step, to += step) {
      if (size == 2) std::memcpy(to, from, 2);  // a constant size becomes one move
      else std::memcpy(to, from, 4);
    }
    std::memcpy(ring_values + size_t(slot) * D * size, values + size_t(t) * D * size, D * size);
  }
}

}  // namespace ventoux
