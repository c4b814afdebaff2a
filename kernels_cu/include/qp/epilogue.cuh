// The epilogue of the W8A8 linears, as docs/numerics.md states it: from exact sums to outputs, every operation rounded by
// itself. quantplan/reference/epilogue.py holds the same rules in NumPy.
#pragma once

#include <qp/quantize.cuh>

namespace qp {

enum class Activation : int { identity, relu, gelu_tanh, gelu_erf, silu };

__device__ inline f32 add(f32 a, f32 b) { return __fadd_rn(a, b); }
__device__ inline f64 add(f64 a, f64 b) { return __dadd_rn(a, b); }
__device__ inline f32 exponential(f32 x) { return expf(x); }
__device__ inline f64 exponential(f64 x) { return exp(x); }
__device__ inline f32 erf_complement(f32 x) { return erfcf(x); }
__device__ inline f64 erf_complement(f64 x) { return erfc(x); }

// x / (1 + exp(−t)) without overflow: the exponential of −|t| is at most 1.
template <class W>
__device__ inline W times_logistic(W x, W t) {
  const bool negative = t < W(0);
  const W small = exponential(negative ? t : -t);
  return divide(negative ? x * small : x, W(1) + small);
}

// GELU and SiLU are within a few roundings of the exact values, which their error bound allows for; the others are exact.
template <Activation A, class W>
__device__ inline W activate(W y) {
  if constexpr (A == Activation::identity) return y;
  if constexpr (A == Activation::relu) return y > W(0) || is_nan(y) ? y : W(0);
  if (!is_finite(y) && y < W(0)) return W(-0.0);
  if constexpr (A == Activation::gelu_tanh) {  // (1 + tanh t) / 2 is the logistic function of 2t
    constexpr W slope = W(1.5957691216057308), cubic = W(0.044715);  // 2·√(2/π)
    return times_logistic(y, slope * (y + cubic * (y * y * y)));
  } else if constexpr (A == Activation::gelu_erf) {
    constexpr W root = W(0.7071067811865476);  // √½
    return W(0.5) * y * erf_complement(-y * root);
  } else {
    return times_logistic(y, y);
  }
}

// An s8 output is symmetric, and requantized with a scale; NaN becomes 0.
constexpr int output_code_max = 127;

template <class Out, class W>
__device__ inline Out to_output(W y, f32 output_scale) {
  if constexpr (same<Out, s8>) {
    return static_cast<s8>(Codes<f32>(-output_code_max, output_code_max, 0)(divide(y, output_scale)));
  } else {
    return Round<Out>::from(y);
  }
}

struct LinearParams {
  const void* act_q;
  const void* weight_q;
  const void* act_scale;  // null: host_act_scale
  const void* weight_scale;
  const int* act_zero_point;  // null: host_act_zero_point
  const void* bias;  // null: none
  const f32* output_scale;  // null: host_output_scale
  void* output;
  int64 m, n, act_stride, weight_stride, output_stride;
  int64 act_scale_stride, weight_scale_stride;  // 0: one scale for all
  double host_act_scale;
  int k, host_act_zero_point;
  f32 host_output_scale;
  int act_aligned, weight_aligned, output_aligned;  // whether every row is aligned to 16 bytes
};

// Finishes a tile of sums that lies in shared memory: Split partial sums of [Rows][Columns] in rows of `pitch`, and the
// weight's row sums, which zero points are multiplied with. A thread takes 16 bytes of output, always in the same columns.
template <class Out, Activation A, bool ZeroPoint, int Rows, int Columns, int Split, int Threads>
struct LinearEpilogue {
  static constexpr int pitch = Columns + 8;  // a warp's pairs of sums go to different banks
  static constexpr int bytes = Split * (Rows * pitch + Columns) * 4;

  int (*const sums)[Rows][pitch];
  int (*const weight_sums)[Columns];

  __device__ explicit LinearEpilogue(void* shared)
      : sums(static_cast<int (*)[Rows][pitch]>(shared)),
        weight_sums(reinterpret_cast<int (*)[Columns]>(static_cast<int*>(shared) + Split * Rows * pitch)) {}

  __device__ void finish(const LinearParams& p, int64 row, int64 column) const {
    using W = wide<Out>;
    constexpr int V = 16 / sizeof(Out), across = Columns / V, piece = V < 4 ? V : 4;
    static_assert(Threads % across == 0, "a thread stays in its columns");
    const int first = threadIdx.x % across * V, count = left(static_cast<int>(min(p.n - column, int64(Columns))) - first, V);
    if (count == 0) return;

    W weight_scale[V], bias[V];
    int weight_sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int64 at = column + first + (i < count ? i : 0);
      weight_scale[i] = static_cast<const W*>(p.weight_scale)[at * p.weight_scale_stride];
      bias[i] = p.bias ? static_cast<const W*>(p.bias)[at] : W(0);
      weight_sum[i] = 0;
      if constexpr (ZeroPoint) {
        for (int part = 0; part < Split; ++part) weight_sum[i] += weight_sums[part][first + i];
      }
    }
    f32 output_scale = p.host_output_scale;
    if (same<Out, s8> && p.output_scale) output_scale = *p.output_scale;

    const int rows = static_cast<int>(min(p.m - row, int64(Rows)));
    for (int i = threadIdx.x / across; i < rows; i += Threads / across) {
      W act_scale = W(p.host_act_scale);
      if (p.act_scale) act_scale = static_cast<const W*>(p.act_scale)[(row + i) * p.act_scale_stride];
      unsigned zero_point = 0;
      if constexpr (ZeroPoint)
        zero_point = static_cast<unsigned>(p.act_zero_point ? p.act_zero_point[row + i] : p.host_act_zero_point);
      unsigned sum[V] = {};  // modulo 2³²
#pragma unroll
      for (int part = 0; part < Split; ++part)
#pragma unroll
        for (int j = 0; j < V; j += piece) {
          const Vec<unsigned, piece> some = *reinterpret_cast<const Vec<unsigned, piece>*>(&sums[part][i][first + j]);
#pragma unroll
          for (int n = 0; n < piece; ++n) sum[j + n] += some.item[n];
        }
      Vec<Out, V> result;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if constexpr (ZeroPoint) sum[j] -= zero_point * static_cast<unsigned>(weight_sum[j]);
        W y = multiply(static_cast<W>(static_cast<int>(sum[j])), multiply(act_scale, weight_scale[j]));
        if (p.bias) y = add(y, bias[j]);
        result.item[j] = to_output<Out>(activate<A>(y), output_scale);
      }
      Out* const output = static_cast<Out*>(p.output) + (row + i) * p.output_stride + column + first;
      if (p.output_aligned) {
        store<Out, V>(output, result, count);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (j < count) output[j] = result.item[j];
      }
    }
  }
};

}  // namespace qp
