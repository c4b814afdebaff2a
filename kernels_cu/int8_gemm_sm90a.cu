// W8A8 linears with wgmma, for sm_90a. The formula and the operands are those of int8_gemm.cu, which runs in place of
// these kernels where tensor maps cannot describe how the operands lie; how the work is shared, wgmma_gemm.cuh draws.
#pragma once

#include <int8_gemm.cu>
#include <qp/ptx/barrier.cuh>
#include <qp/ptx/registers.cuh>
#include <qp/wgmma_gemm.cuh>

namespace qp {

struct MappedLinearParams {
  ptx::TensorMap act_map, weight_map;  // boxes of copied_rows() and of a tile's rows, 128 bytes of K, swizzled by as many
  LinearParams linear;
};

template <class Act>
constexpr ptx::MatrixElement matrix_element = same<Act, u8> ? ptx::MatrixElement::u8 : ptx::MatrixElement::s8;

// Adds up `chunks` chunks of a tile's row from `first` on. The swizzle moves them about within the row, which does not
// change their sum; neighbouring threads, which have neighbouring rows, begin with different ones, in different banks.
__device__ inline int add_row(const unsigned char* tile, int row, int first, int chunks, int sum) {
  for (int i = 0; i < chunks; ++i) {
    const int chunk = first + (row + i) % chunks;
    const uint4 bytes = *reinterpret_cast<const uint4*>(tile + row * wgmma_bk + chunk * 16);
    sum = add_bytes(bytes.x, add_bytes(bytes.y, add_bytes(bytes.z, add_bytes(bytes.w, sum))));
  }
  return sum;
}

// What two neighbouring columns give to their outputs.
template <class W>
struct TwoColumns {
  Vec<W, 2> weight_scale, bias;
  Vec<int, 2> weight;
};

template <class Act, class Out, Activation A, bool ZeroPoint, class Shape>
__device__ void int8_wgmma(const MappedLinearParams& p) {
  constexpr int BM = Shape::BM, BN = Shape::BN, Cluster = Shape::Cluster, Stages = Shape::Stages;
  using W = wide<Out>;
  using Staging = Strip<Out>;
  const LinearParams& linear = p.linear;
  unsigned char* const shared = ptx::shared_memory();
  unsigned char* const staging = shared + Stages * Shape::stage_bytes;
  Columns<W, BN>& columns = *reinterpret_cast<Columns<W, BN>*>(staging + Shape::consumers / 32 * Staging::bytes);
  int* const weight_sums = reinterpret_cast<int*>(&columns + 1);  // one a consumer
  const Ring<Stages, Cluster> ring(weight_sums + Shape::consumers);

  const int depth = (linear.k + wgmma_bk - 1) / wgmma_bk;
  const TileWalk<Shape> walk(linear.m, linear.n);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&p.act_map);
    ptx::prefetch_tensor_map(&p.weight_map);
    ring.init(Shape::consumers / 32);
  }
  const int act_rows = copied_rows<BM>(linear.m);
  clear_others<BM, Stages, Shape::stage_bytes>(shared, act_rows);
  meet_relaxed<Cluster>();

  if (threadIdx.x < 128) {
    ptx::setmaxnreg_dec<40>();
    if (threadIdx.x == 0) copy_tiles(p, walk, ring, shared, depth, act_rows);
    __syncwarp();
  } else {
    ptx::setmaxnreg_inc<232>();
    const int thread = threadIdx.x - 128, group = thread / 128, warp = thread / 32, lane = thread % 32;
    const Staging own(staging + warp * Staging::bytes);
    const f32 scale = output_scale<Out>(linear);
    RingPlace<Stages> at;
    walk.through([&](unsigned tile_m, unsigned tile_n) {
      const int64 row = int64(tile_m) * BM + warp * 16, column = int64(tile_n) * BN;
      const int rows = left(static_cast<int>(min(linear.m - row, int64(16))), 16);
      const ColumnFactor<W> factor = column_factor<W>(linear, min(column + thread % BN, linear.n - 1));
      const RowFactor<W> row_factors[2] = {row_factor<W, ZeroPoint>(linear, min(row + lane / 4, linear.m - 1)),
                                           row_factor<W, ZeroPoint>(linear, min(row + lane / 4 + 8, linear.m - 1))};
      int sums[BN / 2] = {};
      int weight_sum = 0;
      const RingPlace<Stages> last = multiply_tiles<Shape, matrix_element<Act>, ptx::MatrixElement::s8, BN>(
          sums, ring, at, depth, shared, group * (64 * wgmma_bk), Shape::act_bytes, lane, [&](const unsigned char* stage) {
            if constexpr (ZeroPoint) {
              constexpr int chunks = 8 * BN / Shape::consumers;
              weight_sum = add_row(stage + Shape::act_bytes, thread % BN, thread / BN * chunks, chunks, weight_sum);
              __syncwarp();
            }
          });
      ring.release(last, lane);

      ptx::bar_sync(1, Shape::consumers);  // all are done with the columns of the tile before
      if (thread < BN) columns.weight_scale[thread] = factor.weight_scale, columns.bias[thread] = factor.bias;
      if constexpr (ZeroPoint) weight_sums[thread] = weight_sum;
      ptx::bar_sync(1, Shape::consumers);
      store_tile<Out, BN>(
          own, linear, row, rows, column, lane,
          [&](int at) {
            TwoColumns<W> two = {*reinterpret_cast<const Vec<W, 2>*>(&columns.weight_scale[at]),
                                 *reinterpret_cast<const Vec<W, 2>*>(&columns.bias[at])};
            if constexpr (ZeroPoint) {
#pragma unroll
              for (int part = 0; part < Shape::consumers; part += BN) {
                const auto some = *reinterpret_cast<const Vec<int, 2>*>(&weight_sums[part + at]);
                two.weight.item[0] += some.item[0], two.weight.item[1] += some.item[1];
              }
            }
            return two;
          },
          [&](int i, int half, int n, const TwoColumns<W>& two) {
            return output_of<Out, A>(static_cast<unsigned>(sums[i]), two.weight.item[n], row_factors[half],
                                     ColumnFactor<W>{two.weight_scale.item[n], two.bias.item[n]}, scale);
          });
    });
  }
  if constexpr (Cluster > 1) meet<Cluster>();  // the others fill this block's ring, and release it, until then
}

template <class Act, class Out, Activation A, bool ZeroPoint, class Shape>
__device__ void int8_wgmma_swapped(const MappedLinearParams& p) {
  constexpr int BN = Shape::BN, Tokens = Shape::Tokens, Cluster = Shape::Cluster, Stages = Shape::Stages;
  const LinearParams& linear = p.linear;
  unsigned char* const shared = ptx::shared_memory();
  int (*const sums_of)[Shape::pitch] = reinterpret_cast<int (*)[Shape::pitch]>(shared + Stages * Shape::stage_bytes);
  int* const weight_sums = &sums_of[Tokens][0];  // one a consumer: two for each row of the weight
  const Ring<Stages> ring(weight_sums + Shape::consumers);

  const int64 column = int64(blockIdx.x / Cluster) * BN;
  const ShareOfK<Shape> k((linear.k + wgmma_bk - 1) / wgmma_bk);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&p.weight_map);
    ptx::prefetch_tensor_map(&p.act_map);
    ring.init(Shape::consumers / 32);
  }
  const int act_rows = copied_rows<Tokens>(linear.m);
  clear_others<Tokens, Stages, Shape::stage_bytes>(shared + Shape::weight_bytes, act_rows);
  __syncthreads();  // the ring is the block's own

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int64 row = k.rank * Shape::share;
  const int rows =
      thread < Shape::consumers ? left(static_cast<int>(min(linear.m - row, int64(Shape::share))), Shape::share) : 0;
  TileFinisher<Out, A, ZeroPoint, BN, Shape::consumers> finisher(linear, row, rows, column, thread);

  if (thread >= Shape::consumers) {
    if (lane == 0) copy_share(p, k, ring, shared, column, act_rows);
    __syncwarp();
  } else {
    int sums[Tokens / 2] = {};
    int weight_sum = 0;
    RingPlace<Stages> at;
    multiply_tiles<Shape, ptx::MatrixElement::s8, matrix_element<Act>, Tokens>(
        sums, ring, at, k.last - k.first, shared, 0, Shape::weight_bytes, lane, [&](const unsigned char* stage) {
          if constexpr (ZeroPoint) {
            weight_sum = add_row(stage, thread % BN, thread / BN * 4, 4, weight_sum);
            __syncwarp();
          }
        });
    leave_swapped<Shape>(sums_of, sums, warp, lane);
    weight_sums[thread] = weight_sum;
  }

  meet<Cluster>();  // from here to the second barrier, the blocks of a cluster have each other's sums
  finisher.finish(
      [&](int i, int j) { return add_up<unsigned, Cluster, sums_at_once<Out>>(&sums_of[row + i][j]); },
      [&](int j) {
        return add_up<unsigned, Cluster, 1>(&weight_sums[j]).item[0] +
               add_up<unsigned, Cluster, 1>(&weight_sums[j + BN]).item[0];
      });
  if constexpr (Cluster > 1) meet<Cluster>();  // nobody returns whose sums are still read
}

}  // namespace qp
