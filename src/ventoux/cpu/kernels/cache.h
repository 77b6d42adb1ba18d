// Keys and values of many sequences. A layer with window W keeps min(W, length) positions of a sequence: position p lies in
// slot p mod capacity. W=4: position 6 overwrites slot 2, which held position 2, which no later query sees.
//
// With a lookahead of n it keeps n positions more, so that the last n can be taken back: the next chunk begins where the
// text goes on, and the keys that it sees have not been overwritten. W=4, lookahead 2, positions to 9: the ring holds
// 4..9, and a chunk at 8 sees 5..7 and itself.
//
// Of one head in one layer: panels of 16 slots, each with its keys as [head_dim][16], so that one load has a component of
// 16 keys and no score needs a sum across lanes, and then its values as [head_dim / 16][16 slots][16]. In int8 keys are
// followed by 16 fp16 scales and 16 middles of each 16 components, and values by 16 float scales, one for each slot. Capacities and head_dim are rounded up to 16, so the 16 positions from
// 16 i on lie in one panel.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"

namespace ventoux {

class Cache {
 public:
  // windows[l] is layer l's window, INT32_MAX for none.
  Cache(int kv_heads, int head_dim, std::vector<int> windows, KvType type);
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;
  int allocate(int length, int lookahead);  // -> slot; throws std::bad_alloc
  void free(int slot);       // throws std::out_of_range
  size_t nbytes() const { return bytes_; }
  int sequences() const;
  Ring ring(int slot, int layer) const;  // throws std::out_of_range for either
  // A sequence's memory, which outlives free() while a kernel holds it.
  std::shared_ptr<uint8_t> memory(int slot) const { return sequences_.at(size_t(slot)).memory; }
  int length(int slot) const { return sequences_.at(size_t(slot)).length; }
  int kv_heads() const { return shape_.kv_heads; }
  int head_dim() const { return shape_.head_dim; }
  KvType type() const { return shape_.kv; }
  int window(int layer) const { return windows_.at(size_t(layer)); }
  // Copies the last positions of a chunk of panels, the first of which holds position start & ~15, into the ring.
  void append(const Span& span, int kv_head, const uint8_t* chunk) const;
  size_t ring_bytes(const Ring& ring) const { return head_bytes(shape_, ring.capacity) * size_t(shape_.kv_heads); }
  // Copies positions first .. end - 1 from one ring to the other, which may differ in capacity. Lanes of the first panel that
  // are before `first` come along.
  void copy(const Ring& from, const Ring& to, int first, int end) const;

 private:
  struct Sequence {
    std::shared_ptr<uint8_t> memory;  // zero pages until they are written: a long context costs what it uses
    size_t bytes = 0;
    int length = 0, lookahead = 0;
  };
  int capacity(const Sequence& sequence, size_t layer) const;
  void copy_lanes(const uint8_t* from, uint8_t* to, int lanes) const;  // the first lanes of a panel
  AttentionShape shape_;
  std::vector<int> windows_;
  std::vector<Sequence> sequences_;
  size_t bytes_ = 0;
};

}  // namespace ventoux
