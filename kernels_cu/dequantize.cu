// Dequantize: output[m, k] = rne(rne((q[m, k] − zero_point[segment]) · scale[segment]))
//
// The product is rounded in the scale's element (f64 for power-of-two scales of an f64 output), then once into the
// output's. Shapes, segments and the mapping of threads are those of quantize.cu; V follows the output.
#pragma once

#include <quantize.cu>

namespace qp {

struct DequantizeParams {
  const void* q;
  void* output;
  const void* scale;  // null: host_scale
  const int* zero_point;  // null: host_zero_point
  int64 m, k, q_stride, output_stride, group_size, scale_stride, zero_point_stride;
  double host_scale;
  int host_zero_point, columns_log2;
};

// The arithmetic of the product.
template <class Scale, class Out> struct product_of { using type = wide<Scale>; };
template <class Out> struct product_of<e8m0, Out> { using type = wide<Out>; };

template <class In, class Out, class Scale, Per P, bool Asymmetric, int V>
__device__ void dequantize(const DequantizeParams& p) {
  using W = typename product_of<Scale, Out>::type;
  const Tile tile = tile_of<V>(p.k, p.columns_log2);
  const int count = left(tile.column, p.k, V);
  if (count == 0) return;

  Vec<In, V> q[elementwise_rows];
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row < p.m) q[i] = load<In, V>(static_cast<const In*>(p.q) + row * p.q_stride + tile.column, count);
  }
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row >= p.m) break;
    const Segments<P, V> segments(row, tile.column, p.group_size, count);
    const Scale* scales = static_cast<const Scale*>(p.scale) + segments.row * p.scale_stride;
    const int* zero_points = p.zero_point + segments.row * p.zero_point_stride;
    Vec<Out, V> output;
    W scale = W(p.host_scale);
    int zero_point = p.host_zero_point;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j == 0 || varies_in_row<P>) {
        if (p.scale) scale = widen<W>(scales[segments.column[j]]);
        if (Asymmetric && p.zero_point) zero_point = zero_points[segments.column[j]];
      }
      W product;
      if constexpr (is_fp8<In>) product = multiply(widen<W>(q[i].item[j]), scale);
      else if constexpr (Asymmetric) product = scaled_difference(q[i].item[j], zero_point, scale);
      else product = multiply(W(q[i].item[j]), scale);
      output.item[j] = Round<Out>::from(product);
    }
    store<Out, V>(static_cast<Out*>(p.output) + row * p.output_stride + tile.column, output, count);
  }
}

}  // namespace qp
