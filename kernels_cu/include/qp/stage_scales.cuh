// Scales that change along K, on their way through a ring: warps of their own load them, widen them, and leave them beside a
// stage's operands, where each thread that multiplies finds those of its sums.
//
// A thread has sums of up to 64 columns. If it loaded scales itself, it would wait for them between two instructions, with
// nothing else to do; from shared memory they come while the tensor cores work.
#pragma once

#include <qp/fp8_gemm.cuh>
#include <qp/pipeline.cuh>
#include <qp/wgmma_tile.cuh>

namespace qp {

template <Scaling S> constexpr bool staged = S != Scaling::whole;
template <Scaling S> constexpr int scale_warps = staged<S> ? 2 : 0;  // one for each operand; each makes a stage full, too
template <Scaling S> constexpr int scaled_blocks = wgmma_bk / scaled_depth<S>;  // of K, in a tile

template <Scaling S, int Acts, int Weights>
struct alignas(16) StageScales {
  static constexpr int acts = Acts, weights = S == Scaling::block ? 1 : Weights;

  f32 act[scaled_blocks<S>][acts], weight[scaled_blocks<S>][weights];
};

// A warp's scales of so many rows and a tile of K, between memory and a stage. Lanes have neighbouring rows. The scales of
// several tiles of K are in one sector, so that these loads, unlike others, leave what they brought in L1.
template <Scaling S, int Rows>
struct ScalesUnderWay {
  using T = scale_element<S>;
  static constexpr int V = scaled_blocks<S>, each = (Rows + 31) / 32;

  Chunk<T, V> chunk[each];

  // Of rows from `row` on, of which there are `rows` in all; others have scales of some kind, which nothing depends on.
  __device__ ScalesUnderWay(const void* scales, int64 stride, int64 row, int64 rows, int part, int k, int lane) {
    const int count = left((k + scaled_depth<S> - 1) / scaled_depth<S> - part * V, V);
    const T* const first = static_cast<const T*>(scales) + (row + lane) * stride + part * V;
    const bool aligned = V == 1 || (reinterpret_cast<unsigned long long>(scales) | stride) % V == 0;
    const auto there = [&](int i) { return 32 * i + lane < Rows && row + 32 * i + lane < rows; };
    if (aligned && count == V) {
#pragma unroll
      for (int i = 0; i < each; ++i)
        chunk[i] = there(i) ? *reinterpret_cast<const Chunk<T, V>*>(first + 32 * i * stride) : Chunk<T, V>{};
    } else {
#pragma unroll
      for (int i = 0; i < each; ++i) {
        Vec<T, V> some = {};
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (j < count && there(i)) some.item[j] = first[32 * i * stride + j];
        chunk[i] = reinterpret<Chunk<T, V>>(some);
      }
    }
  }
  __device__ void store(f32 (&stage)[V][Rows], int lane) const {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const Vec<f32, V> wide = widen_all<f32, T, V>(chunk[i]);
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (32 * i + lane < Rows) stage[j][32 * i + lane] = wide.item[j];
    }
  }
};

// Brings the scales of one operand and a part of K, of rows from `row` on: `in_stage(stage)` is where they belong. By one
// warp, whose loads begin before the stage is empty.
template <Scaling S, int Rows, int Stages, int Cluster, class InStage>
__device__ inline void bring_scales(const void* scales, int64 stride, int64 row, int64 rows, int k,
                                    const Ring<Stages, Cluster>& ring, RingPlace<Stages>& at, int first, int last, int lane,
                                    const InStage& in_stage) {
  for (int part = first; part < last; ++part, at.advance()) {
    const ScalesUnderWay<S, Rows> some(scales, stride, row, rows, part, k, lane);
    ring.wait_empty(at);
    some.store(in_stage(at.stage), lane);
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&ring.full[at.stage]);
  }
}

// The same of both operands, by a warp for each: 0 for the activations, 1 for the weight.
template <Scaling S, int Acts, int Weights, int Stages, int Cluster>
__device__ inline void bring_scales(const Fp8GemmParams& p, StageScales<S, Acts, Weights>* stages,
                                    const Ring<Stages, Cluster>& ring, RingPlace<Stages>& at, int64 row, int64 column,
                                    int first, int last, int warp, int lane) {
  using Stage = StageScales<S, Acts, Weights>;
  if (warp == 0)
    bring_scales<S, Stage::acts>(p.act_block_scale, p.act_block_stride, row, p.m, p.k, ring, at, first, last, lane,
                                 [&](int stage) -> auto& { return stages[stage].act; });
  else if (warp == 1)
    bring_scales<S, Stage::weights>(p.weight_block_scale, p.weight_block_stride,
                                    S == Scaling::block ? column / rows_of_a_block : column, p.n, p.k, ring, at, first, last,
                                    lane, [&](int stage) -> auto& { return stages[stage].weight; });
}

}  // namespace qp
