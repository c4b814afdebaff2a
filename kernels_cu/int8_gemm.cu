// W8A8 linears with mma.sync, for every GPU from sm_80 on:
//
//   output[m, n] = act(act_scale[m] · weight_scale[n] · Σ_k (act_q[m, k] − act_zero_point[m]) · weight_q[n, k] + bias[n])
//
//   act_q         M rows of K bytes, s8 or u8             weight_q   N rows of K bytes, s8
//   output        M rows of N elements                    rows lie any distance apart
//
// A block makes a tile of the output, in the way that mma_tile.cuh draws. Sums are exact integers modulo 2³², so neither
// tile nor split shows in the result.
//
// A zero point needs Σ_k weight_q[n, k]: the warps of the tile's first rows add up the fragments that they have at hand.
#pragma once

#include <qp/epilogue.cuh>
#include <qp/mma_tile.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/mma.cuh>

namespace qp {

template <class Act>
__device__ inline void multiply_add(int (&sums)[4], const unsigned (&act)[4], const unsigned (&weight)[2]) {
  if constexpr (same<Act, u8>) ptx::mma_m16n8k32_u8_s8(sums, act, weight);
  else ptx::mma_m16n8k32_s8_s8(sums, act, weight);
}

template <class Act, class Out, Activation A, bool ZeroPoint, class Shape>
__device__ void int8_gemm(const LinearParams& p) {
  constexpr int BM = Shape::BM, BN = Shape::BN, tall = Shape::tall, broad = Shape::broad;
  unsigned char* const shared = ptx::shared_memory();
  const MmaBlock<Shape> block(p, shared);
  int sums[tall][broad][4] = {};
  int weight_sums[broad] = {};
  block.along_k([](int) {},
                [&](const Fragments<Shape>& now, int) {
#pragma unroll
                  for (int i = 0; i < tall; ++i)
#pragma unroll
                    for (int j = 0; j < broad; ++j) multiply_add<Act>(sums[i][j], now.act[i], now.weight[j]);
                  if constexpr (ZeroPoint) {
                    if (block.warp_m == 0) {
#pragma unroll
                      for (int j = 0; j < broad; ++j)
                        weight_sums[j] = add_bytes(now.weight[j][1], add_bytes(now.weight[j][0], weight_sums[j]));
                    }
                  }
                },
                [] {});

  TileFinisher<Out, A, ZeroPoint, BN, Shape::threads> finisher(
      p, block.row, static_cast<int>(min(p.m - block.row, int64(BM))), block.column, threadIdx.x);

  block.leave_ring();  // which takes the sums
  const SumsInShared<unsigned, BM, BN, Shape::WarpsK> tile(shared);
  int (*const all_weight_sums)[BN] = reinterpret_cast<int (*)[BN]>(shared + tile.bytes);
  block.put(tile, sums);
  if constexpr (ZeroPoint) {
    if (block.warp_m == 0) {
#pragma unroll
      for (int j = 0; j < broad; ++j) {
        int sum = weight_sums[j];  // of the lane's bytes; the other bytes of the row are in the lanes beside it
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (block.lane % 4 == 0) all_weight_sums[block.warp_k][block.from_left + 8 * j + block.lane / 4] = sum;
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
