// Pipelines of warp groups that multiply, with steps to leave out; see scenarios.py.
#include <qp/ptx/address.cuh>
#include <qp/ptx/barrier.cuh>
#include <qp/ptx/bulk.cuh>
#include <qp/ptx/copy_async.cuh>
#include <qp/ptx/mbarrier.cuh>
#include <qp/ptx/registers.cuh>
#include <qp/ptx/wgmma.cuh>

enum Scenario { once, chain, ring, registers, two_groups, mistake };
enum Step {
  nothing, proxy_fence, late_fence, fill_barrier, pin, fence, commit, wait, group_wait, take, refill_wait, own_wait,
  early_sum, early_write, second_fence, second_pin, shape, a_wait, a_fence, empty_arrive, full_wait, one_full_wait,
  absent_warp, absent_lane, branches, two_instructions, other_descriptor, other_start, other_accumulate, beyond,
  unwritten, busy_tile, shared_sums, leave, leave_open, part_group, async_tile, dec_more, inc_less, inc_never
};
using Mbarrier = unsigned long long;
constexpr auto s8 = MatrixElement::s8;

// A tile is 64 rows of 128 bytes, with a swizzle of 128 bytes.
constexpr unsigned tile_bytes = 64 * 128;

__device__ unsigned char* tile(int i) { return shared_memory() + i * tile_bytes; }

__device__ MatrixDescriptor describe(int i, unsigned bytes_on = 0) {
  return describe_matrix(shared_address(tile(i)) + bytes_on, Swizzle::b128, 1024);
}

// Each thread copies its share of a tile, as it lies in memory.
__device__ void fill(const P& p, int to, int from, unsigned threads = 128) {
  for (unsigned i = threadIdx.x % threads; i < tile_bytes / 16; i += threads)
    reinterpret_cast<uint4*>(tile(to))[i] = input(p)[from * tile_bytes / 16 + i];  // @fills
}

__device__ void multiply(int (&sums)[32], MatrixDescriptor a, MatrixDescriptor b, bool accumulate) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    wgmma<s8, s8, 64>(sums, a.advanced(32 * k), b.advanced(32 * k), accumulate || k > 0);  // @multiplies
}

__device__ void store(const P& p, const int (&sums)[32], int index) {
  int* to = reinterpret_cast<int*>(p.out) + (index * 128 + threadIdx.x % 128) * 32;
  for (int i = 0; i < 32; ++i) to[i] = sums[i];  // @stores
}

// One product of two tiles.
__device__ void run_once(const P& p) {
  fill(p, 0, 0);
  fill(p, 1, 1);
  UNLESS(proxy_fence) if (p.without != late_fence) fence_proxy_async_shared();
  UNLESS(fill_barrier) __syncthreads();
  if (p.without == late_fence) fence_proxy_async_shared();
  int sums[32];
  UNLESS(pin) wgmma_fence_operand(sums);
  UNLESS(fence) wgmma_fence();
  multiply(sums, describe(0), describe(1), false);
  if (p.without == early_sum) p.out[0] = sums[3];  // @reads_early
  if (p.without == early_write) sums[4] = 0;  // @writes_early
  UNLESS(commit) wgmma_commit_group();
  UNLESS(wait) { if (p.without == group_wait) wgmma_wait_group<1>(); else wgmma_wait_group<0>(); }
  UNLESS(take) wgmma_fence_operand(sums);
  store(p, sums, 0);
}

// Sums that go on over many tiles, with other work in between.
__device__ void run_chain(const P& p) {
  int sums[32] = {};
  for (int t = 0; t < 3; ++t) {
    __syncthreads();
    fill(p, 0, 2 * t);
    fill(p, 1, 2 * t + 1);
    fence_proxy_async_shared();
    __syncthreads();
    UNLESS(second_pin) wgmma_fence_operand(sums);
    if (t == 0 || p.without != second_fence) wgmma_fence();
    multiply(sums, describe(0), describe(1), true);
    wgmma_commit_group();
    UNLESS(refill_wait) wgmma_wait_group<0>();
    UNLESS(refill_wait) wgmma_fence_operand(sums);
    UNLESS(refill_wait) sums[0] += 1;
  }
  store(p, sums, 0);
}

// Two consumers and a producer: B comes through a ring, each consumer has its own A, and waits one step behind.
__device__ void run_ring(const P& p) {
  constexpr int stages = 3, tiles = 7;
  const unsigned group = threadIdx.x / 128;
  Mbarrier *full = reinterpret_cast<Mbarrier*>(tile(stages + 2)), *empty = full + stages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 2);
    }
    fence_mbarrier_init();
  }
  if (group < 2) fill(p, stages + int(group), int(group));
  fence_proxy_async_shared();
  __syncthreads();
  if (group == 2) {
    setmaxnreg_dec<40>();
    if (threadIdx.x == 256) {
      for (int t = 0; t < tiles; ++t) {
        const int s = t % stages, round = t / stages;
        while (!mbarrier_try_wait_parity(&empty[s], round % 2 ^ 1)) {}
        mbarrier_arrive_expect_tx(&full[s], tile_bytes);
        cp_async_bulk_load(tile(s), p.in + (2 + t) * tile_bytes, tile_bytes, &full[s]);  // @loads
      }
    }
    return;
  }
  setmaxnreg_inc<232>();
  int sums[32];
  wgmma_fence_operand(sums);
  for (int t = 0; t < tiles; ++t) {
    const int s = t % stages, round = t / stages;
    const bool waits = p.without != full_wait && !(p.without == one_full_wait && threadIdx.x == 40);
    if (waits) while (!mbarrier_try_wait_parity(&full[s], round % 2)) {}  // @waits_full
    wgmma_fence();
    multiply(sums, describe(stages + int(group)), describe(s), t > 0);
    wgmma_commit_group();
    wgmma_wait_group<1>();
    const int done = p.without == own_wait ? t : t - 1;  // with own_wait, it gives away what is still read
    if (done >= 0 && threadIdx.x % 128 == 0) UNLESS(empty_arrive) mbarrier_arrive(&empty[done % stages]);
  }
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  store(p, sums, int(group));
}

// A in registers, and made anew while an earlier product is under way.
__device__ void run_registers(const P& p) {
  fill(p, 1, 1);
  fence_proxy_async_shared();
  __syncthreads();
  int sums[32];
  unsigned a[2][4];
  wgmma_fence_operand(sums);
  for (int k = 0; k < 4; ++k) {
    unsigned (&mine)[4] = p.without == a_wait ? a[0] : a[k % 2];
    for (int r = 0; r < 4; ++r) mine[r] = threadIdx.x * 0x01010101u + unsigned(4 * k + r);  // @makes
    UNLESS(a_fence) wgmma_fence_operand(mine);
    wgmma_fence();
    wgmma_registers<s8, s8, 64>(sums, mine, describe(1, 32 * unsigned(k)), k > 0);  // @multiplies_registers
    wgmma_commit_group();
    wgmma_wait_group<1>();
  }
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  store(p, sums, 0);
}

// Two warp groups share both tiles, and each adds twice what the other does not: no two of their instructions meet.
__device__ void run_two_groups(const P& p) {
  const unsigned group = threadIdx.x / 128;
  fill(p, int(group), int(group));
  fence_proxy_async_shared();
  __syncthreads();
  int sums[32];
  wgmma_fence_operand(sums);
  for (unsigned i = 0; i <= group; ++i) {
    wgmma_fence();
    multiply(sums, describe(0), describe(1), i > 0);
    wgmma_commit_group();
  }
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  store(p, sums, int(group));
}

__device__ void run_mistake(const P& p) {
  const unsigned t = threadIdx.x, warp = t / 32;
  if (p.without == dec_more) {
    setmaxnreg_dec<40>();
    setmaxnreg_dec<48>();  // @dec_more
  }
  if (p.without == inc_less) {
    setmaxnreg_dec<80>();
    setmaxnreg_inc<40>();  // @inc_less
  }
  if (p.without == inc_never) {  // five groups have 96 registers each, of 512 that there are for one thread of each
    if (warp < 4) setmaxnreg_inc<160>();  // @inc_never
    return;
  }
  if (p.without == part_group) {
    if (warp == 4) wgmma_fence();  // @part_group
    return;
  }
  if (p.without == async_tile) {
    for (unsigned i = t; i < tile_bytes / 16; i += 128) cp_async<16>(tile(0) + 16 * i, p.in + 16 * i);  // @copies
    cp_async_commit_group();
    cp_async_wait_group<0>();  // which brings the bytes, and not to wgmma
  } else {
    fill(p, 0, 0);
    fence_proxy_async_shared();
  }
  if (p.without != unwritten) fill(p, 1, 1);
  if (p.without == busy_tile && t == 0) cp_async<16>(tile(1), p.in);  // @busy_tile_copies
  if (p.without != async_tile) fence_proxy_async_shared();
  __syncthreads();
  int sums[32] = {};
  wgmma_fence_operand(sums);
  wgmma_fence();
  const auto a = describe(0, p.without == other_start && t == 99 ? 32 : 0);
  const auto b = describe(1, p.without == other_descriptor && warp == 3 ? 32 : 0);
  const bool accumulate = p.without == other_accumulate && t == 1;
  if (p.without == absent_warp && warp == 2) __syncthreads();
  if (p.without == absent_lane && t == 77) return;
  if (p.without == two_instructions && warp == 1) wgmma_fence();  // @two_instructions
  if (p.without == branches) {
    if (t % 2) wgmma<s8, s8, 64>(sums, a, b, false);
    else wgmma<s8, s8, 64>(sums, a, b, false);  // @branches_first
  }
  wgmma<s8, s8, 64>(sums, a, b, accumulate);  // @one_multiplication
  if (p.without == beyond) wgmma<s8, s8, 64>(sums, a, b.advanced(5 * tile_bytes), true);  // @beyond
  if (p.without == shape) {
    int (&part)[16] = reinterpret_cast<int (&)[16]>(sums);
    wgmma<s8, s8, 32>(part, a, b, false);  // @shape
  }
  if (p.without == shared_sums) {
    int (&there)[32] = reinterpret_cast<int (&)[32]>(*tile(2));
    wgmma_fence_operand(there);
    wgmma_fence();
    wgmma<s8, s8, 64>(there, a, b, false);  // @shared_sums
  }
  if (p.without == leave_open) return;
  wgmma_commit_group();
  if (p.without == leave) return;
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  store(p, sums, 0);
}

__device__ void body(const P& p) {
  switch (p.scenario) {
    case once: return run_once(p);
    case chain: return run_chain(p);
    case ring: return run_ring(p);
    case registers: return run_registers(p);
    case two_groups: return run_two_groups(p);
    case mistake: return run_mistake(p);
  }
}
