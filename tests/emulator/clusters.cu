// Kernels of clusters, with steps to leave out; see scenarios.py.
#include <qp/ptx/bulk.cuh>
#include <qp/ptx/cluster.cuh>
#include <qp/ptx/mbarrier.cuh>
#include <qp/ptx/tensor_map.cuh>

enum Scenario { places, reduce, gather, send, send_values, ring, global_memory, early_return, mistake };
enum Step {
  nothing, first_barrier, last_barrier, cluster_scope, remote_arrive, wait, proxy_fence, remote_empty,
  init_barrier, busy_source, stray_rank, stray_address, beyond_shared, misaligned_load, second_arrival, lone_wait,
  diverged_arrival, stray_blocks, no_blocks, foreign_mbarrier, odd_copy, unwritten_load, send_leave,
  cluster_barrier, global_source, cluster_release, relaxed, relaxed_end, late_loads
};
using Mbarrier = unsigned long long;

__device__ void cluster_sync() {
  cluster_arrive();  // @arrives
  cluster_wait();    // @meets
}

__device__ Mbarrier* mbarriers(int count, unsigned arrivals) {
  Mbarrier* first = reinterpret_cast<Mbarrier*>(shared_memory() + 8192);
  if (threadIdx.x == 0) {
    for (int i = 0; i < count; ++i) mbarrier_init(&first[i], arrivals);  // @initializes
    fence_mbarrier_init();
  }
  __syncthreads();
  return first;
}

__device__ void run_places(const P& p) {
  unsigned* out = reinterpret_cast<unsigned*>(p.out) + 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  out[0] = cluster_rank();
  out[1] = cluster_size();
  out[2] = blockIdx.x;
  out[3] = threadIdx.x;
}

// Sums what the blocks of a cluster hold, in the order of their ranks; each block sums its share.
__device__ void run_reduce(const P& p) {
  const unsigned i = threadIdx.x, rank = cluster_rank(), size = cluster_size();
  slots()[i] = input(p)[blockIdx.x * 64 + i];  // @fills
  if (p.without == relaxed) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else UNLESS(first_barrier) {
    cluster_sync();
  }
  const unsigned share = 64 / size;
  if (i < share) {
    uint4 sum{};
    for (unsigned r = 0; r < size; ++r) {
      const unsigned from = mapa(&slots()[rank * share + i], r);
      const uint4 part = load_cluster_16(from);  // @loads
      sum.x += part.x;
      sum.y += part.y;
      sum.z += part.z;
      sum.w += part.w;
    }
    reinterpret_cast<uint4*>(p.out)[blockIdx.x * share + i] = sum;
  }
  if (p.without == relaxed_end) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else UNLESS(last_barrier) {
    cluster_sync();
  }
}

// Every block stores to block 0 of its cluster, and tells it so.
__device__ void run_gather(const P& p) {
  const unsigned i = threadIdx.x, rank = cluster_rank();
  Mbarrier* mbarrier = mbarriers(1, 64 * cluster_size());
  UNLESS(init_barrier) cluster_sync();
  const unsigned to = mapa(&slots()[64 * rank + i], 0);
  const uint4 mine = input(p)[blockIdx.x * 64 + i];
  store_cluster_16(to, mine);  // @stores
  store_cluster_4(to + 8, mine.z + 1);
  if (p.without == cluster_release) mbarrier_arrive_cluster_read(mapa(mbarrier, 0));
  else if (p.without != remote_arrive || rank != 1 || i != 5) mbarrier_arrive_cluster(mapa(mbarrier, 0));
  if (rank == 0) {
    UNLESS(wait) {
      if (p.without == cluster_scope) while (!mbarrier_try_wait_parity(mbarrier, 0)) {}
      else while (!mbarrier_try_wait_parity_cluster(mbarrier, 0)) {}  // @awaits
    }
    for (unsigned r = 0; r < cluster_size(); ++r)
      reinterpret_cast<uint4*>(p.out)[(blockIdx.x + r) * 64 + i] = slots()[64 * r + i];  // @takes
  }
  UNLESS(last_barrier) cluster_sync();
}

// Every block hands its tile to the next one.
__device__ void run_send(const P& p) {
  const unsigned i = threadIdx.x, next = (cluster_rank() + 1) % cluster_size();
  Mbarrier* mbarrier = mbarriers(1, 1);
  slots()[i] = input(p)[blockIdx.x * 64 + i];  // @writes
  UNLESS(proxy_fence) fence_proxy_async_shared();
  cluster_sync();
  if (i == 0) {
    mbarrier_arrive_expect_tx(mbarrier, 1024);
    cp_async_bulk_cluster(mapa(&slots()[64], next), slots(), 1024, mapa(mbarrier, next));  // @sends
    if (p.without == busy_source) slots()[0].x = 1;  // @overwrites
  }
  UNLESS(wait) while (!mbarrier_try_wait_parity(mbarrier, 0)) {}
  output(p)[i] = slots()[64 + i];  // @receives
  UNLESS(last_barrier) cluster_sync();
}

__device__ void run_send_values(const P& p) {
  const unsigned i = threadIdx.x, next = (cluster_rank() + 1) % cluster_size();
  Mbarrier* mbarrier = mbarriers(1, 1);
  cluster_sync();
  if (i == 0) mbarrier_arrive_expect_tx(mbarrier, 64 * 20);
  const uint4 mine = input(p)[blockIdx.x * 64 + i];
  const unsigned there = mapa(mbarrier, next);
  store_async_16(mapa(&slots()[i], next), mine, there);  // @sends_value
  store_async_4(mapa(&slots()[64 + i], next), mine.x, there);
  UNLESS(wait) while (!mbarrier_try_wait_parity(mbarrier, 0)) {}
  uint4 got = slots()[i];  // @receives_value
  got.y ^= load_cluster_4(mapa(&slots()[64 + i], cluster_rank()));
  output(p)[i] = got;  // no barrier: each block has waited for what it was sent
}

// Two blocks read the same tiles: each loads one half and sends it to both.
__device__ void run_ring(const P& p) {
  constexpr int stages = 2, tiles = 6;
  const unsigned i = threadIdx.x, rank = cluster_rank();
  Mbarrier *full = mbarriers(2 * stages, 1), *empty = full + stages;
  if (i == 0)
    for (int s = 0; s < stages; ++s) {
      mbarrier_inval(&empty[s]);
      mbarrier_init(&empty[s], p.without == remote_empty ? 1 : 2);
      fence_mbarrier_init();
    }
  UNLESS(init_barrier) {
    cluster_arrive_relaxed();
    cluster_wait();
  }
  for (int t = 0; t < tiles; ++t) {
    const int s = t % stages, round = t / stages;
    unsigned char* tile = shared_memory() + 2048 * s;
    if (i == 0) {
      while (!mbarrier_try_wait_parity(&empty[s], round % 2 ^ 1)) {}  // @waits_empty
      mbarrier_arrive_expect_tx(&full[s], 2048);
      unsigned char* half = tile + 1024 * rank;
      cp_async_bulk_tensor_load_2d_multicast(half, &p.in_map, 128 * t, 8 * rank, &full[s], 3);  // @multicasts
    } else if (i >= 32) {
      while (!mbarrier_try_wait_parity(&full[s], round % 2)) {}  // @waits_full
      const auto release = [&] {
        if (p.without == remote_empty) mbarrier_arrive(&empty[s]);
        else for (unsigned r = 0; r < 2; ++r) mbarrier_arrive_cluster_read(mapa(&empty[s], r));
      };
      if (p.without == late_loads && i == 32) release();
      for (unsigned j = i - 32; j < 128; j += 32)
        reinterpret_cast<uint4*>(p.out)[(blockIdx.x * tiles + t) * 128 + j] = reinterpret_cast<uint4*>(tile)[j];
      __syncwarp();
      if (p.without != late_loads && i == 32) release();
    }
  }
  UNLESS(last_barrier) cluster_sync();
}

// What one block writes to global memory, another may read behind the cluster's barrier.
__device__ void run_global_memory(const P& p) {
  const unsigned i = threadIdx.x, next = blockIdx.x ^ 1;
  output(p)[i] = input(p)[blockIdx.x * 64 + i];  // @publishes
  if (p.without == cluster_barrier) __syncthreads(); else cluster_sync();
  uint4 got = reinterpret_cast<uint4*>(p.out)[next * 64 + i];  // @looks
  cluster_sync();
  output(p)[i] = got;
}

// A warp that returns is not waited for.
__device__ void run_early_return(const P& p) {
  const unsigned i = threadIdx.x;
  slots()[i] = input(p)[blockIdx.x * 64 + i];
  __syncthreads();
  if (i >= 32) return;
  cluster_sync();
  const unsigned other = cluster_rank() ^ 1;
  reinterpret_cast<uint4*>(p.out)[blockIdx.x * 32 + i] = load_cluster_16(mapa(&slots()[32 + i], other));
  cluster_sync();
}

__device__ void run_mistake(const P& p) {
  const unsigned i = threadIdx.x, rank = cluster_rank(), other = rank ^ 1;
  Mbarrier* mbarrier = mbarriers(1, 1);
  slots()[i] = input(p)[i];
  fence_proxy_async_shared();
  cluster_sync();
  const bool one = i == 0 && rank == 1;
  const unsigned there = mapa(slots(), other);
  switch (p.without) {
    case stray_rank: if (one) load_cluster_4(mapa(slots(), 4)); break;  // @stray_rank
    case stray_address: if (one) load_cluster_4(0x7f000000); break;  // @stray_address
    case beyond_shared: if (one) load_cluster_16(there + 9208); break;  // @beyond_shared
    case misaligned_load: if (one) load_cluster_16(there + 8); break;  // @misaligned_load
    case unwritten_load: if (one) load_cluster_4(there + 4096); break;  // @unwritten_load
    case second_arrival: cluster_arrive(); cluster_arrive(); break;  // @second_arrival
    case lone_wait: cluster_wait(); break;  // @lone_wait
    case diverged_arrival:
      if (i % 2) cluster_arrive();  // @odd_lanes
      else cluster_arrive();  // @even_lanes
      cluster_wait();
      break;
    case stray_blocks:
      if (one) cp_async_bulk_tensor_load_2d_multicast(shared_memory(), &p.in_map, 0, 0, mbarrier, 16);  // @stray_blocks
      break;
    case no_blocks:
      if (one) cp_async_bulk_tensor_load_2d_multicast(shared_memory(), &p.in_map, 0, 0, mbarrier, 0);  // @no_blocks
      break;
    case foreign_mbarrier:
      if (one) cp_async_bulk_cluster(there, slots(), 16, mapa(mbarrier, rank));  // @foreign_mbarrier
      break;
    case odd_copy: if (one) cp_async_bulk_cluster(there, slots(), 24, mapa(mbarrier, other)); break;  // @odd_copy
    case global_source:
      if (one) cp_async_bulk_cluster(there, p.in, 16, mapa(mbarrier, other));  // @global_source
      break;
    case send_leave:
      if (one) store_async_4(there, 1, mapa(mbarrier, other));  // @send_leave
      break;
    default: p.out[16 * (blockIdx.x * 64 + i)] = 1;
  }
  cluster_sync();
}

__device__ void body(const P& p) {
  switch (p.scenario) {
    case places: return run_places(p);
    case reduce: return run_reduce(p);
    case gather: return run_gather(p);
    case send: return run_send(p);
    case send_values: return run_send_values(p);
    case ring: return run_ring(p);
    case global_memory: return run_global_memory(p);
    case early_return: return run_early_return(p);
    case mistake: return run_mistake(p);
  }
}
