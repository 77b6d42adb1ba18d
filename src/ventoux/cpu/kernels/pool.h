// A pool of threads that run the parts of one kernel, and the table of kernels that they run.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace ventoux {

// Names of the instruction sets that this machine can run, best first.
std::vector<std::string> instruction_sets();

// The table of one of them.
const Kernels& kernels_of(const std::string& isa);

class Crew;  // the threads beside the caller

// What the threads run: refers to something that is called with (task, thread) and outlives the run. A std::function would
// copy it, to the heap as a rule, at every call of a kernel.
class Work {
 public:
  template <class Callable>
  Work(const Callable& work)
      : work_(&work), call_([](const void* it, int task, int thread) { (*static_cast<const Callable*>(it))(task, thread); }) {}
  void operator()(int task, int thread) const { call_(work_, task, thread); }

 private:
  const void* work_;
  void (*call_)(const void* work, int task, int thread);
};

// Memory straight from the system, which has it back at once: malloc keeps large blocks for itself after a while. `whole`: all of
// it will be written, so huge pages waste none; small ones of a prompt of 512 tokens cost 1 to 3% of its time.
class Pages {
 public:
  Pages() = default;
  Pages(size_t bytes, bool whole);  // zeros; throws std::bad_alloc
  ~Pages();
  Pages(Pages&& other) noexcept { swap(other); }
  Pages& operator=(Pages&& other) noexcept { return swap(other), *this; }
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void swap(Pages& other) { std::swap(data_, other.data_), std::swap(size_, other.size_); }
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

class Pool {
 public:
  // Throws std::invalid_argument when there is no such instruction set here, std::runtime_error when the threads cannot
  // be started.
  Pool(int threads, const std::string& isa);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Calls work(task, thread) for every task in [0, tasks), the caller being thread 0, and returns when all are done.
  // One run at a time; a second caller waits. `work` must not throw. A forked child starts threads of its own.
  void run(int tasks, Work work);

  int threads() const { return int(scratch_.size()); }
  const Kernels& kernels() const { return *kernels_; }
  // A thread's memory of at least `bytes`, kept between calls.
  uint8_t* scratch(int thread, size_t bytes) { return at_least(scratch_[size_t(thread)], bytes); }
  // The same, for activations that a thread has regrouped for itself: no kernel writes over them.
  uint8_t* regrouped(int thread, size_t bytes) { return at_least(regrouped_[size_t(thread)], bytes); }
  // One array shared by all threads for the time of a kernel call, kept between calls until it is dropped. Aligned to 64.
  uint8_t* shared(size_t bytes);
  void drop_shared() { shared_ = Pages(); }

 private:
  void start();
  static uint8_t* at_least(std::vector<uint8_t>& memory, size_t bytes);

  const Kernels* kernels_;
  std::vector<std::vector<uint8_t>> scratch_, regrouped_;
  Pages shared_;
  std::mutex callers_;
  std::unique_ptr<Crew> crew_;
  unsigned born_ = 0;  // the number of forks behind this process when the crew was started
};

}  // namespace ventoux
