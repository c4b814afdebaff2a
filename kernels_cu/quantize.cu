// Quantize: q[m, k] = code(x[m, k] / scale[segment of (m, k)] + zero_point[segment of (m, k)])
//
//   x, q          M rows of K elements; rows lie x_stride and q_stride elements apart, the last axis is contiguous
//   scale         one per segment: tensor, row, column, group along a row, group along a column
//   zero_point    of the same shape, when asymmetric
//
// One read and one write per element. A block is 2^columns_log2 threads wide, and what is left of its 256 high:
//
//            K ──────────────▶                          each thread takes the chunk of V elements of its column
//      ┌──────────┬──────────┬───┐                      in `rows` rows, `high` apart; all loads are issued before
//    M │ block 0  │ block 1  │ 2 │  high·rows rows      the first division waits for one
//      ├──────────┼──────────┼───┤
//    ▼ │ block 3  │ …        │   │
#pragma once

#include <qp/quantize.cuh>
#include <qp/ptx/launch.cuh>

namespace qp {

constexpr int elementwise_threads = 256;
constexpr int elementwise_rows = 4;  // rows of a thread: as many 16-byte loads in flight

enum class Per : int { tensor, row, column, group_in_row, group_in_column };

struct QuantizeParams {
  const void* x;
  void* q;
  const void* scale;  // null: host_scale
  const int* zero_point;  // null: host_zero_point
  int64 m, k, x_stride, q_stride, group_size, scale_stride, zero_point_stride;
  double host_scale;
  int host_zero_point, q_min, q_max, columns_log2;
};

// Where a thread of an elementwise kernel works.
struct Tile {
  int64 column, row, row_step;
};

template <int V>
__device__ inline Tile tile_of(int64 k, int columns_log2) {
  const int wide = 1 << columns_log2, high = elementwise_threads >> columns_log2;
  const int64 across = (k + int64(V) * wide - 1) / (int64(V) * wide);
  const int64 down = blockIdx.x / across, aside = blockIdx.x - down * across;
  return {(aside * wide + (threadIdx.x & (wide - 1))) * V,
          down * high * elementwise_rows + (threadIdx.x >> columns_log2), high};
}

// Whether neighbours in a row can belong to different segments.
template <Per P> constexpr bool varies_in_row = P != Per::tensor && P != Per::row;

// Where the scales of a chunk's elements are: in which row of the scales, and in which column. One division for a
// chunk, however many groups it crosses.
template <Per P, int V>
struct Segments {
  int64 row, column[V];
  __device__ Segments(int64 at_row, int64 at_column, int64 group_size, int count) {
    row = P == Per::group_in_row ? at_row : P == Per::group_in_column ? at_row / group_size : 0;
    if constexpr (P == Per::group_in_row) {
      column[0] = at_column / group_size;
      int64 rest = group_size - (at_column - column[0] * group_size);  // elements until the next group
#pragma unroll
      for (int i = 1; i < V; ++i) {
        const bool next = --rest == 0;
        if (next) rest = group_size;
        column[i] = column[i - 1] + (next && i < count);
      }
    } else {
      const int64 first = P == Per::row ? at_row : P == Per::tensor ? 0 : at_column;
#pragma unroll
      for (int i = 0; i < V; ++i) column[i] = first + (varies_in_row<P> && i < count ? i : 0);
    }
  }
};

template <class In, class Out, class Scale, Per P, bool Asymmetric, bool Saturate, int V>
__device__ void quantize(const QuantizeParams& p) {
  using W = wide<In>;
  const Tile tile = tile_of<V>(p.k, p.columns_log2);
  const int count = left(tile.column, p.k, V);
  if (count == 0) return;

  Vec<In, V> x[elementwise_rows];
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row < p.m) x[i] = load<In, V>(static_cast<const In*>(p.x) + row * p.x_stride + tile.column, count);
  }
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row >= p.m) break;
    const Segments<P, V> segments(row, tile.column, p.group_size, count);
    const Scale* scales = static_cast<const Scale*>(p.scale) + segments.row * p.scale_stride;
    const int* zero_points = p.zero_point + segments.row * p.zero_point_stride;
    W scale[V];
    int zero_point[V] = {};
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const bool repeats = j > 0 && !varies_in_row<P>;
      if (repeats) scale[j] = scale[0];
      else scale[j] = p.scale ? widen<W>(scales[segments.column[j]]) : W(p.host_scale);
      if constexpr (Asymmetric) {
        if (repeats) zero_point[j] = zero_point[0];
        else zero_point[j] = p.zero_point ? zero_points[segments.column[j]] : p.host_zero_point;
      }
    }
    const Vec<Out, V> q = quantize_chunk<Out, Saturate, Asymmetric>(
        x[i], [&](int j) { return scale[j]; }, [&](int j) { return zero_point[j]; }, p.q_min, p.q_max);
    store<Out, V>(static_cast<Out*>(p.q) + row * p.q_stride + tile.column, q, count);
  }
}

}  // namespace qp
