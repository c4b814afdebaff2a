// FP8 GEMMs with wgmma, for sm_90a. The formula and the operands are those of fp8_gemm.cu; how the work is shared,
// wgmma_gemm.cuh draws.
//
// Tensor cores keep 14 bits of sums, so these leave them every 128 of K, and every 32 where these have a scale: a thread
// has two sets of registers, sums that wgmma makes, and totals that it adds them to in f32. Fast kernels have the sums only.
// Scales that change along K come through the ring, too; stage_scales.cuh tells how.
//
// Where tensor maps cannot describe how the operands lie, threads copy the same tiles: bits do not depend on it.
#pragma once

#include <qp/fp8_gemm.cuh>
#include <qp/ptx/barrier.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/registers.cuh>
#include <qp/stage_scales.cuh>
#include <qp/wgmma_gemm.cuh>

namespace qp {

struct MappedFp8GemmParams {
  ptx::TensorMap act_map, weight_map;  // boxes of copied_rows() and of a tile's rows, 128 bytes of K, swizzled by as many
  Fp8GemmParams gemm;
};

template <class T>
constexpr ptx::MatrixElement fp8_element = same<T, e4m3> ? ptx::MatrixElement::e4m3 : ptx::MatrixElement::e5m2;
template <Scaling S> constexpr int wgmma_interval = scaled_depth<S> / 32;  // instructions between two promotions

// Makes totals of a part of K: promoted, or where they are fast as wgmma leaves them. The thread's sums begin at
// (row, column) of the tile.
template <Scaling S, bool Fast, bool Swapped, class Shape, ptx::MatrixElement A, ptx::MatrixElement B, int columns,
          class Scales>
__device__ inline void make_totals(f32 (&totals)[columns / 2], const Scales* scales,
                                   const Ring<Shape::Stages, Shape::RingCluster>& ring, RingPlace<Shape::Stages>& at,
                                   int parts, const unsigned char* shared, int a, int b, int lane, int row, int column) {
  if constexpr (Fast) {
    static_assert(S == Scaling::whole, "sums that are scaled have left the tensor cores");
    const auto last = multiply_tiles<Shape, A, B, columns>(totals, ring, at, parts, shared, a, b, lane,
                                                           [](const unsigned char*) {});
    ring.release(last, lane);
  } else {
    constexpr bool many = S == Scaling::mx && columns > 64;  // scales: with two sets of sums they fill the registers
    ThreadScales<S, 2, columns / 4, Swapped> own;
    multiply_promoted<Shape, A, B, columns, wgmma_interval<S>, many>(
        ring, at, parts, shared, a, b, lane,
        [&](int stage, int step) {
          if constexpr (staged<S>) {
            own.take(scales[stage], row, column, step / wgmma_interval<S>);
            __syncwarp();  // all lanes have theirs, and the stage may be released
          }
        },
        [&](const f32 (&sums)[columns / 2]) {
#pragma unroll
          for (int i = 0; i < columns / 2; ++i) {
            if constexpr (staged<S>) totals[i] = add(totals[i], multiply(sums[i], own.of(i)));
            else totals[i] = add(totals[i], sums[i]);
          }
        });
  }
}

template <class Act, class Weight, class Out, Activation A, Scaling S, bool Fast, class Shape>
__device__ void fp8_wgmma(const MappedFp8GemmParams& p) {
  constexpr int BM = Shape::BM, BN = Shape::BN, Cluster = Shape::Cluster, Stages = Shape::Stages;
  static_assert(S != Scaling::block || rows_of_a_block % BN == 0, "the columns of a tile share their block scales");
  using Staging = Strip<Out>;
  const Fp8GemmParams& gemm = p.gemm;
  unsigned char* const shared = ptx::shared_memory();
  unsigned char* const staging = shared + Stages * Shape::stage_bytes;
  Columns<f32, BN>& columns = *reinterpret_cast<Columns<f32, BN>*>(staging + Shape::consumers / 32 * Staging::bytes);
  const Ring<Stages, Cluster> ring(&columns + 1);
  const auto scales = reinterpret_cast<StageScales<S, BM, BN>*>(ring.end());
  constexpr int carriers = staged<S> ? 32 : 128;  // of 128 threads, these bring operands, and the others scales

  const int depth = (gemm.k + wgmma_bk - 1) / wgmma_bk;
  const TileWalk<Shape> walk(gemm.m, gemm.n);
  if (threadIdx.x == 0) {
    if (gemm.mapped) ptx::prefetch_tensor_map(&p.act_map), ptx::prefetch_tensor_map(&p.weight_map);
    ring.init(Shape::consumers / 32, 1 + scale_warps<S>);
  }
  const int act_rows = gemm.mapped ? copied_rows<BM>(gemm.m) : BM;
  clear_others<BM, Stages, Shape::stage_bytes>(shared, act_rows);
  meet_relaxed<Cluster>();

  if (threadIdx.x < 128) {
    ptx::setmaxnreg_dec<40>();
    if (staged<S> && threadIdx.x >= carriers) {
      RingPlace<Stages> at;
      walk.through([&](unsigned tile_m, unsigned tile_n) {
        bring_scales(gemm, scales, ring, at, int64(tile_m) * BM, int64(tile_n) * BN, 0, depth, threadIdx.x / 32 - 1,
                     threadIdx.x % 32);
      });
    } else if (!gemm.mapped) {
      carry_tiles<carriers>(gemm, walk, ring, shared, depth);
    } else if (threadIdx.x == 0) {
      copy_tiles(p, walk, ring, shared, depth, act_rows);
    }
    __syncwarp();
  } else {
    ptx::setmaxnreg_inc<232>();
    const int thread = threadIdx.x - 128, group = thread / 128, warp = thread / 32, lane = thread % 32;
    const Staging own(staging + warp * Staging::bytes);
    const f32 scale = output_scale<Out>(gemm);
    RingPlace<Stages> at;
    walk.through([&](unsigned tile_m, unsigned tile_n) {
      const int64 row = int64(tile_m) * BM + warp * 16, column = int64(tile_n) * BN;
      const int rows = left(static_cast<int>(min(gemm.m - row, int64(16))), 16);
      const ColumnFactor<f32> factor = column_factor<f32>(gemm, min(column + thread % BN, gemm.n - 1));
      const RowFactor<f32> row_factors[2] = {row_factor<f32, false>(gemm, min(row + lane / 4, gemm.m - 1)),
                                             row_factor<f32, false>(gemm, min(row + lane / 4 + 8, gemm.m - 1))};
      f32 totals[BN / 2] = {};
      make_totals<S, Fast, false, Shape, fp8_element<Act>, fp8_element<Weight>, BN>(
          totals, scales, ring, at, depth, shared, group * (64 * wgmma_bk), Shape::act_bytes, lane, warp * 16 + lane / 4,
          lane % 4 * 2);

      ptx::bar_sync(1, Shape::consumers);  // all are done with the columns of the tile before
      if (thread < BN) columns.weight_scale[thread] = factor.weight_scale, columns.bias[thread] = factor.bias;
      ptx::bar_sync(1, Shape::consumers);
      store_tile<Out, BN>(
          own, gemm, row, rows, column, lane,
          [&](int at) {
            return Columns<f32, 2>{{columns.weight_scale[at], columns.weight_scale[at + 1]},
                                   {columns.bias[at], columns.bias[at + 1]}};
          },
          [&](int i, int half, int n, const Columns<f32, 2>& two) {
            return output_of<Out, A>(totals[i], row_factors[half], ColumnFactor<f32>{two.weight_scale[n], two.bias[n]},
                                     scale);
          });
    });
  }
  if constexpr (Cluster > 1) meet<Cluster>();  // the others fill this block's ring, and release it, until then
}

template <class Act, class Weight, class Out, Activation A, Scaling S, bool Fast, class Shape>
__device__ void fp8_wgmma_swapped(const MappedFp8GemmParams& p) {
  constexpr int BN = Shape::BN, Tokens = Shape::Tokens, Cluster = Shape::Cluster, Stages = Shape::Stages;
  const Fp8GemmParams& gemm = p.gemm;
  unsigned char* const shared = ptx::shared_memory();
  f32 (*const sums_of)[Shape::pitch] = reinterpret_cast<f32 (*)[Shape::pitch]>(shared + Stages * Shape::stage_bytes);
  const Ring<Stages> ring(&sums_of[Tokens][0]);
  const auto scales = reinterpret_cast<StageScales<S, Tokens, BN>*>(ring.end());

  const int64 column = int64(blockIdx.x / Cluster) * BN;
  const ShareOfK<Shape> k((gemm.k + wgmma_bk - 1) / wgmma_bk);
  if (threadIdx.x == 0) {
    if (gemm.mapped) ptx::prefetch_tensor_map(&p.weight_map), ptx::prefetch_tensor_map(&p.act_map);
    ring.init(Shape::consumers / 32, 1 + scale_warps<S>);
  }
  const int act_rows = gemm.mapped ? copied_rows<Tokens>(gemm.m) : Tokens;
  clear_others<Tokens, Stages, Shape::stage_bytes>(shared + Shape::weight_bytes, act_rows);
  __syncthreads();  // the ring is the block's own

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int64 row = k.rank * Shape::share;
  const int rows =
      thread < Shape::consumers ? left(static_cast<int>(min(gemm.m - row, int64(Shape::share))), Shape::share) : 0;
  TileFinisher<Out, A, false, BN, Shape::consumers, Fp8GemmParams> finisher(gemm, row, rows, column, thread);

  if (thread >= Shape::consumers) {
    const int producer = warp - Shape::consumers / 32;
    if (staged<S> && producer > 0) {
      RingPlace<Stages> at;
      bring_scales(gemm, scales, ring, at, 0, column, k.first, k.last, producer - 1, lane);
    } else if (!gemm.mapped) {
      carry_share(gemm, k, ring, shared, column, lane);
    } else if (lane == 0) {
      copy_share(p, k, ring, shared, column, act_rows);
    }
    __syncwarp();
  } else {
    f32 totals[Tokens / 2] = {};
    RingPlace<Stages> at;
    make_totals<S, Fast, true, Shape, fp8_element<Weight>, fp8_element<Act>, Tokens>(
        totals, scales, ring, at, k.last - k.first, shared, 0, Shape::weight_bytes, lane, lane % 4 * 2,
        warp * 16 + lane / 4);
    leave_swapped<Shape>(sums_of, totals, warp, lane);
  }

  meet<Cluster>();  // from here to the second barrier, the blocks of a cluster have each other's sums
  finisher.finish([&](int i, int j) { return add_up<f32, Cluster, sums_at_once<Out>>(&sums_of[row + i][j]); },
                  [](int) { return 0; });
  if constexpr (Cluster > 1) meet<Cluster>();  // nobody returns whose sums are still read
}

}  // namespace qp
