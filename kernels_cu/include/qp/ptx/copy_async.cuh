// cp.async: copies from global to shared memory that a thread starts, and waits for in groups.
#pragma once

#include <qp/ptx/address.cuh>

namespace qp::ptx {

// Starts to copy 4, 8 or 16 aligned bytes; 16 bypass L1.
template <int bytes>
__device__ inline void cp_async(void* shared, const void* global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(bytes)
                 : "memory");
  }
}

// Starts to copy the first `source_bytes` of 4, 8 or 16 bytes, and to clear the rest; with 0 the source is not read.
template <int bytes>
__device__ inline void cp_async_zero_fill(void* shared, const void* global, unsigned source_bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(bytes), "r"(source_bytes)
                 : "memory");
  }
}

// Closes the group of the copies that the thread has started since the last one.
__device__ inline void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the newest `groups` groups of the thread are in flight; other threads need a barrier after it.
template <int groups>
__device__ inline void cp_async_wait_group() {
  static_assert(groups >= 0, "a number of groups");
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// Arrives at an mbarrier once the thread's copies have landed; the phase waits for one arrival more because of it.
__device__ inline void cp_async_mbarrier_arrive(unsigned long long* mbarrier) {
  asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(shared_address(mbarrier)) : "memory");
}

// Arrives at an mbarrier once the thread's copies have landed, as one of the arrivals that it was initialized for.
__device__ inline void cp_async_mbarrier_arrive_noinc(unsigned long long* mbarrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(mbarrier)) : "memory");
}

}  // namespace qp::ptx
