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

// Outputs that a thread makes at once, 16 bytes of them, and the sums that it asks for at once.
template <class Out> constexpr int outputs_at_once = 16 / sizeof(Out);
template <class Out> constexpr int sums_at_once = outputs_at_once<Out> < 4 ? outputs_at_once<Out> : 4;

// Makes outputs of sums: `rows` rows of a tile of Columns columns, which begins at (row, column). Threads lie over it row
// by row, and each stays in its columns. `sums(i, j)` returns the sums of row i of the tile from column j on, modulo 2³²;
// `weight_sum(j)` returns Σ_k weight_q of column j, and is asked only where there are zero points.
template <class Out, Activation A, bool ZeroPoint, int Columns, int Threads, class Sums, class WeightSum>
__device__ inline void finish_tile(const LinearParams& p, int64 row, int rows, int64 column, int thread,
                                   const Sums& sums, const WeightSum& weight_sum) {
  using W = wide<Out>;
  constexpr int V = outputs_at_once<Out>, across = Columns / V, piece = sums_at_once<Out>;
  static_assert(Columns % V == 0 && Threads % across == 0, "a thread stays in its columns");
  const int first = thread % across * V, count = left(static_cast<int>(min(p.n - column, int64(Columns))) - first, V);
  if (count == 0) return;

  W weight_scale[V], bias[V];
  unsigned weight[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const int64 at = column + first + (j < count ? j : 0);
    weight_scale[j] = static_cast<const W*>(p.weight_scale)[at * p.weight_scale_stride];
    bias[j] = p.bias ? static_cast<const W*>(p.bias)[at] : W(0);
    weight[j] = ZeroPoint ? static_cast<unsigned>(weight_sum(first + j)) : 0;
  }
  f32 output_scale = p.host_output_scale;
  if (same<Out, s8> && p.output_scale) output_scale = *p.output_scale;

  for (int i = thread / across; i < rows; i += Threads / across) {
    W act_scale = W(p.host_act_scale);
    if (p.act_scale) act_scale = static_cast<const W*>(p.act_scale)[(row + i) * p.act_scale_stride];
    unsigned zero_point = 0;
    if constexpr (ZeroPoint)
      zero_point = static_cast<unsigned>(p.act_zero_point ? p.act_zero_point[row + i] : p.host_act_zero_point);
    Vec<Out, V> result;
#pragma unroll
    for (int j = 0; j < V; j += piece) {
      const Vec<unsigned, piece> some = sums(i, first + j);
#pragma unroll
      for (int n = 0; n < piece; ++n) {
        const int sum = static_cast<int>(some.item[n] - zero_point * weight[j + n]);
        W y = multiply(static_cast<W>(sum), multiply(act_scale, weight_scale[j + n]));
        if (p.bias) y = add(y, bias[j + n]);
        result.item[j + n] = to_output<Out>(activate<A>(y), output_scale);
      }
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

// Sums in shared memory: Parts partial ones of each of Rows x Columns. Rows lie so that a warp's pairs of sums, as mma.sync
// and wgmma leave them in registers, go to different banks.
template <int Rows, int Columns, int Parts = 1>
struct SumsInShared {
  static constexpr int pitch = Columns + 8, bytes = Parts * Rows * pitch * 4;

  int (*const part)[Rows][pitch];

  __device__ explicit SumsInShared(void* shared) : part(static_cast<int (*)[Rows][pitch]>(shared)) {}

  // Where a lane has its two neighbouring sums: those of row lane/4 and column 2(lane%4), counted from (row, column).
  __device__ void put(int n, int row, int column, int lane, int first, int second) const {
    *reinterpret_cast<Vec<int, 2>*>(&part[n][row + lane / 4][column + lane % 4 * 2]) = {first, second};
  }
  template <int count>
  __device__ Vec<unsigned, count> total(int row, int column) const {
    Vec<unsigned, count> sum = {};
#pragma unroll
    for (int n = 0; n < Parts; ++n) {
      const Vec<unsigned, count> some = *reinterpret_cast<const Vec<unsigned, count>*>(&part[n][row][column]);
#pragma unroll
      for (int j = 0; j < count; ++j) sum.item[j] += some.item[j];
    }
    return sum;
  }
};

// The sum of four s8, and of what was summed before.
__device__ inline int add_bytes(unsigned four, int sum) { return __dp4a(static_cast<int>(four), 0x01010101, sum); }

}  // namespace qp
