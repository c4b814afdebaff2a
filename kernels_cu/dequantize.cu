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
  const void* scale;  // null, of a tensor: host_scale
  const int* zero_point;  // null, of a tensor or if symmetric: host_zero_point
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
  const unsigned k = static_cast<unsigned>(p.k);
  const Tile tile = tile_of<V>(blockIdx.x, k, p.columns_log2);
  const int count = left(static_cast<int>(k - tile.column), V);
  if (count == 0) return;
  const In* const q = static_cast<const In*>(p.q) + tile.column;
  Out* const output = static_cast<Out*>(p.output) + tile.column;

  Chunk<In, V> chunk[elementwise_rows];
  Segments<W, Scale, P, Asymmetric, V> segments;
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row >= p.m) break;
    chunk[i] = load<In, V>(q + row * p.q_stride, count);
    segments.prefetch(p, i, row, tile.column);
  }
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row >= p.m) break;
    segments.move_to(p, i, row, tile.column, count);
    const Vec<In, V> values = unpack<In, V>(chunk[i]);
    Vec<Out, V> rounded;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const W scale = segments.scale[segments.slot(i, j)];
      W product;
      if constexpr (is_fp8<In>) product = multiply(widen<W>(values.item[j]), scale);
      else if constexpr (Asymmetric)
        product = scaled_difference(values.item[j], segments.zero_point[segments.slot(i, j)], scale);
      else product = multiply(W(values.item[j]), scale);
      rounded.item[j] = Round<Out>::from(product);
    }
    store<Out, V>(output + row * p.output_stride, rounded, count);
  }
}

}  // namespace qp
