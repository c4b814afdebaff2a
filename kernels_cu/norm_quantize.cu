// NormQuantize: a residual stream is updated, normalized, and quantized for the GEMM that follows, in one pass.
//
//   h = x,  or  residual + x,  or  residual + residual_gate·x       rounded to their element, and stored
//   n = h / √(mean(h²) + ε),  or  (h − mean(h)) / √(mean((h − mean(h))²) + ε)
//   y = ((n·weight + bias)·(1 + modulation_scale) + modulation_shift)·multiplier      each factor and addend if it is there
//   output = y rounded, or its codes with a scale that is given, or that is found from the row or a group of it
//
// A row is read once and stays in registers from then on (row.cuh); the vectors beside it come from cache. Every operation
// is rounded by itself, and sums are folded in the order of row.cuh: the reference has the same bits.
#pragma once

#include <qp/row.cuh>

namespace qp {

enum class Norm : int { rms, layer };
enum class Residual : int { none, added, gated };
enum Factor : int { by_weight = 1, by_bias = 2, by_modulation = 4, by_multiplier = 8 };  // what y is made with, as bits

struct NormParams {
  const void* x;
  const void* residual;
  const void* residual_gate;
  const void* weight;  // where there is one, and so on
  const void* bias;
  const void* modulation_scale;
  const void* modulation_shift;
  const f32* multiplier;
  void* residual_output;  // perhaps the residual's own memory
  void* output;
  void* scale;
  int64 m, x_stride, residual_stride, residual_output_stride, output_stride, scale_stride;
  int64 gate_stride, modulation_scale_stride, modulation_shift_stride;
  int k, rows_per_condition;  // how many rows share a row of the gate and of the modulation
  f32 epsilon, host_scale;
};

template <> constexpr int least_blocks<NormParams> = 1;  // loads under way at once count for more than blocks do

// What the lanes of a row do with their runs until they are y. In: of everything but the multiplier.
template <class In, Norm N, Residual R, int Factors, bool Aligned, int Lanes>
struct NormalizedRow {
  using Values = Vec<f32, run_length>;
  using Loaded = Run<In, Aligned>;

  const NormParams& p;
  const RowOfThreads<Lanes>& place;
  In* const residual_output;  // of the row: made once, and not for each run
  unsigned condition;
  f32 mean, reciprocal;

  __device__ NormalizedRow(const NormParams& p, const RowOfThreads<Lanes>& place)
      : p(p), place(place),
        residual_output(static_cast<In*>(p.residual_output) + place.row * p.residual_output_stride),
        condition(static_cast<unsigned>(place.row) / static_cast<unsigned>(p.rows_per_condition)) {}

  __device__ int left_of(int i) const { return left(p.k - place.column(i), run_length); }
  __device__ const In* at(const void* base, int64 row, int64 stride, int i) const {
    return place.run(static_cast<const In*>(base) + row * stride, i);
  }

  struct Operands {
    Loaded x, residual, gate;
  };
  __device__ Operands load(int i) const {
    const int count = left_of(i);
    Operands loaded;
    loaded.x = Loaded::stream(at(p.x, place.row, p.x_stride, i), count);
    if constexpr (R != Residual::none)  // which may be written: not by a load that wants it constant
      loaded.residual = Loaded::load(at(p.residual, place.row, p.residual_stride, i), count);
    if constexpr (R == Residual::gated)
      loaded.gate = Loaded::load(at(p.residual_gate, condition, p.gate_stride, i), count);
    return loaded;
  }
  // The stream's values of run i; its new ones are stored.
  __device__ Values update(int i, const Operands& loaded) const {
    Values h = loaded.x.widen();
    if constexpr (R != Residual::none) {
      const Values residual = loaded.residual.widen();
      if constexpr (R == Residual::gated) {
        const Values gate = loaded.gate.widen();
#pragma unroll
        for (int j = 0; j < run_length; ++j) h.item[j] = multiply(gate.item[j], h.item[j]);
      }
      Vec<In, run_length> rounded;
#pragma unroll
      for (int j = 0; j < run_length; ++j) {
        rounded.item[j] = Round<In>::from(__fadd_rn(residual.item[j], h.item[j]));
        h.item[j] = qp::widen<f32>(rounded.item[j]);
      }
      store_run<Aligned>(place.run(residual_output, i), rounded, left_of(i));
    }
    return h;
  }
  // The stream's values of a run that was updated before.
  __device__ Values again(int i) const {
    if constexpr (R == Residual::none)
      return Loaded::stream(at(p.x, place.row, p.x_stride, i), left_of(i)).widen();
    return Loaded::load(at(p.residual_output, place.row, p.residual_output_stride, i), left_of(i)).widen();
  }

  // The terms of a sum: h, or the square of its distance to the mean. Behind the end of the row they are zeros.
  __device__ static f32 values(const Values& h) { return sum_of_run(h); }
  __device__ f32 squares(const Values& h, int i) const {
    Values square;
#pragma unroll
    for (int j = 0; j < run_length; ++j) {
      const f32 distance = N == Norm::layer ? subtract(h.item[j], mean) : h.item[j];
      square.item[j] = multiply(distance, distance);
    }
    clear_behind(square, left_of(i));
    return sum_of_run(square);
  }
  // Behind the end of a row zeros stay zeros, unless a mean is taken away from them, or all of the row is NaN as well.
  __device__ static void clear_behind(Values& values, int count) {
    if constexpr (N == Norm::layer) {
#pragma unroll
      for (int j = 0; j < run_length; ++j) values.item[j] = (Aligned ? 0 : j) < count ? values.item[j] : 0.0f;
    }
  }

  // From h to y.
  __device__ Values finish(const Values& h, int i) const {
    const int count = left_of(i);
    Values y = h;
    if constexpr (N == Norm::layer) {
#pragma unroll
      for (int j = 0; j < run_length; ++j) y.item[j] = subtract(y.item[j], mean);
    }
#pragma unroll
    for (int j = 0; j < run_length; ++j) y.item[j] = multiply(y.item[j], reciprocal);
    if constexpr ((Factors & by_weight) != 0) {
      const Values weight = Loaded::load(at(p.weight, 0, 0, i), count).widen();
#pragma unroll
      for (int j = 0; j < run_length; ++j) y.item[j] = multiply(y.item[j], weight.item[j]);
    }
    if constexpr ((Factors & by_bias) != 0) {
      const Values bias = Loaded::load(at(p.bias, 0, 0, i), count).widen();
#pragma unroll
      for (int j = 0; j < run_length; ++j) y.item[j] = __fadd_rn(y.item[j], bias.item[j]);
    }
    if constexpr ((Factors & by_modulation) != 0) {
      const Values scale =
          Loaded::load(at(p.modulation_scale, condition, p.modulation_scale_stride, i), count).widen();
      const Values shift =
          Loaded::load(at(p.modulation_shift, condition, p.modulation_shift_stride, i), count).widen();
#pragma unroll
      for (int j = 0; j < run_length; ++j)
        y.item[j] = __fadd_rn(multiply(y.item[j], __fadd_rn(1.0f, scale.item[j])), shift.item[j]);
    }
    if constexpr ((Factors & by_multiplier) != 0) {
      const Values multiplier = Run<f32, Aligned>::load(place.run(p.multiplier, i), count).widen();
#pragma unroll
      for (int j = 0; j < run_length; ++j) y.item[j] = multiply(y.item[j], multiplier.item[j]);
    }
    clear_behind(y, count);
    return y;
  }
};

template <class In, class Out, class Scale, RowScale S, Norm N, Residual R, int Factors, bool Aligned, bool Longer,
          int Lanes, int Keep>
__device__ void norm_quantize(const NormParams& p) {
  const RowOfThreads<Lanes> place(p.m);
  if (!place.present) return;  // with its whole warp
  NormalizedRow<In, N, R, Factors, Aligned, Lanes> row(p, place);
  f32* const shared = reinterpret_cast<f32*>(ptx::shared_memory());  // three times a word a warp

  Vec<f32, run_length> values[Keep];
  {
    typename NormalizedRow<In, N, R, Factors, Aligned, Lanes>::Operands loaded[Keep];
#pragma unroll
    for (int i = 0; i < Keep; ++i) loaded[i] = row.load(i);
#pragma unroll
    for (int i = 0; i < Keep; ++i) values[i] = row.update(i, loaded[i]);
  }
  if constexpr (Longer && R != Residual::none)
#pragma unroll 1
    for (int i = Keep; i * Lanes * run_length < p.k; ++i) row.update(i, row.load(i));

  // Adds up what `term` makes of the runs of a row, each lane's in their order.
  const auto sum_of = [&](auto term, f32* states) {
    Total total = {term(values[0], 0)};
#pragma unroll
    for (int i = 1; i < Keep; ++i) total.merge({term(values[i], i)});
    if constexpr (Longer)
#pragma unroll 1
      for (int i = Keep; i * Lanes * run_length < p.k; ++i) total.merge({term(row.again(i), i)});
    return __fadd_rn(reduce<Lanes>(total, reinterpret_cast<Total*>(states)).sum, 0.0f);  // −0 as 0, whoever added zeros
  };
  const f32 k = static_cast<f32>(max(p.k, 1));  // zeros stay zeros behind the end of a row without elements
  if constexpr (N == Norm::layer)
    row.mean = divide(sum_of([&](const auto& h, int) { return row.values(h); }, shared), k);
  const f32 mean_square =
      divide(sum_of([&](const auto& h, int i) { return row.squares(h, i); }, shared + Lanes / 32), k);
  row.reciprocal = divide(1.0f, __fsqrt_rn(__fadd_rn(mean_square, p.epsilon)));

#pragma unroll
  for (int i = 0; i < Keep; ++i) values[i] = row.finish(values[i], i);
  const RowTarget target = {p.output, p.scale, p.output_stride, p.scale_stride, p.host_scale};
  store_row<Out, Scale, S, Aligned, Longer, Lanes, Keep>(
      target, place, p.k, values, [&](int i) { return row.finish(row.again(i), i); },
      reinterpret_cast<Magnitude<f32>*>(shared + Lanes / 16));
}

}  // namespace qp
