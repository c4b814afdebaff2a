// What instructions of warp groups are made of. They need all 128 threads of four warps, in the same instruction.
#pragma once
#include <emulated/matrix.h>

#pragma GCC visibility push(default)

namespace emulated {

// sums (+)= A·B, 64 rows. Sums lie in an array of each thread; descriptors and layouts are those of qp/ptx/wgmma.cuh.
struct Wgmma {
  Element a, b;
  int columns;
  uint32_t* sums;
  const unsigned* a_registers;  // or null, and A is in shared memory too
  uint64_t a_descriptor, b_descriptor;
  bool accumulate;
};

void wgmma(const Wgmma& mine, Where where);
void wgmma_fence_operand(void* registers, size_t bytes);
void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(int groups_in_flight, Where where);

// Changes how many registers each thread has; more may have to wait for others to give theirs away.
void set_registers(unsigned count, bool more, Where where);

}  // namespace emulated

#pragma GCC visibility pop
