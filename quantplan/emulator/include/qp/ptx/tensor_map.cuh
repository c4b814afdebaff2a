// Emulation of kernels_cu/include/qp/ptx/tensor_map.cuh. What a map holds here: emulated/abi.h.
#pragma once

namespace qp::ptx {

struct alignas(64) TensorMap {
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
