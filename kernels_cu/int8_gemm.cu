// W8A8 linears with mma.sync, for every GPU from sm_80 on:
//
//   output[m, n] = act(act_scale[m] · weight_scale[n] · Σ_k (act_q[m, k] − act_zero_point[m]) · weight_q[n, k] + bias[n])
//
//   act_q         M rows of K bytes, s8 or u8             weight_q   N rows of K bytes, s8
//   output        M rows of N elements                    rows lie any distance apart
//
// A block makes a tile of the output. Tiles of both operands, BK bytes deep, go through a ring of Stages buffers in shared
// memory; Stages − 1 of them are on their way while one is multiplied:
//
//                    K ──▶                              weight_q, transposed
//               ┌────┬────┬────┬────┐                 ┌──────────────┐
//        act_q  │ BK │    │    │    │ BM        K │   │      BN      │ BK
//               └────┴────┴────┴────┘             ▼   ├──────────────┤
//                                                     │              │
//                                                     └──────────────┘
//                                                     ┌──────────────┐
//                  warps: WarpsM × WarpsN of them     │  WarpsM  x   │ BM
//                  share the tile of the output       │    WarpsN    │
//                                                     └──────────────┘
//
// For few rows there are WarpsK such groups of warps, each with its own part of every BK bytes: so all warps of a block
// have work where one row of warps would be enough for the output. Their sums are added by the epilogue. Sums are exact
// integers modulo 2³², so neither tile nor split shows in the result.
//
// A zero point needs Σ_k weight_q[n, k]: the warps of the tile's first rows add up the fragments that they have at hand.
#pragma once

#include <qp/epilogue.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/matrix.cuh>
#include <qp/ptx/mma.cuh>
#include <qp/tile.cuh>

namespace qp {

template <int Bm, int Bn, int Bk, int Wm, int Wn, int Wk, int Depth>
struct GemmShape {
  static constexpr int BM = Bm, BN = Bn, BK = Bk, WarpsM = Wm, WarpsN = Wn, WarpsK = Wk, Stages = Depth;
  static constexpr int threads = 32 * Wm * Wn * Wk;
  static constexpr int tall = Bm / Wm / 16, broad = Bn / Wn / 8, steps = Bk / Wk / 32;  // of a warp, in instructions
  static_assert(tall * Wm * 16 == Bm && broad * Wn * 8 == Bn && steps * Wk * 32 == Bk, "warps share a tile evenly");
  static_assert(broad % 2 == 0, "one ldmatrix loads the weights of two instructions");
};

// What a warp multiplies in one step of 32 bytes.
template <class Shape>
struct Fragments {
  unsigned act[Shape::tall][4], weight[Shape::broad][2];
};

template <class Act>
__device__ inline void multiply_add(int (&sums)[4], const unsigned (&act)[4], const unsigned (&weight)[2]) {
  if constexpr (same<Act, u8>) ptx::mma_m16n8k32_u8_s8(sums, act, weight);
  else ptx::mma_m16n8k32_s8_s8(sums, act, weight);
}

template <class Act, class Out, Activation A, bool ZeroPoint, class Shape>
__device__ void int8_gemm(const LinearParams& p) {
  constexpr int BM = Shape::BM, BN = Shape::BN, BK = Shape::BK, Stages = Shape::Stages;
  constexpr int tall = Shape::tall, broad = Shape::broad, steps = Shape::steps;
  using ActTile = TileLayout<BM, BK>;
  using WeightTile = TileLayout<BN, BK>;
  constexpr int stage_bytes = ActTile::size + WeightTile::size;
  unsigned char* const shared = ptx::shared_memory();

  const auto tiles = [](int64 extent, int tile) { return static_cast<unsigned>((extent + tile - 1) / tile); };
  const Place2d place = raster(blockIdx.x, tiles(p.m, BM), tiles(p.n, BN));
  const int64 row = int64(place.m) * BM, column = int64(place.n) * BN;
  const TileLoader<ActTile, Shape::threads> act(p.act_q, p.act_stride, row, p.m, p.act_aligned);
  const TileLoader<WeightTile, Shape::threads> weight(p.weight_q, p.weight_stride, column, p.n, p.weight_aligned);

  const int depth = (p.k + BK - 1) / BK;
  const auto load = [&](int part) {  // what belongs to no part is an empty group, so that groups can be counted
    unsigned char* const stage = shared + part % Stages * stage_bytes;
    if (part < depth) {
      act.load(stage, part * BK, p.k);
      weight.load(stage + ActTile::size, part * BK, p.k);
    }
    ptx::cp_async_commit_group();
  };

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % Shape::WarpsM, warp_n = warp / Shape::WarpsM % Shape::WarpsN;
  const int warp_k = warp / (Shape::WarpsM * Shape::WarpsN);
  const int top = warp_m * (BM / Shape::WarpsM), from_left = warp_n * (BN / Shape::WarpsN);
  const auto fetch = [&](Fragments<Shape>& to, const unsigned char* stage, int step) {
    const int chunk = (warp_k * steps + step) * 2;
#pragma unroll
    for (int i = 0; i < tall; ++i)
      ptx::ldmatrix_x4(to.act[i], stage + ActTile::offset(top + 16 * i + lane % 16, chunk + lane / 16));
#pragma unroll
    for (int j = 0; j < broad; j += 2) {
      unsigned two[4];
      const int weight_row = from_left + 8 * j + lane % 8 + lane / 16 * 8;
      ptx::ldmatrix_x4(two, stage + ActTile::size + WeightTile::offset(weight_row, chunk + lane / 8 % 2));
      to.weight[j][0] = two[0], to.weight[j][1] = two[1], to.weight[j + 1][0] = two[2], to.weight[j + 1][1] = two[3];
    }
  };

  int sums[tall][broad][4] = {};
  int weight_sums[broad] = {};
  Fragments<Shape> fragments[2];  // one is loaded while the other is multiplied
  for (int part = 0; part < Stages - 1; ++part) load(part);
  for (int part = 0; part < depth; ++part) {
    ptx::cp_async_wait_group<Stages - 2>();
    __syncthreads();  // this part is there for all, and all are done with the one before, whose buffer is next
    load(part + Stages - 1);
    const unsigned char* const stage = shared + part % Stages * stage_bytes;
    fetch(fragments[0], stage, 0);
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const Fragments<Shape>& now = fragments[step % 2];
      if (step + 1 < steps) fetch(fragments[(step + 1) % 2], stage, step + 1);
#pragma unroll
      for (int i = 0; i < tall; ++i)
#pragma unroll
        for (int j = 0; j < broad; ++j) multiply_add<Act>(sums[i][j], now.act[i], now.weight[j]);
      if constexpr (ZeroPoint) {
        if (warp_m == 0) {
#pragma unroll
          for (int j = 0; j < broad; ++j)
            weight_sums[j] = add_bytes(now.weight[j][1], add_bytes(now.weight[j][0], weight_sums[j]));
        }
      }
    }
  }

  TileFinisher<Out, A, ZeroPoint, BN, Shape::threads> finisher(
      p, row, static_cast<int>(min(p.m - row, int64(BM))), column, threadIdx.x);

  // The ring is done with, and takes the sums.
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  const SumsInShared<BM, BN, Shape::WarpsK> tile(shared);
  int (*const all_weight_sums)[BN] = reinterpret_cast<int (*)[BN]>(shared + tile.bytes);
#pragma unroll
  for (int i = 0; i < tall; ++i)
#pragma unroll
    for (int j = 0; j < broad; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        tile.put(warp_k, top + 16 * i + 8 * half, from_left + 8 * j, lane, sums[i][j][2 * half], sums[i][j][2 * half + 1]);
  if constexpr (ZeroPoint) {
    if (warp_m == 0) {
#pragma unroll
      for (int j = 0; j < broad; ++j) {
        int sum = weight_sums[j];  // of the lane's bytes; the other bytes of the row are in the lanes beside it
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) all_weight_sums[warp_k][from_left + 8 * j + lane / 4] = sum;
      }
    }
  }
  __syncthreads();
  finisher.finish([&](int i, int j) { return tile.template total<sums_at_once<Out>>(i, j); },
                  [&](int j) {
                    int sum = 0;
                    for (int part = 0; part < Shape::WarpsK; ++part) sum += all_weight_sums[part][j];
                    return sum;
                  });
}

}  // namespace qp
