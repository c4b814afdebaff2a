// Emulation of kernels_cu/include/qp/ptx/cluster.cuh.
#pragma once

#include <qp/ptx/memory.cuh>

namespace qp::ptx {

template <int arch = 900>
EMULATED_INSTRUCTION unsigned cluster_rank() {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  return emulated::cluster_rank();
}
template <int arch = 900>
EMULATED_INSTRUCTION unsigned cluster_size() {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  return emulated::cluster_size();
}
template <int arch = 900>
EMULATED_INSTRUCTION void cluster_arrive(EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  emulated::cluster_arrive(true, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cluster_arrive_relaxed(EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  emulated::cluster_arrive(false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cluster_wait(EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  emulated::cluster_wait(where);
}
template <int arch = 900>
EMULATED_INSTRUCTION unsigned mapa(const void* shared, unsigned rank, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mapa needs sm_90 or newer");
  return emulated::cluster_address(shared, rank, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION unsigned load_cluster_4(unsigned address, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  return emulated::load<unsigned>(emulated::cluster_pointer(address, 4, where), where);
}
template <int arch = 900>
EMULATED_INSTRUCTION uint4 load_cluster_16(unsigned address, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  return emulated::load<uint4>(emulated::cluster_pointer(address, 16, where), where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void store_cluster_4(unsigned address, unsigned v, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  emulated::store(emulated::cluster_pointer(address, 4, where), v, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void store_cluster_16(unsigned address, uint4 v, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  emulated::store(emulated::cluster_pointer(address, 16, where), v, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void store_async_4(unsigned address, unsigned v, unsigned mbarrier, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "st.async needs sm_90 or newer");
  emulated::store_async(address, &v, 4, mbarrier, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void store_async_16(unsigned address, uint4 v, unsigned mbarrier, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "st.async needs sm_90 or newer");
  emulated::store_async(address, &v, 16, mbarrier, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_cluster(unsigned address, const void* shared, unsigned bytes, unsigned mbarrier,
                                                EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  emulated::bulk_send(address, shared, bytes, mbarrier, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void mbarrier_arrive_cluster(unsigned mbarrier, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  emulated::barrier_arrive(static_cast<uint64_t*>(emulated::cluster_pointer(mbarrier, 8, where)), 1, true, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void mbarrier_arrive_cluster_read(unsigned mbarrier, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "a cluster needs sm_90 or newer");
  emulated::barrier_arrive(static_cast<uint64_t*>(emulated::cluster_pointer(mbarrier, 8, where)), 1, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION bool mbarrier_try_wait_parity_cluster(unsigned long long* mbarrier, unsigned parity,
                                                           EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.try_wait needs sm_90 or newer");
  return emulated::barrier_try_wait(reinterpret_cast<uint64_t*>(mbarrier), parity, true, where);
}

}  // namespace qp::ptx
