// W4A16 with mma.sync, for every GPU from sm_80 on:
//
//   output[m, n] = Σ_g weight_scale[g, n] · Σ_{k in g} act[m, perm[k]] · (weight_q[k, n] − zero_point[g, n]) + bias[n]
//
//   act     M rows of K f16 or bf16          weight_q, weight_scale, zero points   in Marlin's order, padded (int4.cuh)
//   output  M rows of N elements             rows lie any distance apart
//
// A block makes a tile of the output, all of K. What it needs goes through a ring of Stages buffers in shared memory, BK
// rows of K in each. Warps lie over columns, tokens, and K: each of WarpsK groups of warps has 64 rows of every stage.
//
//             stage: BK = 64·WarpsK rows              a warp: 64 columns, Octets·8 tokens, 64 rows
//            ┌─────┬─────┬─────┬─────┐
//   weight_q │ w 0 │ w 1 │ w 2 │ w 3 │ BN             every Fold rows its sums are multiplied by the group's scale, and
//            ├─────┼─────┼─────┼─────┤                added to its totals; in the end those are added in the order of
//   act      │ w 0 │ w 1 │ w 2 │ w 3 │ Tokens         warps
//            └─────┴─────┴─────┴─────┘
//
// So the order in which a row's products are added depends on K and the kernel alone.
//
// With act-order, Gather, activations come one by one from where perm says: half of the next stage's are under way while
// half of a stage is multiplied, and their indices have come with the weight before that.
#pragma once

#include <qp/int4.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/matrix.cuh>
#include <qp/tile.cuh>

namespace qp {

template <> constexpr int least_blocks<Int4Params> = 1;  // sums fill the registers, and nothing must leave them

template <int Octets_, int Wm, int Wn, int Wk, int Depth>
struct Int4Shape {
  static constexpr int Octets = Octets_, WarpsM = Wm, WarpsN = Wn, WarpsK = Wk, Stages = Depth;
  static constexpr int threads = 32 * Wm * Wn * Wk, Tokens = 8 * Octets * Wm, BN = marlin_n * Wn, BK = int4_run * Wk;
};

// Where the parts of a stage begin. A group of 0 rows is all of K: then there is one row of scales, and it is not staged.
template <int BN, int BK, int Tokens, int Group, bool ZeroPoint, bool Gather>
struct Int4Stage {
  static constexpr int groups = Group == 0 ? 0 : Group < BK ? BK / Group : 1;
  static constexpr int act = BN * BK / 2, scales = act + Tokens * BK * 2, zeros = scales + groups * BN * 2;
  static constexpr int perm = zeros + (ZeroPoint ? groups * BN / 2 : 0), bytes = perm + (Gather ? BK * 4 : 0);

  // Which of its groups a row of the stage is in.
  __device__ static int group_of(int k) { return groups > 1 ? k / group_rows<Group> : 0; }
};

// Starts to copy Rows x Chunks chunks of 16 bytes of a matrix, row by row; rows or columns that do not exist are zeros.
template <int Rows, int Chunks, int Threads>
__device__ inline void copy_rows(unsigned char* to, const void* matrix, int64 stride, int64 row, int rows, int64 column,
                                 int64 columns) {
#pragma unroll
  for (int c = threadIdx.x; c < Rows * Chunks; c += Threads) {
    const int64 at = column + c % Chunks * 16;
    const bool there = c / Chunks < rows && at < columns;
    const unsigned char* const from = static_cast<const unsigned char*>(matrix);
    ptx::cp_async_zero_fill<16>(to + c * 16, there ? from + (row + c / Chunks) * stride + at : from, there ? 16 : 0);
  }
}

// Brings a stage's activations, 64 columns after the other as TileLayout has them. A thread's chunks are of 8 activations.
template <int Tokens, int BK, int Threads>
struct ActLoader {
  using Layout = TileLayout<Tokens, 2 * int4_run>;
  static constexpr int count = Tokens * BK / 8 / Threads;
  static_assert(count % 2 == 0 && count * Threads * 8 == Tokens * BK, "threads share a stage evenly, and its halves");

  const Int4Params& p;
  int64 row;

  __device__ static int place(int c) {
    return c / (8 * Tokens) * Layout::size + Layout::offset(c / 8 % Tokens, c % 8);
  }
  __device__ static int column(int c) { return c / (8 * Tokens) * int4_run + c % 8 * 8; }
  __device__ const unsigned short* token(int c) const {
    const int64 offset = (row + c / 8 % Tokens) * p.act_stride;
    return reinterpret_cast<const unsigned short*>(static_cast<const unsigned char*>(p.act) + offset);
  }
  __device__ bool there(int c) const { return row + c / 8 % Tokens < p.m; }

  // Starts to copy what begins at column k.
  __device__ void load(unsigned char* to, int k) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int c = i * Threads + threadIdx.x, at = k + column(c);
      const int some = there(c) ? left(p.k - at, 8) : 0;
      if (p.act_aligned) {
        const void* const from = some ? static_cast<const void*>(token(c) + at) : p.act;
        ptx::cp_async_zero_fill<16>(to + place(c), from, 2 * some);
      } else {
        Vec<unsigned short, 8> piece = {};
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (j < some) piece.item[j] = token(c)[at + j];
        *reinterpret_cast<Vec<unsigned short, 8>*>(to + place(c)) = piece;
      }
    }
  }

  // Loads half of a stage that begins at row k of the weight, from the columns that perm names, into registers.
  __device__ void fetch(Vec<unsigned short, 8> (&held)[count / 2], int half, const int* perm, int k) const {
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const int c = (half * (count / 2) + i) * Threads + threadIdx.x;
      const int some = there(c) ? left(p.k - k - column(c), 8) : 0;
      held[i] = {};
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j < some) held[i].item[j] = ptx::load_2(token(c) + perm[column(c) + j]);
    }
  }
  __device__ void put(unsigned char* to, int half, const Vec<unsigned short, 8> (&held)[count / 2]) const {
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const int c = (half * (count / 2) + i) * Threads + threadIdx.x;
      *reinterpret_cast<Vec<unsigned short, 8>*>(to + place(c)) = held[i];
    }
  }
};

// Loads fragments of the 8·Octets tokens from `first` on, 16 rows of K that begin at a chunk.
template <int Octets, class Layout>
__device__ inline void load_tokens(unsigned (&tokens)[Octets][2], const unsigned char* line, int first, int chunk, int lane) {
  if constexpr (Octets == 1) {
    ptx::ldmatrix_x2(tokens[0], line + Layout::offset(first + lane % 8, chunk + lane / 8 % 2));
  } else {
#pragma unroll
    for (int i = 0; i < Octets; i += 2) {
      unsigned two[4];
      ptx::ldmatrix_x4(two, line + Layout::offset(first + 8 * i + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
      tokens[i][0] = two[0], tokens[i][1] = two[1], tokens[i + 1][0] = two[2], tokens[i + 1][1] = two[3];
    }
  }
}

// A warp's sums of 64 columns and Octets·8 tokens, and what they were before the last scale.
template <int Octets>
struct Int4Sums {
  f32 sums[4][Octets][4] = {}, totals[4][Octets][4] = {};

  // Adds the sums to the totals, times the scales of word j's columns, lane/4 and 8 further.
  __device__ void fold(int j, f32 scale, f32 scale_8_on) {
#pragma unroll
    for (int i = 0; i < Octets; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        totals[j][i][r] = __fmaf_rn(sums[j][i][r], r / 2 ? scale_8_on : scale, totals[j][i][r]);
        sums[j][i][r] = 0;
      }
  }
};

template <class Act, class Out, int Group, bool ZeroPoint, bool Gather, class Shape>
__device__ void int4_gemm(const Int4Params& p) {
  constexpr int BN = Shape::BN, BK = Shape::BK, Stages = Shape::Stages, Tokens = Shape::Tokens, Octets = Shape::Octets;
  constexpr int fold_tiles = fold_rows<Group> / marlin_k;
  constexpr int steps_at_once = Gather ? 2 : 4;  // what is gathered takes registers
  using Stage = Int4Stage<BN, BK, Tokens, Group, ZeroPoint, Gather>;
  using Loader = ActLoader<Tokens, BK, Shape::threads>;
  unsigned char* const shared = ptx::shared_memory();

  const auto tiles = [](int64 extent, int tile) { return static_cast<unsigned>((extent + tile - 1) / tile); };
  const Place2d block = raster(blockIdx.x, tiles(p.m, Tokens), tiles(p.n, BN));
  const int64 row = int64(block.m) * Tokens, column = int64(block.n) * BN;
  const Loader act{p, row};
  const int depth = (p.k + BK - 1) / BK, groups = (p.k - 1) / group_rows<Group> + 1;
  const auto stage_of = [&](int part) { return shared + part % Stages * Stage::bytes; };
  const auto load = [&](int part) {  // what belongs to no part is an empty group, so that groups can be counted
    if (part < depth) {
      unsigned char* const stage = stage_of(part);
      const int k = part * BK;
      copy_rows<BK / marlin_k, BN / 2, Shape::threads>(stage, p.weight_q, p.weight_stride, k / marlin_k,
                                                       (p.padded_k - k) / marlin_k, column * 8, p.padded_n * 8);
      if constexpr (Group != 0) {
        const int group = k / Group;
        copy_rows<Stage::groups, BN / 8, Shape::threads>(stage + Stage::scales, p.weight_scale, p.scale_stride, group,
                                                         groups - group, column * 2, p.padded_n * 2);
        if constexpr (ZeroPoint)
          copy_rows<Stage::groups, BN / 32, Shape::threads>(stage + Stage::zeros, p.weight_zero_point, p.zero_point_stride,
                                                            group, groups - group, column / 2, p.padded_n / 2);
      }
      if constexpr (Gather) {
        for (int i = threadIdx.x; i < BK; i += Shape::threads)
          ptx::cp_async_zero_fill<4>(stage + Stage::perm + 4 * i, k + i < p.k ? p.perm + k + i : p.perm, k + i < p.k ? 4 : 0);
      } else {
        act.load(stage + Stage::act, k);
      }
    }
    ptx::cp_async_commit_group();
  };
  Vec<unsigned short, 8> held[Loader::count / 2];
  const auto fetch = [&](int part, int half) {
    if (part < depth) act.fetch(held, half, reinterpret_cast<const int*>(stage_of(part) + Stage::perm), part * BK);
  };
  const auto put = [&](int part, int half) {
    if (part < depth) act.put(stage_of(part) + Stage::act, half, held);
  };
  for (int part = 0; part < Stages - 1; ++part) load(part);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % Shape::WarpsM, warp_n = warp / Shape::WarpsM % Shape::WarpsN;
  const int warp_k = warp / (Shape::WarpsM * Shape::WarpsN);
  const int top = warp_m * 8 * Octets, from_left = warp_n * marlin_n;
  const bool inside = column + from_left < p.padded_n;  // of columns that do not exist nothing is read

  // Of all of K, zero points are the same: a lane's eight are one word.
  unsigned zero_points = 0;
  if (ZeroPoint && Group == 0 && inside)
    zero_points = static_cast<const unsigned*>(p.weight_zero_point)[(column + from_left) / 8 + lane / 4];

  Int4Sums<Octets> own;
  if constexpr (Gather) {
    ptx::cp_async_wait_group<Stages - 2>();
    __syncthreads();
    for (int half = 0; half < 2; ++half) fetch(0, half), put(0, half);
  }
  for (int part = 0; part < depth; ++part) {
    ptx::cp_async_wait_group<Stages - (Gather ? 3 : 2)>();
    __syncthreads();  // this part is there for all, and all are done with the one before, whose buffer is next
    load(part + Stages - 1);
    const unsigned char* const stage = stage_of(part);
    const unsigned char* const line = stage + Stage::act + warp_k * Loader::Layout::size;
#pragma unroll steps_at_once
    for (int step = 0; step < int4_run / marlin_k; ++step) {
      const int k = warp_k * int4_run + step * marlin_k, group = Stage::group_of(k);
      if (Gather && step % 2 == 0) fetch(part + 1, step / 2);
      unsigned tokens[Octets][2];
      load_tokens<Octets, typename Loader::Layout>(tokens, line, top, 2 * step, lane);
      if (ZeroPoint && Group != 0 && step % fold_tiles == 0)
        zero_points = *reinterpret_cast<const unsigned*>(stage + Stage::zeros + (group * BN + from_left) / 2 + lane / 4 * 4);
      const uint4 words = *reinterpret_cast<const uint4*>(stage + (k / marlin_k * (BN / marlin_n) + warp_n) * marlin_tile_bytes +
                                                          lane * 16);
      const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        unsigned a[4];
        Fragment<Act>(ZeroPoint ? zeros_of(zero_points, j) : symmetric_zeros).of(word[j], a);
#pragma unroll
        for (int i = 0; i < Octets; ++i)
          multiply_add_16<Act>(own.sums[j][i], a, tokens[i]);
      }
      const int folded = part * BK + k - (fold_tiles - 1) * marlin_k;  // the first row: beyond K no scale may show
      if (Group != 0 && step % fold_tiles == fold_tiles - 1 && folded < p.k) {
        const auto scales = reinterpret<Vec<Act, 8>>(*reinterpret_cast<const uint4*>(
            stage + Stage::scales + (group * BN + from_left) * 2 + lane / 4 * 16));
#pragma unroll
        for (int j = 0; j < 4; ++j) own.fold(j, widen<f32>(scales.item[2 * j]), widen<f32>(scales.item[2 * j + 1]));
      }
      if (Gather && step % 2 == 1) put(part + 1, step / 2);
    }
  }
  if (Group == 0 && inside && warp_k * int4_run < p.k) {
    const Act* const scales = static_cast<const Act*>(p.weight_scale);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64 first = column + from_left + 16 * j + lane / 4;
      own.fold(j, widen<f32>(scales[scale_place(first)]), widen<f32>(scales[scale_place(first + 8)]));
    }
  }

  // The ring is done with, and takes the totals.
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  const TokenSums<Tokens, BN> all(shared);
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < Octets; ++i) all.put(warp_k, top + 8 * i, from_left + 16 * j, lane, own.totals[j][i]);
  __syncthreads();
  const int rows = static_cast<int>(min(p.m - row, int64(Tokens)));
  finish_tokens<Act, Out, BN, Shape::threads>(p, row, rows, column, threadIdx.x, [&](int i, int j) {
    auto sum = *reinterpret_cast<const Vec<f32, 4>*>(&all.part[0][i][j]);
#pragma unroll
    for (int n = 1; n < Shape::WarpsK; ++n) {
      const auto some = *reinterpret_cast<const Vec<f32, 4>*>(&all.part[n][i][j]);
#pragma unroll
      for (int c = 0; c < 4; ++c) sum.item[c] = add(sum.item[c], some.item[c]);
    }
    return sum;
  });
}

}  // namespace qp
