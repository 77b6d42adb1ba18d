#include "cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace ventoux {

Cache::Cache(int kv_heads, int head_dim, std::vector<int> windows, KvType type)
    : shape_{0, kv_heads, head_dim, 0, type}, windows_(std::move(windows)) {}

int Cache::capacity(const Sequence& sequence, size_t layer) const {
  return round_up(int(std::min(int64_t(windows_.at(layer)) + sequence.lookahead, int64_t(sequence.length))));
}

int Cache::allocate(int length, int lookahead) {
  Sequence sequence;
  sequence.length = length;
  sequence.lookahead = lookahead;
  for (size_t l = 0; l < windows_.size(); l++)
    sequence.bytes += head_bytes(shape_, capacity(sequence, l)) * size_t(shape_.kv_heads);
  const std::shared_ptr<uint8_t> memory(static_cast<uint8_t*>(std::calloc(sequence.bytes + 64, 1)), std::free);
  if (!memory) throw std::bad_alloc();
  // Panels begin with a cache line.
  sequence.memory = {memory, (uint8_t*)((uintptr_t(memory.get()) + 63) & ~uintptr_t(63))};
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
  for (int l = 0; l < layer; l++) at += head_bytes(shape_, capacity(sequence, size_t(l))) * size_t(shape_.kv_heads);
  return {at, slots};
}

void Cache::append(const Span& span, int kv_head, const uint8_t* chunk) const {
  const size_t bytes = panel_bytes(shape_);
  uint8_t* ring = span.ring.panels + head_bytes(shape_, span.ring.capacity) * size_t(kv_head);
  const int panels = span.ring.capacity / kPanel, end = span.start + span.count;
  // The ring has room for this many whole panels before the one that the chunk ends in.
  const int first = span.start / kPanel, last = end / kPanel;
  for (int panel = std::max(first, last - panels); panel < last; panel++)
    std::memcpy(ring + size_t(panel % panels) * bytes, chunk + size_t(panel - first) * bytes, bytes);
  // The lanes behind the end still hold older positions.
  copy_lanes(chunk + size_t(last - first) * bytes, ring + size_t(last % panels) * bytes, end % kPanel);
}

void Cache::copy_lanes(const uint8_t* from, uint8_t* to, int count) const {
  if (count == 0) return;
  const size_t values = key_bytes(shape_), size = kv_bytes(shape_.kv);
  const size_t lanes = size_t(count), width = kPanel * size, rows = size_t(round_up(shape_.head_dim));
  const auto copy = [&](size_t offset, size_t bytes) { std::memcpy(to + offset, from + offset, bytes); };
  for (size_t d = 0; d < rows; d++) copy(d * width, lanes * size);
  for (size_t d = 0; d < rows / kPanel; d++) copy(values + d * kPanel * width, lanes * width);
  if (shape_.kv != KvType::I8) return;
  for (size_t at = rows * width; at < values; at += kPanel * sizeof(uint16_t)) copy(at, lanes * sizeof(uint16_t));
  copy(values + rows * width, lanes * sizeof(float));
}

void Cache::copy(const Ring& from, const Ring& to, int first, int end) const {
  const size_t bytes = panel_bytes(shape_);
  const int last = end / kPanel;
  for (int head = 0; head < shape_.kv_heads; head++) {
    const uint8_t* source = from.panels + head_bytes(shape_, from.capacity) * size_t(head);
    uint8_t* target = to.panels + head_bytes(shape_, to.capacity) * size_t(head);
    const auto at = [&](const Ring& ring, int panel) { return size_t(panel % (ring.capacity / kPanel)) * bytes; };
    for (int panel = first / kPanel; panel < last; panel++)
      std::memcpy(target + at(to, panel), source + at(from, panel), bytes);
    copy_lanes(source + at(from, last), target + at(to, last), end % kPanel);
  }
}

}  // namespace ventoux
