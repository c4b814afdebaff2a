// What GEMMs with wgmma share: the ways of the warps that copy and of those that multiply.
//
// One warp copies tiles of both operands, 128 bytes of K deep, through a ring; four or eight warps multiply them:
//
//   many rows: WgmmaShape                                  few rows: SwappedShape
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

#include <qp/pipeline.cuh>
#include <qp/ptx/barrier.cuh>
#include <qp/ptx/tensor_map.cuh>
#include <qp/tile.cuh>
#include <qp/wgmma_tile.cuh>

namespace qp {

// ---- many rows

// The blocks of a cluster work on tiles one below the other at the same time: each loads its part of the weight's tile,
// for all of them, and its own activations.
template <int Columns, int Blocks, int Depth>
struct WgmmaShape {
  static constexpr int BM = 128, BN = Columns, Cluster = Blocks, Stages = Depth;
  static constexpr int RingCluster = Cluster;  // blocks that fill a ring
  static constexpr int consumers = 256;
  static constexpr int act_bytes = BM * wgmma_bk, stage_bytes = act_bytes + BN * wgmma_bk;
};

// What the columns of a tile give to its outputs.
template <class W, int BN>
struct Columns {
  W weight_scale[BN], bias[BN];
};

// The tiles that a block goes through, together with the others of its cluster.
template <class Shape>
struct TileWalk {
  static constexpr int together = Shape::BM * Shape::Cluster;  // rows of a cluster
  const unsigned tiles_m, tiles_n, rank, first, clusters;

  __device__ TileWalk(int64 m, int64 n)
      : tiles_m(static_cast<unsigned>((m + together - 1) / together)),
        tiles_n(static_cast<unsigned>((n + Shape::BN - 1) / Shape::BN)),
        rank(blockIdx.x % Shape::Cluster),
        first(blockIdx.x / Shape::Cluster),
        clusters(gridDim.x / Shape::Cluster) {}

  // Calls `each(tile's number in its rows of tiles, and in its columns)`.
  template <class Each>
  __device__ void through(const Each& each) const {
    for (unsigned tile = first; tile < tiles_m * tiles_n; tile += clusters) {
      const Place2d place = raster(tile, tiles_m, tiles_n);
      each(place.m * Shape::Cluster + rank, place.n);
    }
  }
};

// Fills the ring with all that a block multiplies. By one thread.
template <class Shape, class Params>
__device__ inline void copy_tiles(const Params& p, const TileWalk<Shape>& walk,
                                  const Ring<Shape::Stages, Shape::Cluster>& ring, unsigned char* shared, int depth,
                                  int act_rows) {
  constexpr int BN = Shape::BN, Cluster = Shape::Cluster;
  RingPlace<Shape::Stages> at;
  walk.through([&](unsigned tile_m, unsigned tile_n) {
    const int act_row = tile_m * Shape::BM, weight_row = tile_n * BN + walk.rank * (BN / Cluster);
    for (int part = 0; part < depth; ++part, at.advance()) {
      unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
      unsigned long long* const full = &ring.full[at.stage];
      ring.wait_empty(at);
      ring.announce(at, (act_rows + BN) * wgmma_bk);
      ptx::cp_async_bulk_tensor_load_2d(stage, &p.act_map, part * wgmma_bk, act_row, full);
      unsigned char* const weight = stage + Shape::act_bytes + walk.rank * (BN / Cluster * wgmma_bk);
      if constexpr (Cluster == 1)
        ptx::cp_async_bulk_tensor_load_2d(weight, &p.weight_map, part * wgmma_bk, weight_row, full);
      else
        ptx::cp_async_bulk_tensor_load_2d_multicast(weight, &p.weight_map, part * wgmma_bk, weight_row, full,
                                                    (1 << Cluster) - 1);
    }
  });
}

// Copies a tile from (row, k) of a matrix of rows of `length` bytes as a tensor map would: what lies outside becomes zero.
// By `threads` threads, one of which has yet to tell the consumers, when all are done.
template <int Rows>
__device__ inline void carry_tile(unsigned char* tile, const void* matrix, int64 stride, int64 row, int64 rows, int k,
                                  int length, int thread, int threads) {
  using Layout = TileLayout<Rows, wgmma_bk>;  // which is the swizzle
  for (int i = thread; i < Rows * Layout::chunks; i += threads) {
    const int from = i / Layout::chunks, chunk = i % Layout::chunks;
    const int bytes = row + from < rows ? left(length - k - chunk * 16, 16) : 0;
    const unsigned char* const source = static_cast<const unsigned char*>(matrix) + (row + from) * stride + k + chunk * 16;
    Vec<u8, 16> piece = {};
#pragma unroll
    for (int j = 0; j < 16; ++j)
      if (j < bytes) piece.item[j] = source[j];
    *reinterpret_cast<Vec<u8, 16>*>(tile + Layout::offset(from, chunk)) = piece;
  }
  ptx::fence_proxy_async_shared();
}

// Does what copy_tiles() does, where no tensor map describes an operand: slowly, and with the same tiles and sums. A block
// loads all of the weight's tile itself. By so many threads of the warp group.
template <int threads, class Shape, class Params>
__device__ inline void carry_tiles(const Params& p, const TileWalk<Shape>& walk,
                                   const Ring<Shape::Stages, Shape::Cluster>& ring, unsigned char* shared, int depth) {
  const int thread = threadIdx.x;
  RingPlace<Shape::Stages> at;
  walk.through([&](unsigned tile_m, unsigned tile_n) {
    for (int part = 0; part < depth; ++part, at.advance()) {
      unsigned char *const stage = shared + at.stage * Shape::stage_bytes, *const weight = stage + Shape::act_bytes;
      const int64 act_row = int64(tile_m) * Shape::BM, weight_row = int64(tile_n) * Shape::BN;
      ring.wait_empty(at);
      carry_tile<Shape::BM>(stage, p.act_q, p.act_stride, act_row, p.m, part * wgmma_bk, p.k, thread, threads);
      carry_tile<Shape::BN>(weight, p.weight_q, p.weight_stride, weight_row, p.n, part * wgmma_bk, p.k, thread, threads);
      ptx::bar_sync(2, threads);
      if (thread == 0) ptx::mbarrier_arrive(&ring.full[at.stage]);
    }
  });
}

// Makes outputs where wgmma leaves sums, and stores them: `of_columns(at)` returns what the columns at, at + 1 of the tile
// give, `output(i, half, n, that)` makes the output of sums[i], which is in the thread's row `half` and column at + n.
template <class Out, int BN, class Params, class OfColumns, class Output>
__device__ inline void store_tile(const Strip<Out>& own, const Params& p, int64 row, int rows, int64 column, int lane,
                                  const OfColumns& of_columns, const Output& output) {
#pragma unroll
  for (int from = 0; from < BN; from += Strip<Out>::columns) {
    const int wide = min(BN - from, Strip<Out>::columns);
    __syncwarp();
#pragma unroll
    for (int j = from; j < from + wide; j += 8) {
      const int at = j + lane % 4 * 2;
      const auto given = of_columns(at);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Vec<Out, 2> two;
#pragma unroll
        for (int n = 0; n < 2; ++n) two.item[n] = output(j / 2 + 2 * half + n, half, n, given);
        own.put(lane / 4 + 8 * half, at - from, two);
      }
    }
    __syncwarp();
    own.store(p, row, rows, column + from, wide, lane);
  }
}

// ---- few rows

template <int Rows, int Blocks, int Depth>
struct SwappedShape {
  static constexpr int BN = 64, Tokens = Rows, Cluster = Blocks, Stages = Depth;
  static constexpr int RingCluster = 1;  // a block fills its own ring
  static constexpr int consumers = 128;
  static constexpr int weight_bytes = BN * wgmma_bk, stage_bytes = weight_bytes + Tokens * wgmma_bk;
  static constexpr int pitch = BN + 4;  // a lane's sums are in one column: its neighbours' go to other banks
  static constexpr int share = Tokens / Cluster;  // tokens that a block finishes
  static_assert(Tokens % Cluster == 0, "each block finishes as many tokens");
};

// The part of K that a block of a cluster has: from `first` to `last`, in tiles.
template <class Shape>
struct ShareOfK {
  const int rank, first, last;

  __device__ explicit ShareOfK(int depth)
      : rank(blockIdx.x % Shape::Cluster),
        first(depth * rank / Shape::Cluster),
        last(depth * (rank + 1) / Shape::Cluster) {}
};

// Fills the ring with all that a block multiplies. By one thread.
template <class Shape, class Params>
__device__ inline void copy_share(const Params& p, const ShareOfK<Shape>& k, const Ring<Shape::Stages>& ring,
                                  unsigned char* shared, int64 column, int act_rows) {
  RingPlace<Shape::Stages> at;
  for (int part = k.first; part < k.last; ++part, at.advance()) {
    unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
    unsigned long long* const full = &ring.full[at.stage];
    ring.wait_empty(at);
    ring.announce(at, (Shape::BN + act_rows) * wgmma_bk);
    ptx::cp_async_bulk_tensor_load_2d(stage, &p.weight_map, part * wgmma_bk, static_cast<int>(column), full);
    ptx::cp_async_bulk_tensor_load_2d(stage + Shape::weight_bytes, &p.act_map, part * wgmma_bk, 0, full);
  }
}

// Does what copy_share() does, as carry_tiles() does it. By all lanes of a warp.
template <class Shape, class Params>
__device__ inline void carry_share(const Params& p, const ShareOfK<Shape>& k, const Ring<Shape::Stages>& ring,
                                   unsigned char* shared, int64 column, int lane) {
  RingPlace<Shape::Stages> at;
  for (int part = k.first; part < k.last; ++part, at.advance()) {
    unsigned char *const stage = shared + at.stage * Shape::stage_bytes, *const act = stage + Shape::weight_bytes;
    ring.wait_empty(at);
    carry_tile<Shape::BN>(stage, p.weight_q, p.weight_stride, column, p.n, part * wgmma_bk, p.k, lane, 32);
    carry_tile<Shape::Tokens>(act, p.act_q, p.act_stride, 0, p.m, part * wgmma_bk, p.k, lane, 32);
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&ring.full[at.stage]);
  }
}

// Leaves sums of columns and tokens where the cluster finds them, a row for each token.
template <class Shape, class T, class Sum>
__device__ inline void leave_swapped(T (*sums_of)[Shape::pitch], const Sum (&sums)[Shape::Tokens / 2], int warp,
                                     int lane) {
#pragma unroll
  for (int i = 0; i < Shape::Tokens / 2; ++i)
    sums_of[8 * (i / 4) + 2 * (lane % 4) + i % 2][16 * warp + lane / 4 + 8 * (i / 2 % 2)] = sums[i];
}

// ---- both

// sums += a part of K, tile by tile of the ring: A begins `a`, and B `b` bytes into each of them. One tile's instructions
// are under way while the next ones are started; `beside(tile)` runs meanwhile. Returns the last tile's place, which the
// caller has yet to release.
template <class Shape, ptx::MatrixElement A, ptx::MatrixElement B, int columns, class Sum, class Beside>
__device__ inline RingPlace<Shape::Stages> multiply_tiles(Sum (&sums)[columns / 2],
                                                          const Ring<Shape::Stages, Shape::RingCluster>& ring,
                                                          RingPlace<Shape::Stages>& at, int parts,
                                                          const unsigned char* shared, int a, int b, int lane,
                                                          const Beside& beside) {
  RingPlace<Shape::Stages> before = at;
  for (int part = 0; part < parts; ++part, at.advance()) {
    const unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
    const ptx::MatrixDescriptor of_a = describe_tile(stage + a), of_b = describe_tile(stage + b);
    ring.wait_full(at);
    ptx::wgmma_fence_operand(sums);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < wgmma_steps; ++step)
      ptx::wgmma<A, B, columns>(sums, of_a.advanced(32 * step), of_b.advanced(32 * step), true);
    ptx::wgmma_commit_group();
    beside(stage);
    if (part > 0) {  // this tile's instructions are under way; those of the one before must be over
      ptx::wgmma_wait_group<1>();
      ring.release(before, lane);
      before.advance();
    }
  }
  ptx::wgmma_wait_group<0>();
  ptx::wgmma_fence_operand(sums);
  return before;
}

// Goes through a part of K, tile by tile of the ring, where sums leave the tensor cores every `Interval` instructions:
// `promote(sums)` takes what was summed from `step` of a tile on, and `prepare(stage, step)` what it wants of the stage
// besides: while the instructions are under way, or where they leave no registers for that, behind them. No others of this
// warp group are under way meanwhile; those of another one are.
template <class Shape, ptx::MatrixElement A, ptx::MatrixElement B, int columns, int Interval, bool Behind, class Prepare,
          class Promote>
__device__ inline void multiply_promoted(const Ring<Shape::Stages, Shape::RingCluster>& ring,
                                         RingPlace<Shape::Stages>& at, int parts, const unsigned char* shared, int a, int b,
                                         int lane, const Prepare& prepare, const Promote& promote) {
  float sums[columns / 2] = {};
  for (int part = 0; part < parts; ++part, at.advance()) {
    const unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
    const ptx::MatrixDescriptor of_a = describe_tile(stage + a), of_b = describe_tile(stage + b);
    ring.wait_full(at);
#pragma unroll
    for (int first = 0; first < wgmma_steps; first += Interval) {
      ptx::wgmma_fence_operand(sums);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = first; step < first + Interval; ++step)
        ptx::wgmma<A, B, columns>(sums, of_a.advanced(32 * step), of_b.advanced(32 * step), step > first);
      ptx::wgmma_commit_group();
      if constexpr (!Behind) prepare(at.stage, first);
      ptx::wgmma_wait_group<0>();
      ptx::wgmma_fence_operand(sums);
      if constexpr (Behind) prepare(at.stage, first);
      if (first + Interval == wgmma_steps) ring.release(at, lane);
      promote(sums);
    }
  }
}

}  // namespace qp
