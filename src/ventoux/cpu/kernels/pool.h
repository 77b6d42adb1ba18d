// A pool of threads that run the parts of one kernel, and the table of kernels that they run.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"

namespace ventoux {

// Names of the instruction sets that this machine can run, best first.
std::vector<std::string> instruction_sets();

class Crew;  // the threads beside the caller

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
  void run(int tasks, const std::function<void(int task, int thread)>& work);

  int threads() const { return int(scratch_.size()); }
  const Kernels& kernels() const { return *kernels_; }
  // A thread's memory of at least `bytes`, kept between calls.
  uint8_t* scratch(int thread, size_t bytes);
  // One array shared by all threads for the time of a kernel call, kept between calls.
  uint8_t* shared(size_t bytes);

 private:
  void start();

  const Kernels* kernels_;
  std::vector<std::vector<uint8_t>> scratch_;
  std::vector<uint8_t> shared_;
  std::mutex callers_;
  std::unique_ptr<Crew> crew_;
  unsigned born_ = 0;  // the number of forks behind this process when the crew was started
};

}  // namespace ventoux
