// The epilogue of the 8-bit GEMMs, as docs/numerics.md states it: from sums to outputs, every operation rounded by itself.
// quantplan/reference/epilogue.py holds the same rules in NumPy.
#pragma once

#include <qp/ptx/approximate.cuh>
#include <qp/quantize.cuh>

namespace qp {

enum class Activation : int { identity, relu, gelu_tanh, gelu_erf, silu };

__device__ inline unsigned add(unsigned a, unsigned b) { return a + b; }
__device__ inline f32 add(f32 a, f32 b) { return __fadd_rn(a, b); }
__device__ inline f64 add(f64 a, f64 b) { return __dadd_rn(a, b); }
__device__ inline f32 erf_complement(f32 x) { return erfcf(x); }
__device__ inline f64 erf_complement(f64 x) { return erfc(x); }

// x / (1 + exp(−t)) without overflow: the exponential of −|t| is at most 1.
__device__ inline f64 times_logistic(f64 x, f64 t) {
  const f64 small = exp(-fabs(t));
  return divide(t < 0.0 ? multiply(x, small) : x, add(1.0, small));
}
// The same by approximations, and without a branch. The error bound is relative to |x|, of which an exponential that is
// flushed to zero would have been nothing.
__device__ inline f32 times_logistic(f32 x, f32 t) {
  const f32 small = ptx::ex2_approx(multiply(fabsf(t), -1.4426950408889634f));  // 1 / ln 2
  return multiply(t < 0.0f ? multiply(x, small) : x, ptx::rcp_approx(add(1.0f, small)));
}

// GELU and SiLU are within a few roundings of the exact values, which their error bound allows for; the others are exact.
template <Activation A, class W>
__device__ inline W activate(W y) {
  if constexpr (A == Activation::identity) return y;
  if constexpr (A == Activation::relu) return y > W(0) || is_nan(y) ? y : W(0);
  W result;
  if constexpr (A == Activation::gelu_tanh) {  // (1 + tanh t) / 2 is the logistic function of 2t
    constexpr W slope = W(1.5957691216057308), cubic = W(0.044715);  // 2·√(2/π)
    result = times_logistic(y, slope * (y + cubic * (y * y * y)));
  } else if constexpr (A == Activation::gelu_erf) {
    constexpr W root = W(0.7071067811865476);  // √½
    result = W(0.5) * y * erf_complement(-y * root);
  } else {
    result = times_logistic(y, y);
  }
  return y < -largest_finite<W> ? W(-0.0) : result;
}

// An s8 output is symmetric, and requantized with a scale; NaN becomes 0.
constexpr int output_code_max = 127;

template <class Out, class W>
__device__ inline Out to_output(W y, f32 output_scale) {
  if constexpr (same<Out, s8>) {
    return static_cast<s8>(Codes<f32>(-output_code_max, output_code_max, 0)(divide(y, output_scale)));
  } else if constexpr (is_fp8<Out>) {
    const f32 scaled = divide(y, output_scale);
    Out code, unused;
    round_fp8_pair<Out, true>(scaled, scaled, code, unused);
    return code;
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

// Outputs that a thread stores at once, 16 bytes of them, and the sums that it asks for at once.
template <class Out> constexpr int outputs_at_once = 16 / sizeof(Out);
template <class Out> constexpr int sums_at_once = outputs_at_once<Out> < 4 ? outputs_at_once<Out> : 4;

// What an output takes from its row, and from its column. They come from far, and are asked for long before the sums.
template <class W>
struct RowFactor {
  W act_scale;
  unsigned zero_point;
};
template <class W>
struct ColumnFactor {
  W weight_scale, bias;  // to add −0 changes nothing
};

template <class W, bool ZeroPoint>
__device__ inline RowFactor<W> row_factor(const LinearParams& p, int64 row) {
  RowFactor<W> factor = {W(p.host_act_scale), 0};
  if (p.act_scale) factor.act_scale = static_cast<const W*>(p.act_scale)[row * p.act_scale_stride];
  if constexpr (ZeroPoint)
    factor.zero_point = static_cast<unsigned>(p.act_zero_point ? p.act_zero_point[row] : p.host_act_zero_point);
  return factor;
}
template <class W>
__device__ inline ColumnFactor<W> column_factor(const LinearParams& p, int64 column) {
  return {static_cast<const W*>(p.weight_scale)[column * p.weight_scale_stride],
          p.bias ? static_cast<const W*>(p.bias)[column] : W(-0.0)};
}
template <class Out, class Params>
__device__ inline f32 output_scale(const Params& p) {
  return (same<Out, s8> || is_fp8<Out>) && p.output_scale ? *p.output_scale : p.host_output_scale;
}

// Makes an output of a sum of products.
template <class Out, Activation A, class W>
__device__ inline Out output_of(W sum, const RowFactor<W>& row, const ColumnFactor<W>& column, f32 scale) {
  const W y = add(multiply(sum, multiply(row.act_scale, column.weight_scale)), column.bias);
  return to_output<Out>(activate<A>(y), scale);
}
// The same of Σ_k act_q·weight_q, modulo 2³², and of Σ_k weight_q, which counts only where there are zero points.
template <class Out, Activation A, class W>
__device__ inline Out output_of(unsigned sum, unsigned weight_sum, const RowFactor<W>& row, const ColumnFactor<W>& column,
                                f32 scale) {
  return output_of<Out, A>(static_cast<W>(static_cast<int>(sum - row.zero_point * weight_sum)), row, column, scale);
}
template <class Out, Activation A>
__device__ inline Out output_of(f32 sum, unsigned, const RowFactor<f32>& row, const ColumnFactor<f32>& column, f32 scale) {
  return output_of<Out, A>(sum, row, column, scale);
}

// `p` says where outputs lie, as LinearParams do.
template <class Out, class Params>
__device__ inline void store_outputs(const Params& p, int64 row, int64 column,
                                     const Vec<Out, outputs_at_once<Out>>& outputs, int count) {
  Out* const output = static_cast<Out*>(p.output) + row * p.output_stride + column;
  if (p.output_aligned) {
    store<Out, outputs_at_once<Out>>(output, outputs, count);
  } else {
#pragma unroll
    for (int j = 0; j < outputs_at_once<Out>; ++j)
      if (j < count) output[j] = outputs.item[j];
  }
}

// Makes outputs of sums that lie in shared memory: `rows` rows of a tile of Columns columns, which begins at (row, column).
// Threads lie over it row by row, and each stays in its columns, whose factors it asks for when it is made.
template <class Out, Activation A, bool ZeroPoint, int Columns, int Threads, class Params = LinearParams>
struct TileFinisher {
  using W = wide<Out>;
  static constexpr int V = outputs_at_once<Out>, across = Columns / V, piece = sums_at_once<Out>;
  static_assert(Columns % V == 0 && Threads % across == 0, "a thread stays in its columns");

  const Params& p;
  const int64 row, column;
  const int rows, top, first, count;
  ColumnFactor<W> columns[V];
  RowFactor<W> next;
  f32 scale;

  __device__ TileFinisher(const Params& params, int64 row_, int rows_, int64 column_, int thread)
      : p(params), row(row_), column(column_), rows(rows_), top(thread / across), first(thread % across * V),
        count(left(static_cast<int>(min(params.n - column_, int64(Columns))) - first, V)) {
    if (count == 0 || top >= rows) return;
#pragma unroll
    for (int j = 0; j < V; ++j) columns[j] = column_factor<W>(p, column + first + (j < count ? j : 0));
    next = row_factor<W, ZeroPoint>(p, row + top);
    scale = output_scale<Out>(p);
  }

  // `sums(i, j)` returns the sums of row i of the tile from column j on; `weight_sum(j)` returns Σ_k weight_q of column j.
  template <class Sums, class WeightSum>
  __device__ void finish(const Sums& sums, const WeightSum& weight_sum) {
    if (count == 0 || top >= rows) return;
    unsigned weight[V];
#pragma unroll
    for (int j = 0; j < V; ++j) weight[j] = ZeroPoint ? static_cast<unsigned>(weight_sum(first + j)) : 0;
    for (int i = top; i < rows; i += Threads / across) {
      const RowFactor<W> now = next;
      if (i + Threads / across < rows) next = row_factor<W, ZeroPoint>(p, row + i + Threads / across);
      Vec<Out, V> result;
#pragma unroll
      for (int j = 0; j < V; j += piece) {
        const auto some = sums(i, first + j);
#pragma unroll
        for (int n = 0; n < piece; ++n)
          result.item[j + n] = output_of<Out, A>(some.item[n], weight[j + n], now, columns[j + n], scale);
      }
      store_outputs<Out>(p, row + i, column + first, result, count);
    }
  }
};

// Sums in shared memory: Parts partial ones of each of Rows x Columns. Rows lie so that a warp's pairs of sums, as mma.sync
// and wgmma leave them in registers, go to different banks.
template <class Sum, int Rows, int Columns, int Parts = 1>
struct SumsInShared {
  static constexpr int pitch = Columns + 8, bytes = Parts * Rows * pitch * 4;

  Sum (*const part)[Rows][pitch];

  __device__ explicit SumsInShared(void* shared) : part(static_cast<Sum (*)[Rows][pitch]>(shared)) {}

  // Where a lane has its two neighbouring sums: those of row lane/4 and column 2(lane%4), counted from (row, column).
  __device__ void put(int n, int row, int column, int lane, Sum first, Sum second) const {
    *reinterpret_cast<Vec<Sum, 2>*>(&part[n][row + lane / 4][column + lane % 4 * 2]) = {first, second};
  }
  // The parts, added in their order.
  template <int count>
  __device__ Vec<Sum, count> total(int row, int column) const {
    Vec<Sum, count> sum = {};
#pragma unroll
    for (int n = 0; n < Parts; ++n) {
      const Vec<Sum, count> some = *reinterpret_cast<const Vec<Sum, count>*>(&part[n][row][column]);
#pragma unroll
      for (int j = 0; j < count; ++j) sum.item[j] = add(sum.item[j], some.item[j]);
    }
    return sum;
  }
};

// The sum of four s8, and of what was summed before.
__device__ inline int add_bytes(unsigned four, int sum) { return __dp4a(static_cast<int>(four), 0x01010101, sum); }

}  // namespace qp
