// sum[m] = Σ x[m, k] of bytes, with boxes of x and K split over a cluster: what a matrix multiplication does, without it.
//
//   block 0   columns    0 … 127 │ 256 … 383 │ …  ─▶ partial sums ─┐ in its shared memory
//   block 1   columns  128 … 255 │ 384 … 511 │ …  ─▶ partial sums ─┴▶ block 0 adds them in the order of ranks
#include <qp/ptx/cluster.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/mbarrier.cuh>
#include <qp/ptx/tensor_map.cuh>

namespace qp {

struct SplitSumsParams {
  ptx::TensorMap x_map;
  int* sum;
  long long m, k;
};

constexpr int tile_rows = 16, tile_columns = 128;

template <int cluster>
__device__ void split_sums(const SplitSumsParams& p) {
  unsigned char* tile = ptx::shared_memory();
  int* partial = reinterpret_cast<int*>(tile + tile_rows * tile_columns);
  unsigned long long* full = reinterpret_cast<unsigned long long*>(partial + tile_rows);
  const unsigned t = threadIdx.x, rank = ptx::cluster_rank();
  const int row = static_cast<int>(blockIdx.x / cluster) * tile_rows;
  if (t == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  int sum = 0;
  unsigned phase = 0;
  for (int column = static_cast<int>(rank) * tile_columns; column < p.k; column += cluster * tile_columns) {
    if (t == 0) {
      ptx::mbarrier_arrive_expect_tx(full, tile_rows * tile_columns);
      ptx::cp_async_bulk_tensor_load_2d(tile, &p.x_map, column, row, full);
    }
    while (!ptx::mbarrier_try_wait_parity(full, phase)) {}
    phase ^= 1;
    if (t < tile_rows)
      for (int c = 0; c < tile_columns; ++c) {
        const unsigned at = t * tile_columns + static_cast<unsigned>(c);
        sum += static_cast<signed char>(tile[at ^ (at >> 3 & 0x70)]);
      }
    __syncthreads();
  }
  if (t < tile_rows) partial[t] = sum;
  ptx::cluster_arrive();
  ptx::cluster_wait();
  if (rank == 0 && t < tile_rows && row + t < p.m) {
    int all = 0;
    for (unsigned r = 0; r < cluster; ++r) all += static_cast<int>(ptx::load_cluster_4(ptx::mapa(&partial[t], r)));
    p.sum[row + t] = all;
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

}  // namespace qp
