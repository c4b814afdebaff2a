// What the FP8 GEMMs share: their parameters, and the scales that change along K.
#pragma once

#include <qp/epilogue.cuh>

namespace qp {

// What of K has one scale: all of it, 128 (and as many rows of the weight), or 32 (scales are powers of two).
enum class Scaling : int { whole, block, mx };
template <Scaling S> constexpr int scaled_depth = S == Scaling::mx ? 32 : 128;
constexpr int rows_of_a_block = 128;

struct Fp8GemmParams {
  const void* act_q;
  const void* weight_q;
  const f32* act_scale;  // of rows, for all of K; null: host_act_scale, which is 1 where scales change along K
  const f32* weight_scale;  // of columns; null: host_weight_scale
  const void* act_block_scale;  // where they change along K
  const void* weight_block_scale;
  const f32* bias;  // null: none
  const f32* output_scale;  // null: host_output_scale
  void* output;
  int64 m, n, act_stride, weight_stride, output_stride;
  int64 act_scale_stride, weight_scale_stride;  // 0: one scale for all
  int64 act_block_stride, weight_block_stride;  // from the scales of a row to the next row's
  int k;
  f32 host_act_scale, host_weight_scale, host_output_scale;
  int act_aligned, weight_aligned, output_aligned;  // whether every row is aligned to 16 bytes
  int mapped;  // whether tensor maps describe act_q and weight_q
};

template <class W, bool ZeroPoint>
__device__ inline RowFactor<W> row_factor(const Fp8GemmParams& p, int64 row) {
  return {p.act_scale ? p.act_scale[row * p.act_scale_stride] : p.host_act_scale, 0};
}
template <class W>
__device__ inline ColumnFactor<W> column_factor(const Fp8GemmParams& p, int64 column) {
  return {p.weight_scale ? p.weight_scale[column * p.weight_scale_stride] : p.host_weight_scale,
          p.bias ? p.bias[column] : W(-0.0)};
}

template <Scaling S> struct ScaleElementOf { using type = f32; };
template <> struct ScaleElementOf<Scaling::mx> { using type = e8m0; };
template <Scaling S> using scale_element = typename ScaleElementOf<S>::type;  // of scales that change along K

// The scale of a row's block. There is none beyond the last row, which is stored nowhere, and beyond the last block of a
// tile of K, which holds zeros.
template <Scaling S>
__device__ inline f32 block_scale(const void* scales, int64 stride, bool there, int64 row, int block) {
  return there ? widen<f32>(static_cast<const scale_element<S>*>(scales)[row * stride + block]) : 0;
}

// Scales for one block of K of the sums that a thread holds, as mma.sync and wgmma leave them: two neighbours in every
// eighth row of the instruction's A (`Tall` of them) and in every eighth column and the next one (`Across` of them). Of the
// output those are rows and columns, or with Swapped operands columns and rows.
template <Scaling S, int Tall, int Across, bool Swapped = false>
struct ThreadScales {
  static constexpr int acts = Swapped ? Across : Tall;
  static constexpr int weights = S == Scaling::block ? 1 : Swapped ? Tall : Across;

  f32 act[acts], weight[weights];

  // From memory. The thread's sums begin at (row, column) of the output.
  __device__ void load(const Fp8GemmParams& p, int64 row, int64 column, int block) {
    static_assert(!Swapped, "kernels with mma.sync swap nothing");
    const bool there = block * scaled_depth<S> < p.k;
#pragma unroll
    for (int i = 0; i < acts; ++i) {
      const int64 at = row + 8 * i;
      act[i] = block_scale<S>(p.act_block_scale, p.act_block_stride, there && at < p.m, at, block);
    }
#pragma unroll
    for (int i = 0; i < weights; ++i) {
      const int64 at = column + 8 * (i / 2) + i % 2;
      const int64 of_at = S == Scaling::block ? at / rows_of_a_block : at;
      weight[i] = block_scale<S>(p.weight_block_scale, p.weight_block_stride, there && at < p.n, of_at, block);
    }
  }
  // From the StageScales of a tile of K. The thread's sums begin at (row, column) of the tile.
  template <class Stage>
  __device__ void take(const Stage& stage, int row, int column, int block) {
    pick<Swapped>(act, &stage.act[block][row]);
    if constexpr (S == Scaling::block) weight[0] = stage.weight[block][0];
    else pick<!Swapped>(weight, &stage.weight[block][column]);
  }
  // Of sum `i` of the 16 rows that are the `n`-th.
  __device__ f32 of(int i, int n = 0) const {
    const int down = 2 * n + i / 2 % 2, across = i / 4 * 2 + i % 2;
    return multiply(act[Swapped ? across : down], weight[S == Scaling::block ? 0 : Swapped ? down : across]);
  }

 private:
  template <bool Pairs, int count>
  __device__ static void pick(f32 (&scales)[count], const f32* shared) {
#pragma unroll
    for (int i = 0; i < count; i += Pairs ? 2 : 1) {
      if constexpr (Pairs) {
        const auto two = *reinterpret_cast<const Vec<f32, 2>*>(shared + 4 * i);
        scales[i] = two.item[0], scales[i + 1] = two.item[1];
      } else {
        scales[i] = shared[8 * i];
      }
    }
  }
};

}  // namespace qp
