// Kernels that copy boxes of tensors, with steps to leave out; see scenarios.py.
#include <qp/ptx/bulk.cuh>
#include <qp/ptx/mbarrier.cuh>

enum Scenario { load, load_deep, store, ring, mistake };
enum Step {
  nothing, wait, expect, init_fence, all_bytes, proxy_fence, empty_wait, misaligned_box, misaligned_map, local_map,
  missing_map, shallow_map, stray_box, beyond_operand, misaligned_source, stray_source, unwritten_source, store_leave,
  load_leave, busy_source, prefetch_missing, policy, odd_column, odd_target,
  early_target, late_target
};
using Mbarrier = unsigned long long;

__device__ unsigned char* box() { return shared_memory() + 1024; }

__device__ Mbarrier* mbarriers(const P& p, int count, unsigned arrivals) {
  Mbarrier* first = reinterpret_cast<Mbarrier*>(shared_memory());
  if (threadIdx.x == 0) {
    for (int i = 0; i < count; ++i) mbarrier_init(&first[i], arrivals);  // @initializes
    UNLESS(init_fence) fence_mbarrier_init();
  }
  __syncthreads();
  return first;
}

__device__ void copy_out(const P& p, unsigned char* to) {
  for (unsigned i = threadIdx.x; i < p.bytes / 16; i += blockDim.x)
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(box())[i];  // @takes
}

// Copies one box, as it lies in shared memory.
__device__ void run_load(const P& p) {
  Mbarrier* mbarrier = mbarriers(p, 1, 1);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&p.in_map);
    UNLESS(expect) mbarrier_arrive_expect_tx(mbarrier, p.bytes - (p.without == all_bytes ? 16 : 0));
    if (p.without == policy) cp_async_bulk_tensor_load_2d_hint(box(), &p.in_map, p.c0, p.c1, mbarrier, 7);  // @hints
    cp_async_bulk_tensor_load_2d(box(), &p.in_map, p.c0, p.c1, mbarrier);  // @loads
  }
  UNLESS(wait) while (!mbarrier_try_wait_parity(mbarrier, 0)) {}  // @waits
  copy_out(p, p.out);
}

__device__ void run_load_deep(const P& p) {
  Mbarrier* mbarrier = mbarriers(p, 1, 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(mbarrier, p.bytes);
    cp_async_bulk_tensor_load_3d(box(), &p.in_map, p.c0, p.c1, p.c2, mbarrier);
  }
  while (!mbarrier_try_wait_parity(mbarrier, 0)) {}
  copy_out(p, p.out);
}

// Stores a box that the input gives, as it lies in shared memory.
__device__ void run_store(const P& p) {
  for (unsigned i = threadIdx.x; i < p.bytes / 16; i += blockDim.x)
    reinterpret_cast<uint4*>(box())[i] = input(p)[i];  // @fills
  UNLESS(proxy_fence) fence_proxy_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    cp_async_bulk_tensor_store_2d(&p.out_map, p.c0, p.c1, box());  // @stores
    cp_async_bulk_commit_group();
    if (p.without == busy_source) box()[0] = 1;  // @overwrites
    cp_async_bulk_wait_group<0>();
  }
}

// A warp loads tiles along a row of them into two stages, another one takes them.
__device__ void run_ring(const P& p) {
  constexpr int stages = 2;
  Mbarrier *full = mbarriers(p, 2 * stages, 1), *empty = full + stages;
  const unsigned i = threadIdx.x;
  const int tiles = p.c1, width = p.c0;
  for (int t = 0; t < tiles; ++t) {
    const int s = t % stages, round = t / stages;
    unsigned char* tile = box() + s * p.bytes;
    if (i == 0) {
      UNLESS(empty_wait) while (!mbarrier_try_wait_parity(&empty[s], round % 2 ^ 1)) {}
      mbarrier_arrive_expect_tx(&full[s], p.bytes);  // @announces
      const unsigned long long policy = t % 2 ? l2_evict_first() : l2_evict_last();
      cp_async_bulk_tensor_load_2d_hint(tile, &p.in_map, t * width, 0, &full[s], policy);  // @refills
    } else if (i >= 32) {
      while (!mbarrier_try_wait_parity(&full[s], round % 2)) {}
      for (unsigned j = i - 32; j < p.bytes / 16; j += 32)
        reinterpret_cast<uint4*>(p.out)[t * (p.bytes / 16) + j] = reinterpret_cast<const uint4*>(tile)[j];  // @consumes
      __syncwarp();
      if (i == 32) mbarrier_arrive(&empty[s]);
    }
  }
}

__device__ void run_mistake(const P& p) {
  Mbarrier* mbarrier = mbarriers(p, 1, 1);
  if (threadIdx.x != 0) return;
  unsigned char* to = box();
  TensorMap copy;
  for (int i = 0; i < 128; ++i) copy.bytes[i] = p.in_map.bytes[i];
  const TensorMap* within = reinterpret_cast<const TensorMap*>(p.in_map.bytes + 32);
  switch (p.without) {
    case misaligned_box: cp_async_bulk_tensor_load_2d(to + 64, &p.in_map, 0, 0, mbarrier); break;  // @misaligned_box
    case misaligned_map: cp_async_bulk_tensor_load_2d(to, within, 0, 0, mbarrier); break;  // @misaligned_map
    case local_map: cp_async_bulk_tensor_load_2d(to, &copy, 0, 0, mbarrier); break;  // @local_map
    case missing_map: cp_async_bulk_tensor_load_2d(to, &p.out_map, 0, 0, mbarrier); break;  // @missing_map
    case prefetch_missing: prefetch_tensor_map(&p.out_map); break;  // @prefetch_missing
    case shallow_map: cp_async_bulk_tensor_load_3d(to, &p.in_map, 0, 0, 0, mbarrier); break;  // @shallow_map
    case stray_box: cp_async_bulk_tensor_load_2d(shared_memory() + 2048, &p.in_map, 0, 0, mbarrier); break;  // @stray_box
    case beyond_operand: cp_async_bulk_tensor_load_2d(to, &p.in_map, 0, 32, mbarrier); break;  // @beyond_operand
    case load_leave: cp_async_bulk_tensor_load_2d(to, &p.in_map, 0, 0, mbarrier); break;  // @load_leave
    case misaligned_source: cp_async_bulk_tensor_store_2d(&p.in_map, 0, 0, to + 16); break;  // @misaligned_source
    case stray_source: cp_async_bulk_tensor_store_2d(&p.in_map, 0, 0, p.out); break;  // @stray_source
    case odd_column: cp_async_bulk_tensor_load_2d(to, &p.in_map, -24, 0, mbarrier); break;  // @odd_column
    case odd_target: cp_async_bulk_tensor_store_2d(&p.in_map, 8, 0, to); break;  // @odd_target
    case early_target: cp_async_bulk_tensor_store_2d(&p.in_map, 0, -1, to); break;  // @early_target
    case late_target: cp_async_bulk_tensor_store_2d(&p.in_map, 208, 0, to); break;  // @late_target
    case unwritten_source: cp_async_bulk_tensor_store_2d(&p.in_map, 0, 0, to); break;  // @unwritten_source
    default: p.out[0] = 1;
  }
}

__device__ void body(const P& p) {
  switch (p.scenario) {
    case load: return run_load(p);
    case load_deep: return run_load_deep(p);
    case store: return run_store(p);
    case ring: return run_ring(p);
    case mistake: return run_mistake(p);
  }
}
