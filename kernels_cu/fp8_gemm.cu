// FP8 GEMMs with mma.sync, for every GPU from sm_80 on:
//
//   output[m, n] = act(Σ_b act_scale_b[m] · weight_scale_b[n] · Σ_{k in b} act_q[m, k] · weight_q[n, k] + bias[n])
//
//   act_q         M rows of K bytes, e4m3 or e5m2         weight_q   N rows of K bytes, e4m3 or e5m2
//   output        M rows of N elements                    rows lie any distance apart
//
// A block makes a tile of the output, in the way that mma_tile.cuh draws. Where mma.sync has no FP8, or only pretends to,
// fragments become f16: exactly, e5m2 as the upper half of an f16, and e4m3 as 2⁻⁸ of itself, whose bits it has.
//
// Tensor cores keep few bits of sums, so these leave them at least every 128 of K: a warp adds them in f32, each times its
// block's scale where scales change along K. Fast kernels leave all sums where they are. What the WarpsK groups of warps
// have summed is added in their order.
#pragma once

#include <qp/fp8_gemm.cuh>
#include <qp/mma_tile.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/mma.cuh>

namespace qp {

enum class Multiplier : int { fp8, f16 };  // what mma.sync multiplies

// What a sum of products of fragments has to be multiplied with.
template <Multiplier M, class T> constexpr f32 restored = M == Multiplier::f16 && same<T, e4m3> ? 256.0f : 1.0f;

// Bytes 1 and 3 of four as f16s; NaN stays one, which in e4m3 only a full magnitude is.
template <class T>
__device__ inline unsigned as_f16(unsigned x) {
  if constexpr (same<T, e5m2>) {
    return x & 0xff00ff00u;
  } else {
    const unsigned magnitude = x & 0x7f007f00u, nan = (magnitude + 0x01000100u) & 0x80008000u;
    return (x & 0x80008000u) | magnitude >> 1 | nan >> 1;
  }
}

// Multiplies fragments of 32 of K. For f16 they are two of 16: each takes even bytes for its first eight columns, and odd
// bytes for the others, of both operands alike.
template <Multiplier M, class Act, class Weight>
__device__ inline void multiply_add(f32 (&sums)[4], const unsigned (&act)[4], const unsigned (&weight)[2]) {
  if constexpr (M == Multiplier::f16) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned *const a = act + 2 * half, b = weight[half];
      const unsigned a16[4] = {as_f16<Act>(a[0] << 8), as_f16<Act>(a[1] << 8), as_f16<Act>(a[0]), as_f16<Act>(a[1])};
      const unsigned b16[2] = {as_f16<Weight>(b << 8), as_f16<Weight>(b)};
      ptx::mma_m16n8k16_f16_f16(sums, a16, b16);
    }
  } else if constexpr (same<Act, e4m3>) {
    if constexpr (same<Weight, e4m3>) ptx::mma_m16n8k32_e4m3_e4m3(sums, act, weight);
    else ptx::mma_m16n8k32_e4m3_e5m2(sums, act, weight);
  } else {
    if constexpr (same<Weight, e4m3>) ptx::mma_m16n8k32_e5m2_e4m3(sums, act, weight);
    else ptx::mma_m16n8k32_e5m2_e5m2(sums, act, weight);
  }
}

template <class Act, class Weight, class Out, Activation A, Scaling S, bool Fast, Multiplier M, class Shape>
__device__ void fp8_gemm(const Fp8GemmParams& p) {
  constexpr int BM = Shape::BM, BN = Shape::BN, tall = Shape::tall, broad = Shape::broad;
  constexpr int own_depth = 32 * Shape::steps;  // of a tile of K, what a warp multiplies
  static_assert(rows_of_a_block % BN == 0, "the columns of a tile share their block scales");
  static_assert(own_depth <= 128, "what a warp multiplies of a tile leaves the tensor cores in time");
  static_assert(S != Scaling::block || own_depth == 128, "a block is summed, then scaled: its scale may be infinite");
  static_assert(!Fast || S == Scaling::whole, "sums that are scaled have left the tensor cores");
  unsigned char* const shared = ptx::shared_memory();
  const MmaBlock<Shape> block(p, shared);
  const int64 row = block.row + block.top + block.lane / 4, column = block.column + block.from_left + block.lane % 4 * 2;

  f32 sums[tall][broad][4] = {}, totals[tall][broad][4] = {};
  ThreadScales<S, 2 * tall, 2 * broad> scales;
  const auto promote = [&] {
#pragma unroll
    for (int i = 0; i < tall; ++i)
#pragma unroll
      for (int j = 0; j < broad; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          f32 sum = multiply(sums[i][j][e], restored<M, Act> * restored<M, Weight>);
          if constexpr (S != Scaling::whole) sum = multiply(sum, scales.of(4 * j + e, i));
          totals[i][j][e] = add(totals[i][j][e], sum);
          sums[i][j][e] = 0;
        }
  };

  int first_k = 0;  // of a tile, that the warp multiplies
  block.along_k(
      [&](int part) {
        first_k = part * Shape::BK + block.warp_k * own_depth;
        if constexpr (S == Scaling::block) scales.load(p, row, column, first_k / scaled_depth<S>);
      },
      [&](const Fragments<Shape>& now, int step) {
#pragma unroll
        for (int i = 0; i < tall; ++i)
#pragma unroll
          for (int j = 0; j < broad; ++j) multiply_add<M, Act, Weight>(sums[i][j], now.act[i], now.weight[j]);
        if constexpr (S == Scaling::mx) {
          scales.load(p, row, column, first_k / scaled_depth<S> + step);  // there are too many to be held for long
          promote();
        }
      },
      [&] {
        if constexpr (!Fast && S != Scaling::mx) promote();
      });
  if constexpr (Fast) promote();

  TileFinisher<Out, A, false, BN, Shape::threads, Fp8GemmParams> finisher(
      p, block.row, static_cast<int>(min(p.m - block.row, int64(BM))), block.column, threadIdx.x);
  block.leave_ring();  // which takes the sums
  const SumsInShared<f32, BM, BN, Shape::WarpsK> tile(shared);
  block.put(tile, totals);
  __syncthreads();
  finisher.finish([&](int i, int j) { return tile.template total<sums_at_once<Out>>(i, j); }, [](int) { return 0; });
}

}  // namespace qp
