// Tensor maps: one thread copies a box of a tensor between global and shared memory, in the background. The host
// encodes a map for a tensor's address, shape and strides, a box and a swizzle, and passes it among a kernel's
// parameters.
//
// In shared memory a box lies densely, its innermost dimension first, from an address that is a multiple of 128 on. A
// swizzle moves its pieces of 16 bytes about, so that a column of them lies in different banks: as bits of the address,
//   128 B   bits 4 to 6 ^= bits 7 to 9     rows of 128 bytes; the pattern repeats every 1024
//    64 B   bits 4 to 5 ^= bits 7 to 8     rows of  64 bytes; every 512
//    32 B   bit  4      ^= bit  7          rows of  32 bytes; every 256
// Coordinates are signed numbers of elements, the innermost first, and may be negative; the innermost one is a multiple of
// 16 bytes. What lies out of the tensor's bounds is read as zero; a box that is stored begins within them, and what of it
// lies out of them is not written. An mbarrier is told of a whole box's bytes all the same.
#pragma once

#include <qp/ptx/address.cuh>

namespace qp::ptx {

// A map, as the host has encoded it. Kernels hand on its address in their parameter, and never a copy of it.
struct alignas(128) TensorMap {
  unsigned char bytes[128];
};

// Fetches a map, which the first copy would otherwise wait for.
template <int arch = 900>
__device__ inline void prefetch_tensor_map(const TensorMap* map) {
  static_assert(__CUDA_ARCH__ >= arch, "prefetch.tensormap needs sm_90 or newer");
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Starts to copy a box of a matrix to shared memory, which reports its bytes to an mbarrier.
template <int arch = 900>
__device__ inline void cp_async_bulk_tensor_load_2d(void* shared, const TensorMap* map, int c0, int c1,
                                                    unsigned long long* mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
               "l"(map), "r"(c0), "r"(c1), "r"(shared_address(mbarrier))
               : "memory");
}

// Returns a policy for what is read once: it leaves L2 first.
__device__ inline unsigned long long l2_evict_first() {
  unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Returns a policy for what many blocks read: it leaves L2 last.
__device__ inline unsigned long long l2_evict_last() {
  unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Starts to copy a box of a matrix, which L2 keeps as a policy says.
template <int arch = 900>
__device__ inline void cp_async_bulk_tensor_load_2d_hint(void* shared, const TensorMap* map, int c0, int c1,
                                                         unsigned long long* mbarrier, unsigned long long policy) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
               "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
               "l"(map), "r"(c0), "r"(c1), "r"(shared_address(mbarrier)), "l"(policy)
               : "memory");
}

// Starts to copy a box of a tensor of three dimensions.
template <int arch = 900>
__device__ inline void cp_async_bulk_tensor_load_3d(void* shared, const TensorMap* map, int c0, int c1, int c2,
                                                    unsigned long long* mbarrier) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(shared)),
               "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(mbarrier))
               : "memory");
}

// Starts to copy a box of a matrix to the same place in the shared memory of each block of the cluster whose rank is
// set in `blocks`; it reports a whole box's bytes to the mbarrier at the same place of each.
template <int arch = 900>
__device__ inline void cp_async_bulk_tensor_load_2d_multicast(void* shared, const TensorMap* map, int c0, int c1,
                                                              unsigned long long* mbarrier, unsigned short blocks) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
               "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
               "l"(map), "r"(c0), "r"(c1), "r"(shared_address(mbarrier)), "h"(blocks)
               : "memory");
}

// Starts to copy a box from shared memory to a matrix, in a bulk group; who wrote the box must have called
// fence_proxy_async_shared() since.
template <int arch = 900>
__device__ inline void cp_async_bulk_tensor_store_2d(const TensorMap* map, int c0, int c1, const void* shared) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(c0),
               "r"(c1), "r"(shared_address(shared))
               : "memory");
}

}  // namespace qp::ptx
