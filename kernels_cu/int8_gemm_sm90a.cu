// W8A8 linears with wgmma, for sm_90a. The formula and the operands are those of int8_gemm.cu, which runs in place of
// these kernels where tensor maps cannot describe how the operands lie.
//
// One warp copies tiles of both operands, 128 bytes of K deep, through a ring; four or eight warps multiply them:
//
//   many rows: int8_wgmma                                few rows: int8_wgmma_swapped
//
//                 weight_q, BN rows                                      act_q, Tokens rows
//                ┌──────────────────┐                                   ┌────┐
//         act_q  │                  │                        weight_q   │    │
//        ┌────┐  ├──────────────────┤                        ┌────┐     ├────┤
//        │ 64 │  │ warp group 1     │  a block goes from     │ 64 │     │    │  the blocks of a cluster share K, and
//        │ 64 │  │ warp group 2     │  tile to tile          └────┘     └────┘  add their sums up in the order of rank
//        └────┘  └──────────────────┘
//
// With few rows the weight is what is read, and its rows become those of the instruction, which has 64, so that there
// need be no more activations than there are. Parts of K are a function of N and K alone.
#pragma once

#include <int8_gemm.cu>
#include <qp/pipeline.cuh>
#include <qp/ptx/barrier.cuh>
#include <qp/ptx/registers.cuh>
#include <qp/ptx/tensor_map.cuh>
#include <qp/ptx/wgmma.cuh>
#include <qp/wgmma_tile.cuh>

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

// ---- many rows

// The blocks of a cluster work on tiles one below the other at the same time: each loads its part of the weight's tile,
// for all of them, and its own activations.
template <int Columns, int Blocks, int Depth>
struct WgmmaShape {
  static constexpr int BM = 128, BN = Columns, Cluster = Blocks, Stages = Depth;
  static constexpr int consumers = 256, threads = 128 + consumers;
  static constexpr int act_bytes = BM * wgmma_bk, stage_bytes = act_bytes + BN * wgmma_bk;
};

// What the columns of a tile give to its outputs.
template <class W, int BN>
struct Columns {
  W weight_scale[BN], bias[BN];
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
  constexpr int together = BM * Cluster;  // rows of a cluster
  const unsigned tiles_m = static_cast<unsigned>((linear.m + together - 1) / together);
  const unsigned tiles_n = static_cast<unsigned>((linear.n + BN - 1) / BN);
  const unsigned rank = blockIdx.x % Cluster, first = blockIdx.x / Cluster, clusters = gridDim.x / Cluster;
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&p.act_map);
    ptx::prefetch_tensor_map(&p.weight_map);
    ring.init(Shape::consumers / 32);
  }
  const int act_rows = copied_rows<BM>(linear.m);
  clear_others<BM, Stages, Shape::stage_bytes>(shared, act_rows);
  meet_relaxed<Cluster>();

  RingPlace<Stages> at;
  if (threadIdx.x < 128) {
    ptx::setmaxnreg_dec<40>();
    if (threadIdx.x == 0) {
      for (unsigned tile = first; tile < tiles_m * tiles_n; tile += clusters) {
        const Place2d place = raster(tile, tiles_m, tiles_n);
        const int act_row = (place.m * Cluster + rank) * BM, weight_row = place.n * BN + rank * (BN / Cluster);
        for (int part = 0; part < depth; ++part, at.advance()) {
          unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
          unsigned long long* const full = &ring.full[at.stage];
          ring.wait_empty(at);
          ring.announce(at, (act_rows + BN) * wgmma_bk);
          ptx::cp_async_bulk_tensor_load_2d(stage, &p.act_map, part * wgmma_bk, act_row, full);
          unsigned char* const weight = stage + Shape::act_bytes + rank * (BN / Cluster * wgmma_bk);
          if constexpr (Cluster == 1)
            ptx::cp_async_bulk_tensor_load_2d(weight, &p.weight_map, part * wgmma_bk, weight_row, full);
          else
            ptx::cp_async_bulk_tensor_load_2d_multicast(weight, &p.weight_map, part * wgmma_bk, weight_row, full,
                                                        (1 << Cluster) - 1);
        }
      }
    }
    __syncwarp();
  } else {
    ptx::setmaxnreg_inc<232>();
    const int thread = threadIdx.x - 128, group = thread / 128, warp = thread / 32, lane = thread % 32;
    const Staging own(staging + warp * Staging::bytes);
    const f32 scale = output_scale<Out>(linear);
    for (unsigned tile = first; tile < tiles_m * tiles_n; tile += clusters) {
      const Place2d place = raster(tile, tiles_m, tiles_n);
      const int64 row = (int64(place.m) * Cluster + rank) * BM + warp * 16, column = int64(place.n) * BN;
      const int rows = left(static_cast<int>(min(linear.m - row, int64(16))), 16);
      const ColumnFactor<W> factor = column_factor<W>(linear, min(column + thread % BN, linear.n - 1));
      const RowFactor<W> row_factors[2] = {row_factor<W, ZeroPoint>(linear, min(row + lane / 4, linear.m - 1)),
                                           row_factor<W, ZeroPoint>(linear, min(row + lane / 4 + 8, linear.m - 1))};
      int sums[BN / 2] = {};
      int weight_sum = 0;
      RingPlace<Stages> before = at;
      for (int part = 0; part < depth; ++part, at.advance()) {
        const unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
        const ptx::MatrixDescriptor act = describe_tile(stage + group * (64 * wgmma_bk));
        const ptx::MatrixDescriptor weight = describe_tile(stage + Shape::act_bytes);
        ring.wait_full(at);
        ptx::wgmma_fence_operand(sums);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < wgmma_steps; ++step)
          ptx::wgmma<matrix_element<Act>, ptx::MatrixElement::s8, BN>(sums, act.advanced(32 * step),
                                                                      weight.advanced(32 * step), true);
        ptx::wgmma_commit_group();
        if constexpr (ZeroPoint) {
          constexpr int chunks = 8 * BN / Shape::consumers;
          weight_sum = add_row(stage + Shape::act_bytes, thread % BN, thread / BN * chunks, chunks, weight_sum);
          __syncwarp();
        }
        if (part > 0) {  // this part's instructions are under way; those of the one before must be over
          ptx::wgmma_wait_group<1>();
          ring.release(before, lane);
          before.advance();
        }
      }
      ptx::wgmma_wait_group<0>();
      ptx::wgmma_fence_operand(sums);
      ring.release(before, lane);

      ptx::bar_sync(1, Shape::consumers);  // all are done with the columns of the tile before
      if (thread < BN) columns.weight_scale[thread] = factor.weight_scale, columns.bias[thread] = factor.bias;
      if constexpr (ZeroPoint) weight_sums[thread] = weight_sum;
      ptx::bar_sync(1, Shape::consumers);
#pragma unroll
      for (int from = 0; from < BN; from += Staging::columns) {
        __syncwarp();
#pragma unroll
        for (int j = from; j < from + Staging::columns; j += 8) {
          const int at = j + lane % 4 * 2;
          const auto weight_scale = *reinterpret_cast<const Vec<W, 2>*>(&columns.weight_scale[at]);
          const auto bias = *reinterpret_cast<const Vec<W, 2>*>(&columns.bias[at]);
          Vec<int, 2> weight = {};
          if constexpr (ZeroPoint) {
#pragma unroll
            for (int part = 0; part < Shape::consumers; part += BN) {
              const auto some = *reinterpret_cast<const Vec<int, 2>*>(&weight_sums[part + at]);
              weight.item[0] += some.item[0], weight.item[1] += some.item[1];
            }
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            Vec<Out, 2> two;
#pragma unroll
            for (int n = 0; n < 2; ++n)
              two.item[n] = output_of<Out, A>(sums[j / 2 + 2 * half + n], weight.item[n], row_factors[half],
                                              ColumnFactor<W>{weight_scale.item[n], bias.item[n]}, scale);
            own.put(lane / 4 + 8 * half, at - from, two);
          }
        }
        __syncwarp();
        own.store(linear, row, rows, column + from, lane);
      }
    }
  }
  if constexpr (Cluster > 1) meet<Cluster>();  // the others fill this block's ring, and release it, until then
}

// ---- few rows

template <int Rows, int Blocks, int Depth>
struct SwappedShape {
  static constexpr int BN = 64, Tokens = Rows, Cluster = Blocks, Stages = Depth;
  static constexpr int consumers = 128, threads = consumers + 32;
  static constexpr int weight_bytes = BN * wgmma_bk, stage_bytes = weight_bytes + Tokens * wgmma_bk;
  static constexpr int pitch = BN + 4;  // a lane's sums are in one column: its neighbours' go to other banks
  static_assert(Tokens % Cluster == 0, "each block finishes as many tokens");
};

template <class Act, class Out, Activation A, bool ZeroPoint, class Shape>
__device__ void int8_wgmma_swapped(const MappedLinearParams& p) {
  constexpr int BN = Shape::BN, Tokens = Shape::Tokens, Cluster = Shape::Cluster, Stages = Shape::Stages;
  const LinearParams& linear = p.linear;
  unsigned char* const shared = ptx::shared_memory();
  int (*const sums_of)[Shape::pitch] = reinterpret_cast<int (*)[Shape::pitch]>(shared + Stages * Shape::stage_bytes);
  int* const weight_sums = &sums_of[Tokens][0];  // one a consumer: two for each row of the weight
  const Ring<Stages> ring(weight_sums + Shape::consumers);

  const int rank = blockIdx.x % Cluster;
  const int64 column = int64(blockIdx.x / Cluster) * BN;
  const int depth = (linear.k + wgmma_bk - 1) / wgmma_bk;
  const int first = depth * rank / Cluster, last = depth * (rank + 1) / Cluster;
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&p.weight_map);
    ptx::prefetch_tensor_map(&p.act_map);
    ring.init(Shape::consumers / 32);
  }
  const int act_rows = copied_rows<Tokens>(linear.m);
  clear_others<Tokens, Stages, Shape::stage_bytes>(shared + Shape::weight_bytes, act_rows);
  __syncthreads();  // the ring is the block's own

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  constexpr int share = Tokens / Cluster;  // tokens that this block finishes
  const int64 row = rank * share;
  const int rows = thread < Shape::consumers ? left(static_cast<int>(min(linear.m - row, int64(share))), share) : 0;
  TileFinisher<Out, A, ZeroPoint, BN, Shape::consumers> finisher(linear, row, rows, column, thread);

  RingPlace<Stages> at;
  if (thread >= Shape::consumers) {
    if (lane == 0) {
      for (int part = first; part < last; ++part, at.advance()) {
        unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
        unsigned long long* const full = &ring.full[at.stage];
        ring.wait_empty(at);
        ring.announce(at, (BN + act_rows) * wgmma_bk);
        ptx::cp_async_bulk_tensor_load_2d(stage, &p.weight_map, part * wgmma_bk, static_cast<int>(column), full);
        ptx::cp_async_bulk_tensor_load_2d(stage + Shape::weight_bytes, &p.act_map, part * wgmma_bk, 0, full);
      }
    }
    __syncwarp();
  } else {
    int sums[Tokens / 2] = {};
    int weight_sum = 0;
    RingPlace<Stages> before = at;
    for (int part = first; part < last; ++part, at.advance()) {
      const unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
      const ptx::MatrixDescriptor weight = describe_tile(stage), act = describe_tile(stage + Shape::weight_bytes);
      ring.wait_full(at);
      ptx::wgmma_fence_operand(sums);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < wgmma_steps; ++step)
        ptx::wgmma<ptx::MatrixElement::s8, matrix_element<Act>, Tokens>(sums, weight.advanced(32 * step),
                                                                        act.advanced(32 * step), true);
      ptx::wgmma_commit_group();
      if constexpr (ZeroPoint) {
        weight_sum = add_row(stage, thread % BN, thread / BN * 4, 4, weight_sum);
        __syncwarp();
      }
      if (part > first) {
        ptx::wgmma_wait_group<1>();
        ring.release(before, lane);
        before.advance();
      }
    }
    ptx::wgmma_wait_group<0>();
    ptx::wgmma_fence_operand(sums);
#pragma unroll
    for (int i = 0; i < Tokens / 2; ++i)
      sums_of[8 * (i / 4) + 2 * (lane % 4) + i % 2][16 * warp + lane / 4 + 8 * (i / 2 % 2)] = sums[i];
    weight_sums[thread] = weight_sum;
  }

  meet<Cluster>();  // from here to the second barrier, the blocks of a cluster have each other's sums
  constexpr int count = sums_at_once<Out>;
  finisher.finish(
      [&](int i, int j) {
        Vec<unsigned, count> sum = {};
#pragma unroll
        for (int from = 0; from < Cluster; ++from) {
          const Vec<int, count> some = load_from<Cluster, count>(&sums_of[row + i][j], from);
#pragma unroll
          for (int n = 0; n < count; ++n) sum.item[n] += some.item[n];
        }
        return sum;
      },
      [&](int j) {
        unsigned sum = 0;
        for (int from = 0; from < Cluster; ++from)
          sum += load_from<Cluster, 1>(&weight_sums[j], from).item[0] +
                 load_from<Cluster, 1>(&weight_sums[j + BN], from).item[0];
        return sum;
      });
  if constexpr (Cluster > 1) meet<Cluster>();  // nobody returns whose sums are still read
}

}  // namespace qp
