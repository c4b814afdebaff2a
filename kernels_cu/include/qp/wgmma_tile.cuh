// What GEMMs with wgmma share: tiles in shared memory, 128 bytes of K deep, and how sums leave registers.
#pragma once

#include <qp/epilogue.cuh>
#include <qp/ptx/address.cuh>
#include <qp/ptx/bulk.cuh>
#include <qp/ptx/cluster.cuh>
#include <qp/ptx/wgmma.cuh>

namespace qp {

constexpr int wgmma_bk = 128;  // bytes of K in a tile: a line of the swizzle
constexpr int wgmma_steps = 4;  // instructions along them
constexpr int wgmma_stride = 1024;  // from 8 rows of a tile to the next

__device__ inline ptx::MatrixDescriptor describe_tile(const void* tile) {
  return ptx::describe_matrix(ptx::shared_address(tile), ptx::Swizzle::b128, wgmma_stride);
}

// Rows of a tile of activations that are copied: a copy spends as much time on rows beyond the last one as on others.
template <int Rows>
__device__ inline int copied_rows(int64 m) {
  return static_cast<int>(min(int64(Rows), (m + 7) / 8 * 8));
}

// Clears the rows that no copy fills, in all stages; what they are multiplied to is stored nowhere. By all threads.
template <int Rows, int Stages, int stage_bytes>
__device__ inline void clear_others(unsigned char* tile, int copied) {
  const int bytes = (Rows - copied) * wgmma_bk;
  if (bytes == 0) return;
  for (int stage = 0; stage < Stages; ++stage)
    for (int at = threadIdx.x * 16; at < bytes; at += blockDim.x * 16)
      *reinterpret_cast<uint4*>(tile + stage * stage_bytes + copied * wgmma_bk + at) = uint4{};
  ptx::fence_proxy_async_shared();
  __syncthreads();  // the cluster's relaxed barrier would order none of it
}

// A barrier of the block, or of the cluster, that publishes mbarriers and nothing else, and waits for no stores.
template <int Cluster>
__device__ inline void meet_relaxed() {
  if constexpr (Cluster == 1) {
    __syncthreads();
  } else {
    ptx::cluster_arrive_relaxed();
    ptx::cluster_wait();
  }
}

// A barrier of the block, or of the cluster, behind which everybody sees what was written to shared memory.
template <int Cluster>
__device__ inline void meet() {
  if constexpr (Cluster == 1) {
    __syncthreads();
  } else {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

// Loads 4-byte numbers from where they are in the shared memory of one of the cluster's blocks.
template <int Cluster, int count, class T>
__device__ inline Vec<T, count> load_from(const T* shared, int rank) {
  static_assert(sizeof(T) == 4, "numbers of 4 bytes");
  if constexpr (Cluster == 1) {
    return *reinterpret_cast<const Vec<T, count>*>(shared);
  } else {
    const unsigned address = ptx::mapa(shared, rank);
    if constexpr (count == 4) return reinterpret<Vec<T, 4>>(ptx::load_cluster_16(address));
    Vec<unsigned, count> numbers;
#pragma unroll
    for (int i = 0; i < count; ++i) numbers.item[i] = ptx::load_cluster_4(address + 4 * i);
    return reinterpret<Vec<T, count>>(numbers);
  }
}

// Adds up, in the order of rank, what the cluster's blocks have at one place of their shared memory.
template <class Sum, int Cluster, int count, class T>
__device__ inline Vec<Sum, count> add_up(const T* shared) {
  Vec<Sum, count> sum = {};
#pragma unroll
  for (int from = 0; from < Cluster; ++from) {
    const Vec<T, count> some = load_from<Cluster, count>(shared, from);
#pragma unroll
    for (int n = 0; n < count; ++n) sum.item[n] = add(sum.item[n], static_cast<Sum>(some.item[n]));
  }
  return sum;
}

// A warp's outputs, 16 rows of 128 bytes: it makes them where wgmma leaves sums, and stores whole lines.
template <class Out>
struct Strip {
  static constexpr int columns = 128 / sizeof(Out), pitch = columns + 16 / sizeof(Out), bytes = 16 * pitch * sizeof(Out);
  static constexpr int V = outputs_at_once<Out>, across = columns / V;

  Out (*const rows)[pitch];

  __device__ explicit Strip(void* shared) : rows(static_cast<Out (*)[pitch]>(shared)) {}

  __device__ void put(int row, int column, const Vec<Out, 2>& two) const {
    *reinterpret_cast<Vec<Out, 2>*>(&rows[row][column]) = two;
  }
  // Stores the rows that exist of up to `wide` columns that begin at (row, column).
  template <class Params>
  __device__ void store(const Params& p, int64 row, int count, int64 column, int wide, int lane) const {
    const int first = lane % across * V, width = left(static_cast<int>(min(p.n - column, int64(wide))) - first, V);
    if (width == 0) return;
#pragma unroll
    for (int i = lane / across; i < 16; i += 32 / across)
      if (i < count)
        store_outputs<Out>(p, row + i, column + first, *reinterpret_cast<const Vec<Out, V>*>(&rows[i][first]), width);
  }
};

}  // namespace qp
