// Emulation of kernels_cu/include/qp/ptx/mbarrier.cuh.
#pragma once

namespace qp::ptx {

EMULATED_INSTRUCTION void mbarrier_init(unsigned long long* mbarrier, unsigned arrivals, EMULATED_CALLER) {
  emulated::barrier_init(reinterpret_cast<uint64_t*>(mbarrier), arrivals, where);
}
EMULATED_INSTRUCTION void mbarrier_inval(unsigned long long* mbarrier, EMULATED_CALLER) {
  emulated::barrier_invalidate(reinterpret_cast<uint64_t*>(mbarrier), where);
}
EMULATED_INSTRUCTION void mbarrier_arrive(unsigned long long* mbarrier, EMULATED_CALLER) {
  emulated::barrier_arrive(reinterpret_cast<uint64_t*>(mbarrier), 1, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void mbarrier_arrive_count(unsigned long long* mbarrier, unsigned count, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.arrive with a count needs sm_90 or newer");
  emulated::barrier_arrive(reinterpret_cast<uint64_t*>(mbarrier), count, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void mbarrier_arrive_expect_tx(unsigned long long* mbarrier, unsigned bytes, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.arrive.expect_tx needs sm_90 or newer");
  emulated::barrier_expect(reinterpret_cast<uint64_t*>(mbarrier), bytes, where);
  emulated::barrier_arrive(reinterpret_cast<uint64_t*>(mbarrier), 1, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void mbarrier_expect_tx(unsigned long long* mbarrier, unsigned bytes, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.expect_tx needs sm_90 or newer");
  emulated::barrier_expect(reinterpret_cast<uint64_t*>(mbarrier), bytes, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION bool mbarrier_try_wait_parity(unsigned long long* mbarrier, unsigned parity, EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.try_wait needs sm_90 or newer");
  return emulated::barrier_try_wait(reinterpret_cast<uint64_t*>(mbarrier), parity, false, where);
}
// It sees a phase's end later than the hardware may, as try_wait does; and lets others run, or a loop would not end.
EMULATED_INSTRUCTION bool mbarrier_test_wait_parity(unsigned long long* mbarrier, unsigned parity, EMULATED_CALLER) {
  return emulated::barrier_try_wait(reinterpret_cast<uint64_t*>(mbarrier), parity, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void fence_mbarrier_init() {
  static_assert(__CUDA_ARCH__ >= arch, "fence.mbarrier_init needs sm_90 or newer");
  emulated::fence_barrier_init();
}

}  // namespace qp::ptx
