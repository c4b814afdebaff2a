// Emulation of kernels_cu/include/qp/ptx/tensor_map.cuh. What a map holds here: emulated/abi.h.
#pragma once

namespace qp::ptx {

struct alignas(128) TensorMap {
  unsigned char bytes[128];
};

template <int arch = 900>
EMULATED_INSTRUCTION void prefetch_tensor_map(const TensorMap* map, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "prefetch.tensormap needs sm_90 or newer");
  emulated::tensor_prefetch(map, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_tensor_load_2d(void* shared, const TensorMap* map, int c0, int c1,
                                                       unsigned long long* mbarrier, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  emulated::tensor_load(shared, map, 2, {c0, c1, 0}, reinterpret_cast<uint64_t*>(mbarrier),
                        1u << emulated::cluster_rank(), where);
}
// There is no L2 here.
EMULATED_INSTRUCTION unsigned long long l2_evict_first() { return 1; }
EMULATED_INSTRUCTION unsigned long long l2_evict_last() { return 2; }
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_tensor_load_2d_hint(void* shared, const TensorMap* map, int c0, int c1,
                                                            unsigned long long* mbarrier, unsigned long long policy,
                                                            EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  if (policy != l2_evict_first() && policy != l2_evict_last())
    emulated::fail_invalid("this is no policy for L2", where);
  cp_async_bulk_tensor_load_2d(shared, map, c0, c1, mbarrier, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_tensor_load_3d(void* shared, const TensorMap* map, int c0, int c1, int c2,
                                                       unsigned long long* mbarrier, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  emulated::tensor_load(shared, map, 3, {c0, c1, c2}, reinterpret_cast<uint64_t*>(mbarrier),
                        1u << emulated::cluster_rank(), where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_tensor_load_2d_multicast(void* shared, const TensorMap* map, int c0, int c1,
                                                                 unsigned long long* mbarrier, unsigned short blocks,
                                                                 EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  emulated::tensor_load(shared, map, 2, {c0, c1, 0}, reinterpret_cast<uint64_t*>(mbarrier), blocks, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_tensor_store_2d(const TensorMap* map, int c0, int c1, const void* shared,
                                                        EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk.tensor needs sm_90 or newer");
  emulated::tensor_store(map, 2, {c0, c1, 0}, shared, where);
}

}  // namespace qp::ptx
