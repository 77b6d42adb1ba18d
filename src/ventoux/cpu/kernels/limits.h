// What the machine can do at most: memory read and numbers multiplied, with nothing else in the way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pool.h"

namespace ventoux {

// Sum of `words`, modulo 2^64, read by all threads.
uint64_t read_memory(Pool& pool, const uint64_t* words, size_t count);

// Every thread multiplies ones by ones in registers, `blocks` times 4,096 rounds, as the kernels of its instruction set
// multiply int8 (or fp32, or bf16), and adds up the products: the result is how many there were, 0 where they have no bf16.
uint64_t multiply_int8(Pool& pool, int blocks);
uint64_t multiply_fp32(Pool& pool, int blocks);
uint64_t multiply_bf16(Pool& pool, int blocks);

}  // namespace ventoux
