// Emulation of kernels_cu/include/qp/ptx/copy_async.cuh.
#pragma once

namespace qp::ptx {

template <int bytes>
EMULATED_INSTRUCTION void cp_async(void* shared, const void* global, EMULATED_CALLER) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulated::copy_async(shared, global, bytes, bytes, where);
}
template <int bytes>
EMULATED_INSTRUCTION void cp_async_zero_fill(void* shared, const void* global, unsigned source_bytes, EMULATED_CALLER) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulated::copy_async(shared, global, bytes, int(source_bytes), where);
}
EMULATED_INSTRUCTION void cp_async_commit_group() { emulated::copy_async_commit(); }
template <int groups>
EMULATED_INSTRUCTION void cp_async_wait_group(EMULATED_CALLER) {
  static_assert(groups >= 0, "a number of groups");
  emulated::copy_async_wait(groups, where);
}
EMULATED_INSTRUCTION void cp_async_mbarrier_arrive(unsigned long long* mbarrier, EMULATED_CALLER) {
  emulated::copy_async_arrive(reinterpret_cast<uint64_t*>(mbarrier), false, where);
}
EMULATED_INSTRUCTION void cp_async_mbarrier_arrive_noinc(unsigned long long* mbarrier, EMULATED_CALLER) {
  emulated::copy_async_arrive(reinterpret_cast<uint64_t*>(mbarrier), true, where);
}

}  // namespace qp::ptx
