// Emulation of kernels_cu/include/qp/ptx/bulk.cuh.
#pragma once

namespace qp::ptx {

template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_load(void* shared, const void* global, unsigned bytes,
                                             unsigned long long* mbarrier, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  emulated::bulk_load(shared, global, bytes, reinterpret_cast<uint64_t*>(mbarrier), where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_store(void* global, const void* shared, unsigned bytes, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  emulated::bulk_store(global, shared, bytes, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_commit_group() {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  emulated::bulk_commit();
}
template <int groups, int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_wait_group(EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  emulated::bulk_wait(groups, false, where);
}
template <int groups, int arch = 900>
EMULATED_INSTRUCTION void cp_async_bulk_wait_group_read(EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "cp.async.bulk needs sm_90 or newer");
  emulated::bulk_wait(groups, true, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void fence_proxy_async_shared() {
  static_assert(__CUDA_ARCH__ >= arch, "fence.proxy.async needs sm_90 or newer");
  emulated::fence_async_proxy();
}

}  // namespace qp::ptx
