// Kernels that copy asynchronously, with steps to leave out; see scenarios.py.
#include <qp/ptx/bulk.cuh>
#include <qp/ptx/copy_async.cuh>
#include <qp/ptx/mbarrier.cuh>

enum Scenario {
  exchange, sizes, tail, groups, ring, overwrite, leave, stream, two_loads, announce, hand_over, store, read_back,
  mistake
};
enum Step {
  nothing, commit, wait, barrier, zero_fill, late_refill, older_group, init_fence, init_barrier, empty_wait, expect,
  full_wait, one_full_wait, full_loop, empty_arrive, parity, first_wait, expect_first, all_bytes, no_more_bytes,
  early_expect, own_wait, plain_arrive, proxy_fence, late_fill, late_fence, filled_barrier, store_commit, read_wait,
  read_barrier, written_wait, misaligned_target, misaligned_source, beyond_source, beyond_source_bytes, global_target,
  shared_source, odd_bulk, empty_bulk, misaligned_bulk, beyond_bulk, misaligned_mbarrier, global_mbarrier,
  no_arrivals, unknown_mbarrier, dead_mbarrier, second_init, too_many_arrivals, third_parity, late_hand_over,
  busy_inval, bulk_leave, store_leave, odd_store, misaligned_store, too_many_bytes
};
using Mbarrier = unsigned long long;

__device__ void run_exchange(const P& p) {
  const unsigned i = threadIdx.x;
  cp_async<16>(&slots()[i], p.in + 16 * i);  // @issues
  UNLESS(commit) cp_async_commit_group();
  UNLESS(wait) cp_async_wait_group<0>();
  UNLESS(barrier) __syncthreads();
  output(p)[i] = slots()[i ? i - 1 : 0];  // @takes
}

__device__ void run_sizes(const P& p) {
  const unsigned i = threadIdx.x;
  unsigned char* row = shared_memory() + 64 * i;
  const unsigned char* from = p.in + 64 * i;
  cp_async<4>(row, from);
  cp_async_zero_fill<4>(row + 4, from + 4, i % 5);
  cp_async<8>(row + 8, from + 8);
  cp_async_zero_fill<8>(row + 16, from + 16, i % 9);
  cp_async_zero_fill<16>(row + 32, from + 32, i % 17);
  cp_async<16>(row + 48, from + 48);
  cp_async_commit_group();
  cp_async_wait_group<0>();
  for (int b = 0; b < 64; ++b)
    if (b < 24 || b >= 32) p.out[64 * i + b] = row[b];
}

// The source ends after 20 bytes.
__device__ void run_tail(const P& p) {
  const unsigned bytes = p.without == zero_fill ? 5 : 4;
  if (threadIdx.x) return;
  cp_async_zero_fill<16>(&slots()[0], p.in + 16, bytes);  // @reads_tail
  cp_async_zero_fill<16>(&slots()[1], p.in + 32, 0);
  cp_async_zero_fill<16>(&slots()[2], &slots()[3], 0);  // where nothing is read, any address will do
  cp_async_commit_group();
  cp_async_wait_group<0>();
  output(p)[0] = slots()[0];
  output(p)[1] = slots()[1];
}

__device__ void run_groups(const P& p) {
  const unsigned i = threadIdx.x;
  for (int g = 0; g < 3; ++g) {
    cp_async<16>(&slots()[64 * g + i], p.in + 16 * (64 * g + i));
    cp_async_commit_group();
  }
  cp_async_wait_group<1>();
  const int sum = p.without == older_group ? 2 : 1;
  output(p)[i] = slots()[64 * sum + i];  // @takes_group
  cp_async_wait_group<0>();
}

__device__ void run_ring(const P& p) {
  constexpr int stages = 3, tiles = 10;
  const unsigned i = threadIdx.x;
  const auto refill = [&](int t) {
    if (t < tiles) cp_async<16>(&slots()[t % stages * 64 + i], p.in + 16 * (64 * t + i));  // @refills
    cp_async_commit_group();
  };
  for (int t = 0; t < stages - 1; ++t) refill(t);
  for (int t = 0; t < tiles; ++t) {
    if (p.without == late_refill) refill(t + stages - 1);
    UNLESS(wait) { if (p.without == late_refill) cp_async_wait_group<2>(); else cp_async_wait_group<1>(); }
    UNLESS(barrier) __syncthreads();
    output(p)[64 * t + i] = slots()[t % stages * 64 + (i ? i - 1 : 0)];  // @reads_ring
    UNLESS(late_refill) refill(t + stages - 1);
  }
  cp_async_wait_group<0>();
}

__device__ void run_overwrite(const P& p) {
  const unsigned i = threadIdx.x;
  cp_async<16>(&slots()[i], p.in + 16 * i);
  cp_async_commit_group();
  UNLESS(wait) cp_async_wait_group<0>();
  slots()[i] = input(p)[i];  // @overwrites
}

__device__ void run_leave(const P& p) {
  const unsigned i = threadIdx.x;
  cp_async<16>(&slots()[i], p.in + 16 * i);  // @leaves
  cp_async_commit_group();
  UNLESS(wait) cp_async_wait_group<0>();
}

// One thread loads tiles into a ring, a warp reads them.
__device__ void run_stream(const P& p) {
  constexpr int stages = 2, tiles = 200, bytes = 512;
  unsigned char* tile = shared_memory();
  Mbarrier *full = reinterpret_cast<Mbarrier*>(tile + stages * bytes), *empty = full + stages;
  const unsigned i = threadIdx.x;
  if (i == 0) {
    for (int s = 0; s < stages; ++s) {
      mbarrier_init(&full[s], 1);  // @initializes
      mbarrier_init(&empty[s], 32);
    }
    UNLESS(init_fence) fence_mbarrier_init();
  }
  UNLESS(init_barrier) __syncthreads();
  for (int t = 0; t < tiles; ++t) {
    const unsigned s = t % stages, round = t / stages;
    if (i == 0) {
      UNLESS(empty_wait) while (!mbarrier_try_wait_parity(&empty[s], round % 2 ^ 1)) {}  // @waits_empty
      UNLESS(expect) mbarrier_arrive_expect_tx(&full[s], bytes);  // @announces
      cp_async_bulk_load(tile + s * bytes, p.in + t * bytes, bytes, &full[s]);  // @loads
    } else if (i >= 32) {
      const unsigned awaited = p.without == parity ? 0 : round % 2;
      const bool waits = p.without != full_wait && !(p.without == one_full_wait && i == 40);
      if (p.without == full_loop) mbarrier_try_wait_parity(&full[s], awaited);
      else if (waits) while (!mbarrier_try_wait_parity(&full[s], awaited)) {}  // @waits_full
      output(p)[32 * t + i - 32] = reinterpret_cast<uint4*>(tile + s * bytes)[i - 32];  // @consumes
      UNLESS(empty_arrive) mbarrier_arrive(&empty[s]);
    }
  }
}

__device__ Mbarrier* one_mbarrier(unsigned arrivals) {
  Mbarrier* mbarrier = reinterpret_cast<Mbarrier*>(shared_memory() + 2048);
  if (threadIdx.x == 0) {
    mbarrier_init(mbarrier, arrivals);
    mbarrier_init(mbarrier + 1, arrivals);
    fence_mbarrier_init();
  }
  __syncthreads();
  return mbarrier;
}

__device__ void wait_for(Mbarrier* mbarrier) {
  while (!mbarrier_try_wait_parity(mbarrier, 0)) {}  // @waits
}

__device__ void run_two_loads(const P& p) {
  Mbarrier* mbarrier = one_mbarrier(1);
  const unsigned i = threadIdx.x;
  if (i == 0)
    for (int b = 0; b < 2; ++b) {
      mbarrier_arrive_expect_tx(&mbarrier[b], 1024);
      cp_async_bulk_load(shared_memory() + 1024 * b, p.in + 1024 * b, 1024, &mbarrier[b]);
    }
  UNLESS(first_wait) wait_for(&mbarrier[0]);
  wait_for(&mbarrier[1]);
  output(p)[i] = slots()[i];  // @takes_first
}

__device__ void run_announce(const P& p) {
  Mbarrier* mbarrier = one_mbarrier(3);
  const unsigned i = threadIdx.x;
  if (i == 0) {
    const bool first = p.without != expect_first;
    const unsigned half = 512, wrong = p.without == all_bytes ? 496 : p.without == no_more_bytes ? 528 : half;
    if (first) mbarrier_expect_tx(mbarrier, half);
    cp_async_bulk_load(shared_memory(), p.in, half, mbarrier);
    cp_async_bulk_load(shared_memory() + half, p.in + half, half, mbarrier);
    if (!first) mbarrier_expect_tx(mbarrier, half);
    mbarrier_arrive_count(mbarrier, 2);
    if (p.without == early_expect) {
      mbarrier_arrive(mbarrier);
      mbarrier_expect_tx(mbarrier, half);  // @expects_late
    } else {
      mbarrier_arrive_expect_tx(mbarrier, wrong);
    }
  }
  wait_for(mbarrier);
  output(p)[i] = slots()[i];
}

// cp.async that report to an mbarrier: as one of its arrivals, or beside them.
__device__ void run_hand_over(const P& p) {
  Mbarrier* mbarrier = one_mbarrier(32);
  const unsigned i = threadIdx.x;
  if (i < 32) {
    cp_async<16>(&slots()[i], p.in + 16 * i);
    cp_async_mbarrier_arrive_noinc(&mbarrier[0]);
    if (p.without == own_wait) output(p)[i] = slots()[i];  // @takes_own
    cp_async<16>(&slots()[32 + i], p.in + 16 * (32 + i));
    cp_async_mbarrier_arrive(&mbarrier[1]);
    UNLESS(plain_arrive) mbarrier_arrive(&mbarrier[1]);
  }
  __syncthreads();
  UNLESS(first_wait) while (!mbarrier_test_wait_parity(&mbarrier[0], 0)) {}
  wait_for(&mbarrier[1]);
  output(p)[i] = slots()[i ^ 1];  // @takes_handed
}

__device__ void run_store(const P& p) {
  const unsigned i = threadIdx.x;
  for (int t = 0; t < 3; ++t) {
    if (p.without == late_fill) fence_proxy_async_shared();
    slots()[i] = input(p)[64 * t + i];  // @fills
    if (p.without != proxy_fence && p.without != late_fill && p.without != late_fence) fence_proxy_async_shared();
    UNLESS(filled_barrier) __syncthreads();
    if (p.without == late_fence) fence_proxy_async_shared();
    if (i == 0) {
      cp_async_bulk_store(p.out + 1024 * t, shared_memory(), 1024);  // @stores
      UNLESS(store_commit) cp_async_bulk_commit_group();
      UNLESS(read_wait) cp_async_bulk_wait_group_read<0>();
    }
    UNLESS(read_barrier) __syncthreads();
  }
}

__device__ void run_read_back(const P& p) {
  const unsigned i = threadIdx.x;
  slots()[i] = input(p)[i];
  fence_proxy_async_shared();
  __syncthreads();
  if (i == 0) {
    cp_async_bulk_store(p.out, shared_memory(), 1024);
    cp_async_bulk_commit_group();
    cp_async_bulk_wait_group_read<0>();
    UNLESS(written_wait) cp_async_bulk_wait_group<0>();
    for (int j = 0; j < 64; ++j) output(p)[64 + j] = output(p)[j];
  }
}

__device__ void run_mistake(const P& p) {
  unsigned char* shared = shared_memory();
  Mbarrier *mbarrier = one_mbarrier(2), *fresh = mbarrier + 2;
  if (threadIdx.x != 0) return;
  switch (p.without) {
    case misaligned_target: cp_async<16>(shared + 8, p.in); break;  // @misaligned_target
    case misaligned_source: cp_async<8>(shared, p.in + 4); break;  // @misaligned_source
    case beyond_source: cp_async<16>(shared, p.in + 1024); break;  // @beyond_source
    case beyond_source_bytes: cp_async_zero_fill<8>(shared, p.in, 9); break;  // @beyond_source_bytes
    case global_target: cp_async<4>(p.out, p.in); break;  // @global_target
    case shared_source: cp_async<4>(shared, mbarrier); break;  // @shared_source
    case odd_bulk: cp_async_bulk_load(shared, p.in, 24, mbarrier); break;  // @odd_bulk
    case empty_bulk: cp_async_bulk_load(shared, p.in, 0, mbarrier); break;  // @empty_bulk
    case misaligned_bulk: cp_async_bulk_load(shared + 8, p.in, 32, mbarrier); break;  // @misaligned_bulk
    case beyond_bulk: cp_async_bulk_load(shared, p.in, 1040, mbarrier); break;  // @beyond_bulk
    case misaligned_mbarrier: mbarrier_init(reinterpret_cast<Mbarrier*>(shared + 4), 1); break;  // @misaligned_mbarrier
    case global_mbarrier: mbarrier_init(reinterpret_cast<Mbarrier*>(p.out), 1); break;  // @global_mbarrier
    case no_arrivals: mbarrier_init(fresh, 0); break;  // @no_arrivals
    case unknown_mbarrier: *fresh = 0; mbarrier_arrive(fresh); break;  // @unknown_mbarrier
    case dead_mbarrier: mbarrier_inval(mbarrier); mbarrier_arrive(mbarrier); break;  // @dead_mbarrier
    case second_init: mbarrier_init(mbarrier, 2); break;  // @second_init
    case too_many_arrivals: mbarrier_arrive_count(mbarrier, 3); break;  // @too_many_arrivals
    case third_parity: mbarrier_try_wait_parity(mbarrier, 2); break;  // @third_parity
    case too_many_bytes: mbarrier_expect_tx(mbarrier, 1 << 20); break;  // @too_many_bytes
    case late_hand_over:
      mbarrier_arrive(mbarrier);
      mbarrier_arrive_expect_tx(mbarrier, 16);
      cp_async_mbarrier_arrive_noinc(mbarrier);  // @late_hand_over
      while (!mbarrier_try_wait_parity(mbarrier, 0)) {}
      break;
    case busy_inval:
      cp_async_bulk_load(shared, p.in, 32, mbarrier);
      mbarrier_inval(mbarrier);  // @busy_inval
      break;
    case bulk_leave: cp_async_bulk_load(shared, p.in, 32, mbarrier); break;  // @bulk_leave
    case odd_store: cp_async_bulk_store(p.out, mbarrier, 8); break;  // @odd_store
    case misaligned_store: cp_async_bulk_store(p.out + 8, mbarrier, 16); break;  // @misaligned_store
    case store_leave:
      fence_proxy_async_shared();
      cp_async_bulk_store(p.out, mbarrier, 16);  // @store_leave
      cp_async_bulk_commit_group();
      break;
    default:  // an mbarrier may be used again once it is invalid
      mbarrier_inval(mbarrier);
      mbarrier_init(mbarrier, 1);
      mbarrier_arrive(mbarrier);
      while (!mbarrier_try_wait_parity(mbarrier, 0)) {}
      output(p)[0] = input(p)[0];
  }
}

__device__ void body(const P& p) {
  switch (p.scenario) {
    case exchange: return run_exchange(p);
    case sizes: return run_sizes(p);
    case tail: return run_tail(p);
    case groups: return run_groups(p);
    case ring: return run_ring(p);
    case overwrite: return run_overwrite(p);
    case leave: return run_leave(p);
    case stream: return run_stream(p);
    case two_loads: return run_two_loads(p);
    case announce: return run_announce(p);
    case hand_over: return run_hand_over(p);
    case store: return run_store(p);
    case read_back: return run_read_back(p);
    case mistake: return run_mistake(p);
  }
}
