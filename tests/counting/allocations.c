// Stands in front of the C library's allocation (LD_PRELOAD) and counts; glibc.
#include <stddef.h>
#include <stdint.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static uint64_t count;

uint64_t allocations(void) { return count; }

void* malloc(size_t n) {
  count++;
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
  count++;
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
  count++;
  return __libc_realloc(p, n);
}
void* aligned_alloc(size_t alignment, size_t n) {
  count++;
  return __libc_memalign(alignment, n);
}
