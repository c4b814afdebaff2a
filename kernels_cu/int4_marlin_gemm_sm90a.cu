// W4A16 with wgmma, for sm_90a. The formula and the operands are those of int4_marlin_gemm.cu.
//
// Weights are the instruction's A, made in registers of Marlin's words; activations are its B, in shared memory. Of each
// word j of a tile of 64 columns a warp makes 16 rows of A. A warp group has Words tiles, and Words instructions for each
// 16 rows of K: warp w takes as many words in a row, so that a lane loads them at once:
//
//                  tile 0          tile 1          tile 2          tile 3
//     word      0  1  2  3      0  1  2  3      0  1  2  3      0  1  2  3
//   Words = 1   w0 w1 w2 w3
//   Words = 2   w0 w0 w1 w1     w2 w2 w3 w3
//   Words = 4   w0 w0 w0 w0     w1 w1 w1 w1     w2 w2 w2 w2     w3 w3 w3 w3
//
// Two warp groups multiply. They share the columns of a block, or, for few tokens, the rows of each stage, 64 each. Where
// tiles are few the blocks of a cluster share K, too; sums are added in the order of ranks, and of groups within them.
// Parts of K are a function of N and K alone.
//
// A warp group of its own brings everything: one thread by tensor maps, the scales and zero points of a stage's groups with
// its weights. Activations that those cannot describe (odd rows, act-order) are brought by its warps, each of which fills
// every fourth stage.
#pragma once

#include <qp/int4.cuh>
#include <qp/pipeline.cuh>
#include <qp/ptx/barrier.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/registers.cuh>
#include <qp/ptx/tensor_map.cuh>
#include <qp/tile.cuh>
#include <qp/wgmma_tile.cuh>

namespace qp {

struct MappedInt4Params {
  ptx::TensorMap act_map;  // boxes of copied_rows() rows of 64 columns, swizzled by 128 bytes; unused if not act_mapped
  ptx::TensorMap weight_map;  // boxes of a stage's rows of tiles, two tiles wide
  ptx::TensorMap scale_map, zero_point_map;  // boxes of a stage's groups, of those that K has; unused if all of K is one
  Int4Params problem;
};

// A block has an SM for itself, so that the warp groups that multiply have the registers of the one that does not.
template <> constexpr int least_blocks<MappedInt4Params> = 1;

constexpr int producers = 128;  // threads
constexpr int multipliers = 256;

template <int Octets, int Words_, int GroupsN, int GroupsK, int Blocks, int Depth>
struct Int4WgmmaShape {
  static constexpr int Tokens = 8 * Octets, Words = Words_, ShareN = GroupsN, ShareK = GroupsK, Cluster = Blocks, Stages = Depth;
  static constexpr int BN = marlin_n * Words * GroupsN, BK = int4_run * GroupsK;
  static constexpr int weight_bytes = BN * BK / 2, line_bytes = Tokens * wgmma_bk, stage_bytes = weight_bytes + ShareK * line_bytes;
  static constexpr int box_bytes = BK / marlin_k * 2 * marlin_tile_bytes;
  static_assert(GroupsN * GroupsK == 2, "two warp groups multiply");
  static_assert(BN % (2 * marlin_n) == 0, "a box is two tiles wide");
  static_assert(Tokens % Cluster == 0, "each block finishes as many tokens");
};

// The scales of a stage's groups, a row for each, and their zero points behind them.
template <class Shape, int Group, bool ZeroPoint>
struct StageFactors {
  static constexpr int groups = Group == 0 ? 0 : Group < Shape::BK ? Shape::BK / Group : 1;
  static constexpr int scale_bytes = 2 * Shape::BN, zero_bytes = Shape::BN / 2;  // of a row
  static constexpr int zeros = groups * scale_bytes, copied = zeros + (ZeroPoint ? groups * zero_bytes : 0);
  static constexpr int bytes = (copied + 127) / 128 * 128;  // where boxes may begin
};

// Fills a stage's line of activations, which begins at row k of the weight, by one warp.
template <class Shape>
__device__ inline void fill_line(unsigned char* line, const Int4Params& p, int64 row, int rows, int k, int lane) {
  using Layout = TileLayout<Shape::Tokens, wgmma_bk>;
  const int first = lane % 8 * 8, some = left(p.k - k - first, 8);  // a lane's chunks are in one column
  int column[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) column[j] = j < some && p.perm ? p.perm[k + first + j] : k + first + j;
#pragma unroll 1
  for (int i = lane / 8; i < rows; i += 4) {
    const auto token = reinterpret_cast<const unsigned short*>(static_cast<const unsigned char*>(p.act) + (row + i) * p.act_stride);
    Vec<unsigned short, 8> piece = {};
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (j < some && row + i < p.m) piece.item[j] = ptx::load_2(token + column[j]);
    *reinterpret_cast<Vec<unsigned short, 8>*>(line + Layout::offset(i, lane % 8)) = piece;
  }
}

template <class Act>
constexpr ptx::MatrixElement act_element = same<Act, f16> ? ptx::MatrixElement::f16 : ptx::MatrixElement::bf16;

template <class Act, class Out, int Group, bool ZeroPoint, class Shape>
__device__ void int4_wgmma(const MappedInt4Params& mapped) {
  constexpr int BN = Shape::BN, BK = Shape::BK, Tokens = Shape::Tokens, Words = Shape::Words;
  constexpr int Cluster = Shape::Cluster, Stages = Shape::Stages;
  constexpr int fold_steps = fold_rows<Group> / marlin_k;
  using Factors = StageFactors<Shape, Group, ZeroPoint>;
  const Int4Params& p = mapped.problem;
  unsigned char* const shared = ptx::shared_memory();
  unsigned char* const all_factors = shared + Stages * Shape::stage_bytes;  // lines of activations lie 1024 bytes apart
  const Ring<Stages> ring(all_factors + Stages * Factors::bytes);

  const auto tiles = [](int64 extent, int tile) { return static_cast<unsigned>((extent + tile - 1) / tile); };
  const Place2d place = raster(blockIdx.x / Cluster, tiles(p.m, Tokens), tiles(p.n, BN));
  const int64 row = int64(place.m) * Tokens, column = int64(place.n) * BN;
  const int rank = blockIdx.x % Cluster, depth = (p.k + BK - 1) / BK;
  const int first = depth * rank / Cluster, last = depth * (rank + 1) / Cluster;
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&mapped.weight_map);
    if (p.act_aligned) ptx::prefetch_tensor_map(&mapped.act_map);
    if constexpr (Group != 0) ptx::prefetch_tensor_map(&mapped.scale_map);
    if constexpr (Group != 0 && ZeroPoint) ptx::prefetch_tensor_map(&mapped.zero_point_map);
    ring.init(multipliers / 32, p.act_aligned ? 1 : 2);
  }
  const int act_rows = copied_rows<Tokens>(p.m);
#pragma unroll
  for (int line = 0; line < Shape::ShareK; ++line)
    clear_others<Tokens, Stages, Shape::stage_bytes>(shared + Shape::weight_bytes + line * Shape::line_bytes, act_rows);
  __syncthreads();  // the ring is the block's own

  const int lane = threadIdx.x % 32;
  const TokenSums<Tokens, BN> all(shared);
  RingPlace<Stages> at;
  if (threadIdx.x < producers) {
    ptx::setmaxnreg_dec<72>();
    for (int part = first; part < last; ++part, at.advance()) {
      unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
      unsigned char* const lines = stage + Shape::weight_bytes;
      const bool filled = !p.act_aligned && part % (producers / 32) == threadIdx.x / 32;
      if (threadIdx.x == 0) {
        unsigned long long* const full = &ring.full[at.stage];
        ring.wait_empty(at);
        ring.announce(at, Shape::weight_bytes + Factors::copied + (p.act_aligned ? Shape::ShareK * act_rows * wgmma_bk : 0));
#pragma unroll
        for (int box = 0; box < BN / (2 * marlin_n); ++box)
          ptx::cp_async_bulk_tensor_load_2d(stage + box * Shape::box_bytes, &mapped.weight_map,
                                            static_cast<int>(column * 2) + box * 256, part * (BK / marlin_k), full);
        if constexpr (Group != 0) {
          unsigned char* const factors = all_factors + at.stage * Factors::bytes;
          const int group = part * BK / Group;
          ptx::cp_async_bulk_tensor_load_2d(factors, &mapped.scale_map, static_cast<int>(column), group, full);
          if constexpr (ZeroPoint)
            ptx::cp_async_bulk_tensor_load_2d(factors + Factors::zeros, &mapped.zero_point_map,
                                              static_cast<int>(column / 8), group, full);
        }
        if (p.act_aligned) {
#pragma unroll
          for (int line = 0; line < Shape::ShareK; ++line)
            ptx::cp_async_bulk_tensor_load_2d(lines + line * Shape::line_bytes, &mapped.act_map,
                                              part * BK + line * int4_run, static_cast<int>(row), full);
        }
      }
      if (filled) {
        __syncwarp();
        ring.wait_empty(at);
#pragma unroll
        for (int line = 0; line < Shape::ShareK; ++line)
          fill_line<Shape>(lines + line * Shape::line_bytes, p, row, act_rows, part * BK + line * int4_run, lane);
        ptx::fence_proxy_async_shared();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&ring.full[at.stage]);
      }
    }
    __syncwarp();
  } else {
    ptx::setmaxnreg_inc<216>();
    const int thread = threadIdx.x - producers, warp = thread / 32 % 4, group = thread / 128;
    const int group_n = group % Shape::ShareN, group_k = group / Shape::ShareN;
    const int word = warp * Words, tile = group_n * Words + word / 4, first_word = word % 4;  // of the block, and of its tile
    const int from_left = tile * marlin_n + first_word * 16;  // its first column
    const int64 own_tile = column / marlin_n + tile;
    const bool inside = own_tile * marlin_n < p.padded_n;  // of columns that do not exist nothing is read
    const int weight_at = tile / 2 * Shape::box_bytes + tile % 2 * marlin_tile_bytes + lane * 16 + first_word * 4 +
                          group_k * (int4_run / marlin_k * 2 * marlin_tile_bytes);
    const int own_group = group_k * (Factors::groups / Shape::ShareK);  // of a stage's: its first row's
    const int scales_at = own_group * Factors::scale_bytes + 2 * (tile * marlin_n + lane / 4 * 8 + 2 * first_word);
    const int zeros_at = Factors::zeros + own_group * Factors::zero_bytes + 4 * (tile * 8 + lane / 4);

    // Of the last stage a group may have no rows: then no scale may show, and it is not waited for.
    const int end = min(last, (p.k - group_k * int4_run + BK - 1) / BK);

    f32 sums[Words][Tokens / 2] = {}, totals[Words][Tokens / 2] = {};
    Vec<Act, 2 * Words> scales = {};  // of the two columns of each word
    unsigned zero_points = 0;  // of the tile: a lane's eight
    if (ZeroPoint && Group == 0 && inside)  // the same for all of K
      zero_points = static_cast<const unsigned*>(p.weight_zero_point)[8 * own_tile + lane / 4];
    unsigned a[2][Words][4];  // one is made while the other is multiplied
    RingPlace<Stages> before = at;
    for (int part = first; part < end; ++part, at.advance()) {
      const unsigned char* const stage = shared + at.stage * Shape::stage_bytes;
      const ptx::MatrixDescriptor act = describe_tile(stage + Shape::weight_bytes + group_k * Shape::line_bytes);
      ring.wait_full(at);
#pragma unroll
      for (int step = 0; step < int4_run / marlin_k; ++step) {
        const auto words = *reinterpret_cast<const Vec<unsigned, Words>*>(stage + weight_at + step * 2 * marlin_tile_bytes);
        if (Group != 0 && step % fold_steps == 0) {
          const unsigned char* const factors = all_factors + at.stage * Factors::bytes;
          const int group = step / fold_steps;
          scales = *reinterpret_cast<const Vec<Act, 2 * Words>*>(factors + scales_at + group * Factors::scale_bytes);
          if (ZeroPoint)
            zero_points = *reinterpret_cast<const unsigned*>(factors + zeros_at + group * Factors::zero_bytes);
        }
        if (step > 0 || Group == 0) {  // after a fold, nothing is under way
          ptx::wgmma_wait_group<1>();  // the fragments of the step before the last are free
          if (Group == 0 && step == 1) {  // not a branch on `part`: ptxas lets no wgmma be under way around one
            __syncwarp();  // all lanes have their words
            ring.release(before, part > first ? lane : 32);
            before = at;
          }
        }
        unsigned(&fragments)[Words][4] = a[step % 2];
#pragma unroll
        for (int v = 0; v < Words; ++v) {
          ptx::wgmma_fence_operand(fragments[v]);
          Fragment<Act>(ZeroPoint ? zeros_of(zero_points, first_word + v) : symmetric_zeros).of(words.item[v], fragments[v]);
          ptx::wgmma_fence_operand(fragments[v]);
          ptx::wgmma_fence_operand(sums[v]);
        }
        ptx::wgmma_fence();
#pragma unroll
        for (int v = 0; v < Words; ++v)
          ptx::wgmma_registers<act_element<Act>, act_element<Act>, Tokens>(sums[v], fragments[v], act.advanced(32 * step),
                                                                            Group == 0 || step % fold_steps != 0);
        ptx::wgmma_commit_group();
        if (Group != 0 && step % fold_steps == fold_steps - 1) {
          ptx::wgmma_wait_group<0>();
          if (step == int4_run / marlin_k - 1) {
            __syncwarp();
            ring.release(at, lane);
          }
#pragma unroll
          for (int v = 0; v < Words; ++v) {
            ptx::wgmma_fence_operand(sums[v]);
#pragma unroll
            for (int i = 0; i < Tokens / 2; ++i)
              totals[v][i] = __fmaf_rn(sums[v][i], widen<f32>(scales.item[2 * v + i / 2 % 2]), totals[v][i]);
          }
        }
      }
    }
    if constexpr (Group == 0) {
      ptx::wgmma_wait_group<0>();
      const Act* const columns = static_cast<const Act*>(p.weight_scale);
#pragma unroll
      for (int v = 0; v < Words; ++v) {
        ptx::wgmma_fence_operand(sums[v]);
        if (inside && first < end) {
          const int64 first_row = column + from_left + 16 * v + lane / 4;
          const f32 scale[2] = {widen<f32>(columns[scale_place(first_row)]),
                                widen<f32>(columns[scale_place(first_row + 8)])};
#pragma unroll
          for (int i = 0; i < Tokens / 2; ++i) totals[v][i] = multiply(sums[v][i], scale[i / 2 % 2]);
        }
      }
    }

    ptx::bar_sync(1, multipliers);  // the ring is done with, and takes the totals
#pragma unroll
    for (int v = 0; v < Words; ++v)
#pragma unroll
      for (int i = 0; i < Tokens / 8; ++i) {
        const f32 four[4] = {totals[v][4 * i], totals[v][4 * i + 1], totals[v][4 * i + 2], totals[v][4 * i + 3]};
        all.put(group_k, 8 * i, from_left + 16 * v, lane, four);
      }
  }

  meet<Cluster>();  // from here to the second barrier, the blocks of a cluster have each other's totals
  if (threadIdx.x >= producers) {
    constexpr int share = Tokens / Cluster;  // tokens that this block finishes
    const int top = rank * share, rows = left(static_cast<int>(min(p.m - row - top, int64(share))), share);
    finish_tokens<Act, Out, BN, multipliers>(p, row + top, rows, column, threadIdx.x - producers, [&](int i, int j) {
      Vec<f32, 4> sum;
#pragma unroll 4
      for (int from = 0; from < Cluster; ++from)
#pragma unroll
        for (int n = 0; n < Shape::ShareK; ++n) {
          const Vec<f32, 4> some = load_from<Cluster, 4>(&all.part[n][top + i][j], from);
#pragma unroll
          for (int c = 0; c < 4; ++c) sum.item[c] = from + n ? add(sum.item[c], some.item[c]) : some.item[c];
        }
      return sum;
    });
  }
  if constexpr (Cluster > 1) meet<Cluster>();  // nobody returns whose totals are still read
}

}  // namespace qp
