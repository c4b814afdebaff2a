// Kernels that meet at named barriers, with steps to leave out; see scenarios.py.
#include <qp/ptx/barrier.cuh>

enum Scenario { hand_over, halves, mistake };
enum Step {
  nothing, full_sync, full_arrive, empty_sync, empty_arrive, half_sync, wrong_id, sixteenth, odd_count, no_count,
  beyond_block, other_count
};

// One warp fills two slots in turn, the other empties them. Barriers 1 and 2: a slot is full; 3 and 4: it is empty.
__device__ void run_hand_over(const P& p) {
  constexpr int tiles = 9;
  const unsigned lane = threadIdx.x % 32;
  for (unsigned t = 0; t < tiles; ++t) {
    const unsigned slot = t % 2;
    if (threadIdx.x < 32) {
      if (t >= 2 && p.without != empty_sync) bar_sync(3 + slot, 64);  // @waits_empty
      slots()[32 * slot + lane] = input(p)[32 * t + lane];  // @fills
      UNLESS(full_arrive) bar_arrive(1 + slot, 64);
    } else {
      UNLESS(full_sync) bar_sync(1 + slot, 64);  // @waits_full
      output(p)[32 * t + lane] = slots()[32 * slot + (lane ^ 1)];  // @empties
      if (t + 2 < tiles && p.without != empty_arrive) bar_arrive(3 + slot, 64);
    }
  }
}

// Each warp has a barrier of its own.
__device__ void run_halves(const P& p) {
  const unsigned i = threadIdx.x;
  slots()[i] = input(p)[i];
  UNLESS(half_sync) bar_sync(p.without == wrong_id ? 1 : 1 + i / 32, 32);
  output(p)[i] = slots()[i % 32 ? i - 1 : i];  // @reads_half
}

__device__ void run_mistake(const P& p) {
  switch (p.without) {
    case sixteenth: bar_sync(16, 64); break;  // @sixteenth
    case odd_count: bar_sync(1, 48); break;  // @odd_count
    case no_count: bar_arrive(1, 0); break;  // @no_count
    case beyond_block: bar_sync(1, 96); break;  // @beyond_block
    case other_count:
      if (threadIdx.x < 32) bar_arrive(1, 64);
      else bar_sync(1, 32);  // @other_count
  }
}

__device__ void body(const P& p) {
  switch (p.scenario) {
    case hand_over: return run_hand_over(p);
    case halves: return run_halves(p);
    case mistake: return run_mistake(p);
  }
}
