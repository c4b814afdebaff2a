// What GEMMs with mma.sync of 8-bit elements share: how a block cuts a product, its ring of tiles, and how sums leave
// registers. A block makes a tile of the output. Tiles of both operands, BK bytes deep, go through a ring of Stages
// buffers in shared memory; Stages − 1 of them are on their way while one is multiplied:
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
// have work where one row of warps would be enough for the output. Their sums are added by the epilogue.
#pragma once

#include <qp/ptx/matrix.cuh>
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

// A thread's view of its block's tile: where it is, and the way along K. `Params` name the operands as LinearParams do.
template <class Shape>
struct MmaBlock {
  static constexpr int BM = Shape::BM, BN = Shape::BN, BK = Shape::BK, Stages = Shape::Stages;
  static constexpr int tall = Shape::tall, broad = Shape::broad, steps = Shape::steps;
  using ActTile = TileLayout<BM, BK>;
  using WeightTile = TileLayout<BN, BK>;
  static constexpr int stage_bytes = ActTile::size + WeightTile::size;

  unsigned char* const shared;
  const Place2d place;
  const int64 row, column;
  const TileLoader<ActTile, Shape::threads> act;
  const TileLoader<WeightTile, Shape::threads> weight;
  const int k, depth, lane, warp_m, warp_n, warp_k;
  const int top = warp_m * (BM / Shape::WarpsM), from_left = warp_n * (BN / Shape::WarpsN);  // of the warp in the tile

  template <class Params>
  __device__ MmaBlock(const Params& p, unsigned char* shared)
      : shared(shared),
        place(raster(blockIdx.x, tiles(p.m, BM), tiles(p.n, BN))),
        row(int64(place.m) * BM),
        column(int64(place.n) * BN),
        act(p.act_q, p.act_stride, row, p.m, p.act_aligned),
        weight(p.weight_q, p.weight_stride, column, p.n, p.weight_aligned),
        k(p.k),
        depth((p.k + BK - 1) / BK),
        lane(threadIdx.x % 32),
        warp_m(threadIdx.x / 32 % Shape::WarpsM),
        warp_n(threadIdx.x / 32 / Shape::WarpsM % Shape::WarpsN),
        warp_k(threadIdx.x / 32 / (Shape::WarpsM * Shape::WarpsN)) {}

  // Goes along K: `begin(part)` comes before the first step of a tile, `multiply(fragments, step)` is given what the warp
  // has to multiply, and `end()` comes after the last step.
  template <class Begin, class Multiply, class End>
  __device__ void along_k(const Begin& begin, const Multiply& multiply, const End& end) const {
    Fragments<Shape> fragments[2];  // one is loaded while the other is multiplied
    for (int part = 0; part < Stages - 1; ++part) load(part);
    for (int part = 0; part < depth; ++part) {
      begin(part);
      ptx::cp_async_wait_group<Stages - 2>();
      __syncthreads();  // this part is there for all, and all are done with the one before, whose buffer is next
      load(part + Stages - 1);
      const unsigned char* const stage = shared + part % Stages * stage_bytes;
      fetch(fragments[0], stage, 0);
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) fetch(fragments[(step + 1) % 2], stage, step + 1);
        multiply(fragments[step % 2], step);
      }
      end();
    }
  }

  // From here on the ring is done with, and its memory free. By all threads.
  __device__ void leave_ring() const {
    ptx::cp_async_wait_group<0>();
    __syncthreads();
  }

  // Leaves the warp's sums in shared memory.
  template <class Tile, class Sum>
  __device__ void put(const Tile& tile, const Sum (&sums)[tall][broad][4]) const {
#pragma unroll
    for (int i = 0; i < tall; ++i)
#pragma unroll
      for (int j = 0; j < broad; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          tile.put(warp_k, top + 16 * i + 8 * half, from_left + 8 * j, lane, sums[i][j][2 * half],
                   sums[i][j][2 * half + 1]);
  }

 private:
  __device__ static unsigned tiles(int64 extent, int tile) { return static_cast<unsigned>((extent + tile - 1) / tile); }

  __device__ void load(int part) const {  // what belongs to no part is an empty group, so that groups can be counted
    unsigned char* const stage = shared + part % Stages * stage_bytes;
    if (part < depth) {
      act.load(stage, part * BK, k);
      weight.load(stage + ActTile::size, part * BK, k);
    }
    ptx::cp_async_commit_group();
  }

  __device__ void fetch(Fragments<Shape>& to, const unsigned char* stage, int step) const {
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
  }
};

}  // namespace qp
