// mbarrier: a barrier in shared memory that counts arrivals of threads and bytes of copies. When both are there a phase
// is over and the next begins; phases are told apart by parity, which starts at 0.
// Where an instruction needs a newer architecture, the wrapper is a template, so that only a call is refused.
#pragma once

#include <qp/ptx/address.cuh>

namespace qp::ptx {

// Makes 8 aligned bytes an mbarrier whose phases wait for so many arrivals; other threads need a barrier after it.
__device__ inline void mbarrier_init(unsigned long long* mbarrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(mbarrier)), "r"(arrivals) : "memory");
}

// Makes it memory like any other again.
__device__ inline void mbarrier_inval(unsigned long long* mbarrier) {
  asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(shared_address(mbarrier)) : "memory");
}

// Arrives; what the thread did before is seen by who waits for the phase.
__device__ inline void mbarrier_arrive(unsigned long long* mbarrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.release.cta.shared.b64 state, [%0]; }" ::"r"(
                   shared_address(mbarrier))
               : "memory");
}

// Arrives `count` times at once.
template <int arch = 900>
__device__ inline void mbarrier_arrive_count(unsigned long long* mbarrier, unsigned count) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.arrive with a count needs sm_90 or newer");
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mbarrier)), "r"(count)
               : "memory");
}

// Announces that copies will bring so many bytes in this phase, then arrives.
template <int arch = 900>
__device__ inline void mbarrier_arrive_expect_tx(unsigned long long* mbarrier, unsigned bytes) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.arrive.expect_tx needs sm_90 or newer");
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mbarrier)),
               "r"(bytes)
               : "memory");
}

// Announces that copies will bring so many bytes in this phase; only before the phase's last arrival.
template <int arch = 900>
__device__ inline void mbarrier_expect_tx(unsigned long long* mbarrier, unsigned bytes) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.expect_tx needs sm_90 or newer");
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(mbarrier)), "r"(bytes)
               : "memory");
}

// Tells whether the phase of a parity is over, after waiting for it for a while: call it in a loop.
template <int arch = 900>
__device__ inline bool mbarrier_try_wait_parity(unsigned long long* mbarrier, unsigned parity) {
  static_assert(__CUDA_ARCH__ >= arch, "mbarrier.try_wait needs sm_90 or newer");
  unsigned over;
  asm volatile(
      "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, over; }"
      : "=r"(over)
      : "r"(shared_address(mbarrier)), "r"(parity)
      : "memory");
  return over != 0;
}

// Tells whether the phase of a parity is over, at once.
__device__ inline bool mbarrier_test_wait_parity(unsigned long long* mbarrier, unsigned parity) {
  unsigned over;
  asm volatile(
      "{ .reg .pred over; mbarrier.test_wait.parity.shared.b64 over, [%1], %2; selp.u32 %0, 1, 0, over; }"
      : "=r"(over)
      : "r"(shared_address(mbarrier)), "r"(parity)
      : "memory");
  return over != 0;
}

// Makes the mbarriers that the thread has initialized visible to bulk copies.
template <int arch = 900>
__device__ inline void fence_mbarrier_init() {
  static_assert(__CUDA_ARCH__ >= arch, "fence.mbarrier_init needs sm_90 or newer");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

}  // namespace qp::ptx
