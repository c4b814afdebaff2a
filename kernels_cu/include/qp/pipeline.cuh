// A ring of buffers in shared memory between warps that fill them and warps that empty them, kept by two mbarriers each:
//
//   producer                                              consumers
//   wait_empty(at) ◀── empty[stage] ◀── all consumers ──── release(at)
//   announce(at, bytes), copies ──▶ full[stage] ──▶ ────── wait_full(at)
//
// Both sides go through the ring at their own pace, each with a place of its own. A ring is empty to begin with.
//
// The blocks of a cluster may fill each other's rings: then a buffer is empty when it is so in all of them, and consumers
// release it to every producer.
#pragma once

#include <qp/ptx/cluster.cuh>
#include <qp/ptx/mbarrier.cuh>

namespace qp {

template <int Stages>
struct RingPlace {
  int stage = 0;
  unsigned round = 0;  // how often the ring was gone through, modulo 2: the parity of the phase that is awaited

  __device__ void advance() {
    if (++stage == Stages) stage = 0, round ^= 1;
  }
};

template <int Stages, int Cluster = 1>
struct Ring {
  unsigned long long *const full, *const empty;

  __device__ explicit Ring(void* shared)
      : full(static_cast<unsigned long long*>(shared)), empty(static_cast<unsigned long long*>(shared) + Stages) {}
  __device__ void* end() const { return empty + Stages; }  // of what the mbarriers take of shared memory

  // For the warps of a block that consume, and for so many arrivals that make a buffer full: that of announce(), and of
  // who fills a part of it otherwise. By one thread; a barrier of all that use the ring must follow.
  __device__ void init(unsigned consumers, unsigned arrivals = 1) const {
    for (int stage = 0; stage < Stages; ++stage) {
      ptx::mbarrier_init(&full[stage], arrivals);
      ptx::mbarrier_init(&empty[stage], consumers * Cluster);
    }
    ptx::fence_mbarrier_init();
  }

  __device__ void wait_empty(const RingPlace<Stages>& at) const {
    while (!ptx::mbarrier_try_wait_parity(&empty[at.stage], at.round ^ 1)) {}
  }
  __device__ void wait_full(const RingPlace<Stages>& at) const {
    while (!ptx::mbarrier_try_wait_parity(&full[at.stage], at.round)) {}
  }
  __device__ void announce(const RingPlace<Stages>& at, unsigned copied) const {
    ptx::mbarrier_arrive_expect_tx(&full[at.stage], copied);
  }
  // By all lanes of a consuming warp, whose loads are over; lane i tells block i of the cluster. It tells other blocks
  // nothing else, and so costs no fence: what comes next into the buffer is a copy, which waits for the mbarrier.
  __device__ void release(const RingPlace<Stages>& at, int lane) const {
    if (lane >= Cluster) return;
    if constexpr (Cluster == 1) ptx::mbarrier_arrive(&empty[at.stage]);
    else ptx::mbarrier_arrive_cluster_read(ptx::mapa(&empty[at.stage], lane));
  }
};

}  // namespace qp
