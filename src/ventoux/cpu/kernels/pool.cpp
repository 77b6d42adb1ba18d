#include "pool.h"

#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace ventoux {
namespace {

// Kernels follow each other within microseconds, waking a sleeping thread takes tens of them: so spin for a while first.
constexpr std::chrono::microseconds kSpin(200);

inline void relax() {
#ifdef VENTOUX_X86
  __builtin_ia32_pause();
#endif
}

const Kernels* find(const std::string& isa) {
#ifdef VENTOUX_X86
  __builtin_cpu_init();
  // F16C is older than AVX2 on every processor; clang before 19 does not know its name.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#ifdef VENTOUX_EMULATE_AVX512
  const bool avx512 = true;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
#endif
  if (isa == kAvx512.name && avx512) return &kAvx512;
  if (isa == kAvx2.name && avx2) return &kAvx2;
#endif
  return isa == kPortable.name ? &kPortable : nullptr;
}

std::atomic<unsigned> forks{0};
[[maybe_unused]] const int counts_forks = pthread_atfork(nullptr, nullptr, [] { forks++; });

}  // namespace

// The tasks [first, last) of a run that are one thread's until others have nothing left to do. Its owner takes them in their order: they
// lie behind each other in memory, and what a kernel asks for ahead, at a task's end, is the next one's. Others take the last.
class alignas(64) Share {
 public:
  void set(int first, int last) { range_ = uint64_t(first) << 32 | uint64_t(last); }
  // -1: none is left.
  int take(bool own) {
    for (uint64_t range = range_;;) {
      const uint64_t first = range >> 32, last = range & 0xffffffff;
      if (first >= last) return -1;
      const uint64_t rest = own ? (first + 1) << 32 | last : first << 32 | (last - 1);
      if (range_.compare_exchange_weak(range, rest)) return int(own ? first : last - 1);
    }
  }

 private:
  std::atomic<uint64_t> range_{0};  // first in the upper half, so that both are read and changed at once
};

class Crew {
 public:
  explicit Crew(int workers) : shares_(size_t(workers) + 1) {
    workers_.reserve(size_t(workers));
    try {
      for (int i = 1; i <= workers; i++) workers_.emplace_back([this, i] { serve(i); });
    } catch (const std::system_error& error) {
      stop();
      throw std::runtime_error("cannot start " + std::to_string(workers) + " threads: " + error.what());
    }
  }
  ~Crew() { stop(); }
  void run(int tasks, Work work);

 private:
  void serve(int thread);
  void take_tasks(int thread);
  void stop();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const Work* work_ = nullptr;
  std::vector<Share> shares_;  // of each thread, the caller being the first
  std::atomic<int> active_{0};
  std::atomic<uint64_t> round_{0};
  std::atomic<bool> open_{false}, stop_{false};
};

void Crew::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Crew::run(int tasks, Work work) {
  work_ = &work;
  const int64_t threads = int64_t(shares_.size());
  const auto begin = [&](int64_t thread) { return int((tasks * thread + threads - 1) / threads); };
  for (int64_t t = 0; t < threads; t++) shares_[size_t(t)].set(begin(t), begin(t + 1));
  open_ = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);  // a worker that is about to sleep must not miss the new round
    round_++;
  }
  wake_.notify_all();
  take_tasks(0);
  // Only workers that have begun are waited for: one that lost its core to another program finds the round closed.
  open_ = false;
  for (int spins = 0; active_ > 0;) {
    if (spins++ < 4096) relax();
    else spins = 4096, std::this_thread::yield();
  }
}

void Crew::take_tasks(int thread) {
  for (int task; (task = shares_[size_t(thread)].take(true)) >= 0;) (*work_)(task, thread);
  // No share grows in a run: those of others are emptied one after the other.
  for (size_t i = 1; i < shares_.size(); i++) {
    Share& other = shares_[(size_t(thread) + i) % shares_.size()];
    for (int task; (task = other.take(false)) >= 0;) (*work_)(task, thread);
  }
}

void Crew::serve(int thread) {
  for (uint64_t seen = 0;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (round_ == seen && !stop_) {
      for (int i = 0; i < 64 && round_ == seen; i++) relax();
      if (round_ == seen && std::chrono::steady_clock::now() > until) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_ != seen || stop_; });
      }
    }
    if (stop_) return;
    seen = round_;
    active_++;  // before looking whether the round is open: run() closes it before looking who is active
    if (open_) take_tasks(thread);
    active_--;
  }
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const char* isa : {"avx512", "avx2", "portable"})
    if (find(isa)) names.push_back(isa);
  return names;
}

const Kernels& kernels_of(const std::string& isa) {
  const Kernels* kernels = find(isa);
  if (!kernels) throw std::invalid_argument("instruction set " + isa + " cannot run on this machine");
  return *kernels;
}

Pool::Pool(int threads, const std::string& isa) : kernels_(&kernels_of(isa)) {
  if (threads < 1) throw std::invalid_argument("a pool needs at least one thread");
  scratch_.resize(size_t(threads));
  regrouped_.resize(size_t(threads));
  start();
}

Pool::~Pool() {
  if (born_ != forks) crew_.release();
}

void Pool::start() {
  // A forked child has none of its parent's threads: joining them, or destroying what they wait for, would hang.
  if (born_ != forks) crew_.release();
  if (!crew_ && threads() > 1) crew_ = std::make_unique<Crew>(threads() - 1);
  born_ = forks;
}

void Pool::run(int tasks, Work work) {
  if (threads() == 1 || tasks <= 1) {
    for (int i = 0; i < tasks; i++) work(i, 0);
    return;
  }
  std::lock_guard<std::mutex> caller(callers_);
  if (born_ != forks) start();
  crew_->run(tasks, work);
}

uint8_t* Pool::at_least(std::vector<uint8_t>& memory, size_t bytes) {
  if (memory.size() < bytes + 64) memory.resize(bytes + 64);
  return (uint8_t*)((uintptr_t(memory.data()) + 63) & ~uintptr_t(63));
}

uint8_t* Pool::shared(size_t bytes) {
  if (shared_.size() < bytes) {
    drop_shared();  // first: what it holds is of no use to the next kernel
    shared_ = Pages(bytes, true);
  }
  return shared_.data();
}

Pages::Pages(size_t bytes, [[maybe_unused]] bool whole) : size_(bytes) {
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(found);
#ifdef MADV_HUGEPAGE
  if (whole) madvise(found, bytes, MADV_HUGEPAGE);  // a wish: it may fail
#endif
}

Pages::~Pages() {
  if (data_) munmap(data_, size_);
}

}  // namespace ventoux
