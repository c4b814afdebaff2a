// ActivationQuantize: what lies between two GEMMs where no norm does, quantized for the second of them in one pass.
//
//   y = act(gate)·up·multiplier      gated: GLUs, whose halves lie side by side in a row of 2K elements, or apart
//   y = act(x)·multiplier            else; the multiplier if it is there
//   output = y rounded, or its codes with a scale that is given, or that is found from the row or a group of it
//
// A row is read once and stays in registers from then on (row.cuh).
#pragma once

#include <qp/epilogue.cuh>
#include <qp/row.cuh>

namespace qp {

struct ActivationParams {
  const void* gate;  // x, where nothing is gated
  const void* up;  // null: K elements behind the gate
  const f32* multiplier;  // where there is one
  void* output;
  void* scale;
  int64 m, gate_stride, up_stride, output_stride, scale_stride;
  int k;
  f32 host_scale;
};

template <> constexpr int least_blocks<ActivationParams> = 1;  // loads under way at once count for more than blocks do

template <class In, class Out, class Scale, RowScale S, Activation A, bool Gated, bool Multiplied, bool Aligned,
          bool Longer, int Lanes, int Keep>
__device__ void activation_quantize(const ActivationParams& p) {
  using Values = Vec<f32, run_length>;
  using Loaded = Run<In, Aligned>;
  const RowOfThreads<Lanes> place(p.m);
  if (!place.present) return;  // with its whole warp
  const In* const gate = static_cast<const In*>(p.gate) + place.row * p.gate_stride;
  const In* const up = p.up ? static_cast<const In*>(p.up) + place.row * p.up_stride : gate + p.k;

  struct Operands {
    Loaded gate, up;
  };
  const auto load = [&](int i) {
    const int count = left(p.k - place.column(i), run_length);
    Operands loaded;
    loaded.gate = Loaded::stream(place.run(gate, i), count);
    if constexpr (Gated) loaded.up = Loaded::stream(place.run(up, i), count);
    return loaded;
  };
  // Of zeros comes zero: what lies behind the end of the row stays so.
  const auto finish = [&](int i, const Operands& loaded) {
    Values y = loaded.gate.widen();
#pragma unroll
    for (int j = 0; j < run_length; ++j) y.item[j] = activate<A>(y.item[j]);
    if constexpr (Gated) {
      const Values factor = loaded.up.widen();
#pragma unroll
      for (int j = 0; j < run_length; ++j) y.item[j] = multiply(y.item[j], factor.item[j]);
    }
    if constexpr (Multiplied) {
      const int count = left(p.k - place.column(i), run_length);
      const Values factor = Run<f32, Aligned>::load(place.run(p.multiplier, i), count).widen();
#pragma unroll
      for (int j = 0; j < run_length; ++j) y.item[j] = multiply(y.item[j], factor.item[j]);
    }
    return y;
  };

  Values values[Keep];
  {
    Operands loaded[Keep];
#pragma unroll
    for (int i = 0; i < Keep; ++i) loaded[i] = load(i);
#pragma unroll
    for (int i = 0; i < Keep; ++i) values[i] = finish(i, loaded[i]);
  }
  const RowTarget target = {p.output, p.scale, p.output_stride, p.scale_stride, p.host_scale};
  store_row<Out, Scale, S, Aligned, Longer, Lanes, Keep>(
      target, place, p.k, values, [&](int i) { return finish(i, load(i)); },
      reinterpret_cast<Magnitude<f32>*>(ptx::shared_memory()));
}

}  // namespace qp
