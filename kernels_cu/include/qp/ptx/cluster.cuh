// Clusters: neighbouring blocks that run at the same time, and reach each other's shared memory. Such memory has
// addresses of 32 bits, which mapa gives; a block's own are as shared_address() says.
//
// Nobody may touch a block's shared memory before that block has begun, or after it has returned: a cluster's barrier
// stands between its beginning and the first access, and between the last access and its end. What is sent, by st.async
// or cp.async.bulk, is an illegal instruction in a launch without clusters, even from a block to itself.
#pragma once

#include <qp/ptx/address.cuh>

namespace qp::ptx {

// Returns the block's place in its cluster.
template <int arch = 900>
__device__ inline unsigned cluster_rank() {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Returns how many blocks the cluster has.
template <int arch = 900>
__device__ inline unsigned cluster_size() {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  unsigned blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}

// Arrives at the barrier of all threads of the cluster, in whole warps; what the thread did before is seen by who
// waits.
template <int arch = 900>
__device__ inline void cluster_arrive() {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Arrives without that: others learn of mbarriers that fence_mbarrier_init() covers, and that the block has begun. For
// a kernel's beginning, as the GPU does not wait for the thread's stores here.
template <int arch = 900>
__device__ inline void cluster_arrive_relaxed() {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// Waits, after having arrived, until all threads of the cluster that have not returned have arrived too.
template <int arch = 900>
__device__ inline void cluster_wait() {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Returns the address of the same place in the shared memory of the block of a rank.
template <int arch = 900>
__device__ inline unsigned mapa(const void* shared, unsigned rank) {
  static_assert(__CUDA_ARCH__ >= arch, "mapa needs sm_90 or newer");
  unsigned address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  return address;
}

// Loads 4 bytes.
template <int arch = 900>
__device__ inline unsigned load_cluster_4(unsigned address) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  unsigned v;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}

// Loads 16 bytes.
template <int arch = 900>
__device__ inline uint4 load_cluster_16(unsigned address) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  uint4 v;
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// Stores 4 bytes.
template <int arch = 900>
__device__ inline void store_cluster_4(unsigned address, unsigned v) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

// Stores 16 bytes.
template <int arch = 900>
__device__ inline void store_cluster_16(unsigned address, uint4 v) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Starts to store 4 bytes, which are reported to an mbarrier of the block that they go to.
template <int arch = 900>
__device__ inline void store_async_4(unsigned address, unsigned v, unsigned mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "st.async needs sm_90 or newer");
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(address), "r"(v),
               "r"(mbarrier)
               : "memory");
}

// Starts to store 16 bytes, which are reported to an mbarrier of the block that they go to.
template <int arch = 900>
__device__ inline void store_async_16(unsigned address, uint4 v, unsigned mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "st.async needs sm_90 or newer");
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(mbarrier)
               : "memory");
}

// Starts to copy a multiple of 16 aligned bytes of the block's own shared memory, which are reported to an mbarrier of
// the block that they go to; who wrote them must have called fence_proxy_async_shared() since.
template <int arch = 900>
__device__ inline void cp_async_bulk_cluster(unsigned address, const void* shared, unsigned bytes, unsigned mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   address),
               "r"(shared_address(shared)), "r"(bytes), "r"(mbarrier)
               : "memory");
}

// Arrives at an mbarrier of any block; what the thread did before is seen by who waits at the cluster's scope. The GPU
// first waits for the thread's stores, as at any release to the cluster.
template <int arch = 900>
__device__ inline void mbarrier_arrive_cluster(unsigned mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}

// Arrives at an mbarrier of any block to say that the thread's loads are over: who waits, at any scope, may overwrite
// what it has read, and sees nothing that it wrote. The GPU stops for no fence here, so this is for a pipeline's empty
// stages.
template <int arch = 900>
__device__ inline void mbarrier_arrive_cluster_read(unsigned mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}

// As mbarrier_try_wait_parity(), and sees what threads of other blocks did before they arrived: the GPU empties L1 for
// it.
template <int arch = 900>
__device__ inline bool mbarrier_try_wait_parity_cluster(unsigned long long* mbarrier, unsigned parity) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.try_wait needs sm_90 or newer");
  unsigned over;
  asm volatile(
      "{ .reg .pred over; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2; "
      "selp.u32 %0, 1, 0, over; }"
      : "=r"(over)
      : "r"(shared_address(mbarrier)), "r"(parity)
      : "memory");
  return over != 0;
}

}  // namespace qp::ptx
