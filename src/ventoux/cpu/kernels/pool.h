// A pool of threads that run the parts of one kernel, and the table of kernels that they run.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace ventoux {

// Names of the instruction sets that this machine can run, best first.
std::vector<std::string> instruction_sets();

class Pool {
 public:
  // Throws std::invalid_argument when there is no such instruction set here.
  Pool(int threads, const std::string& isa);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Calls work(task, thread) for every task in [0, tasks), the caller being thread 0, and returns when all are done.
  // One run at a time; a second caller waits.
  void run(int tasks, const std::function<void(int task, int thread)>& work);

  int threads() const { return int(workers_.size()) + 1; }
  const Kernels& kernels() const { return *kernels_; }
  // A thread's memory of at least `bytes`, kept between calls.
  uint8_t* scratch(int thread, size_t bytes);
  // One array shared by all threads for the time of a kernel call, kept between calls.
  uint8_t* shared(size_t bytes);

 private:
  void serve(int thread);
  void take_tasks(int thread);

  const Kernels* kernels_;
  std::vector<std::thread> workers_;
  std::vector<std::vector<uint8_t>> scratch_;
  std::vector<uint8_t> shared_;
  std::mutex callers_, mutex_;
  std::condition_variable wake_;
  const std::function<void(int, int)>* work_ = nullptr;
  int tasks_ = 0;
  std::atomic<int> next_{0}, active_{0};
  std::atomic<uint64_t> round_{0};
  std::atomic<bool> open_{false}, stop_{false};
};

}  // namespace ventoux
