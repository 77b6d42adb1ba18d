// Counts the instructions of a Python call that lie in one range of addresses: one trap for each instruction of this
// thread, through the processor's trap flag. x86-64, Linux.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

extern void* PyObject_CallObject(void* function, void* arguments);

static uintptr_t low, high;
static volatile uint64_t inside;

static void trapped(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)info;
  const uintptr_t at = (uintptr_t)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
  inside += at >= low && at < high;
}

// function(*arguments), while instructions from `first` up to `last` are counted -> how many there were.
uint64_t instructions(void* function, void* arguments, uintptr_t first, uintptr_t last) {
  struct sigaction action, before;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = trapped;
  action.sa_flags = SA_SIGINFO;
  low = first, high = last, inside = 0;
  sigaction(SIGTRAP, &action, &before);
  __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq" ::: "memory", "cc");
  PyObject_CallObject(function, arguments);  // its None is never given back: one reference of the immortal
  __asm__ volatile("pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq" ::: "memory", "cc");
  sigaction(SIGTRAP, &before, 0);
  return inside;
}
