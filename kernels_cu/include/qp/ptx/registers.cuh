// setmaxnreg: a warp group gives registers away, another takes them. All four warps execute it, in a kernel that is
// compiled for a known number of threads. The compiler drops it where it needs no more registers than all threads get.
#pragma once

#include <qp/architecture.cuh>

namespace qp::ptx {

// Keeps `registers` of the registers that each thread of the group has, and gives the others to the block.
template <int registers, bool there = is_sm_90a>
__device__ inline void setmaxnreg_dec() {
  static_assert(there, "setmaxnreg needs sm_90a");
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Waits until the block has enough registers for each thread of the group to have `registers` of them.
template <int registers, bool there = is_sm_90a>
__device__ inline void setmaxnreg_inc() {
  static_assert(there, "setmaxnreg needs sm_90a");
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

}  // namespace qp::ptx
