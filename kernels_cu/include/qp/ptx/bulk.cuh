// cp.async.bulk: one thread copies any multiple of 16 aligned bytes, in the background and in the asynchronous proxy.
// The wrappers are templates, so that on older architectures only a call is refused.
#pragma once

#include <qp/ptx/address.cuh>

namespace qp::ptx {

// Starts a copy from global to shared memory, which reports its bytes to an mbarrier.
template <int arch = 900>
__device__ inline void cp_async_bulk_load(void* shared, const void* global, unsigned bytes,
                                          unsigned long long* mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(mbarrier))
               : "memory");
}

// Starts a copy from shared to global memory; who wrote the source must have called fence_proxy_async_shared() since.
template <int arch = 900>
__device__ inline void cp_async_bulk_store(void* global, const void* shared, unsigned bytes) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

// Closes the group of the stores that the thread has started since the last one.
template <int arch = 900>
__device__ inline void cp_async_bulk_commit_group() {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most the newest `groups` groups of the thread are in flight: the others are written.
template <int groups, int arch = 900>
__device__ inline void cp_async_bulk_wait_group() {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(groups) : "memory");
}

// Waits until all but the newest `groups` groups of the thread have read their sources, which may then be overwritten.
template <int groups, int arch = 900>
__device__ inline void cp_async_bulk_wait_group_read() {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(groups) : "memory");
}

// Makes what the thread has written to shared memory visible to bulk copies, which a barrier alone does not.
template <int arch = 900>
__device__ inline void fence_proxy_async_shared() {
  static_assert(__CUDA_ARCH__ >= arch, "fence.proxy.async needs sm_90 or newer");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace qp::ptx
