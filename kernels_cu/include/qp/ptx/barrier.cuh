// The 16 named barriers of a block, of which 0 is that of __syncthreads(). Whole warps arrive.
#pragma once

namespace qp::ptx {

// Waits at barrier `id` until `threads` threads of the block have arrived, this one's warp among them.
__device__ inline void bar_sync(unsigned id, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives at barrier `id`, where others of the `threads` threads wait, and goes on.
__device__ inline void bar_arrive(unsigned id, unsigned threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace qp::ptx
