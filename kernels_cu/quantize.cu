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
  const void* scale;  // null, of a tensor: host_scale
  const int* zero_point;  // null, of a tensor or if symmetric: host_zero_point
  int64 m, k, x_stride, q_stride, group_size, scale_stride, zero_point_stride;
  double host_scale;
  int host_zero_point, q_min, q_max, columns_log2;
};

// How many blocks lie across rows of k elements: 1 ≤ k < 2³¹, so that columns need no 64-bit arithmetic.
template <int V>
__device__ inline unsigned strips(unsigned k, int columns_log2) {
  return ((k - 1) / V >> columns_log2) + 1;
}

// Where a thread of an elementwise kernel works.
struct Tile {
  unsigned column;
  int64 row;
  int row_step;
};

template <int V>
__device__ inline Tile tile_of(unsigned block, unsigned k, int columns_log2) {
  const int wide = 1 << columns_log2, high = elementwise_threads >> columns_log2;
  const unsigned across = strips<V>(k, columns_log2), down = block / across, aside = block - down * across;
  return {(aside * wide + (threadIdx.x & (wide - 1))) * V,
          int64(down) * (high * elementwise_rows) + (threadIdx.x >> columns_log2), high};
}

// Whether a chunk has one scale, and its row another one than the next. The host picks V so that no group ends within a
// chunk.
template <Per P> constexpr bool one_a_row = P == Per::row || P == Per::group_in_row;

// Where the scale of a chunk's first element is, and its zero point.
struct Place {
  int64 row, column;
};

template <Per P>
__device__ inline Place place_of(int64 row, unsigned column, unsigned group_size) {
  if constexpr (P == Per::row) return {0, row};
  if constexpr (P == Per::column) return {0, column};
  if constexpr (P == Per::group_in_row) return {row, column / group_size};
  if constexpr (P == Per::group_in_column) return {static_cast<unsigned>(row) / group_size, column};
  return {0, 0};
}

// Loads N neighbours, of which the first `count` exist, as wide as they are aligned.
template <class To, class T, int N>
__device__ inline void load_neighbours(const T* from, int count, To (&to)[N]) {
  constexpr int piece = sizeof(T) * N <= 16 ? N : 16 / sizeof(T);
  const auto given = [](auto value) {
    if constexpr (same<To, decltype(value)>) return value;
    else return widen<To>(value);
  };
  if (count >= N && reinterpret_cast<unsigned long long>(from) % (piece * sizeof(T)) == 0) {
#pragma unroll
    for (int i = 0; i < N; i += piece) {
      const Vec<T, piece> part = unpack<T, piece>(load<T, piece>(from + i, piece));
#pragma unroll
      for (int j = 0; j < piece; ++j) to[i + j] = given(part.item[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = given(from[i < count ? i : 0]);
  }
}

// The scales and zero points that a thread works with: one for each of its rows, for each column of its chunk, or one.
template <class W, class Scale, Per P, bool Asymmetric, int V>
struct Segments {
  static constexpr int N = one_a_row<P> ? elementwise_rows : P == Per::tensor ? 1 : V;
  W scale[N];
  int zero_point[N];
  int64 last;

  // Loads what is row i's own. To be called for all rows before anything waits.
  template <class Params>
  __device__ void prefetch(const Params& p, int i, int64 row, unsigned column) {
    if constexpr (one_a_row<P>) {
      const Place place = place_of<P>(row, column, static_cast<unsigned>(p.group_size));
      scale[i] = widen<W>(static_cast<const Scale*>(p.scale)[place.row * p.scale_stride + place.column]);
      if constexpr (Asymmetric) zero_point[i] = p.zero_point[place.row * p.zero_point_stride + place.column];
    }
  }
  // Makes the scales those of row i, and tells whether they are others than the row before had.
  template <class Params>
  __device__ bool move_to(const Params& p, int i, int64 row, unsigned column, int count) {
    if constexpr (one_a_row<P>) return true;
    const Place place = place_of<P>(row, column, static_cast<unsigned>(p.group_size));
    if (i > 0 && place.row == last) return false;
    last = place.row;
#pragma unroll
    for (int j = 0; j < N; ++j) scale[j] = W(p.host_scale), zero_point[j] = p.host_zero_point;
    const Scale* const scales = static_cast<const Scale*>(p.scale);
    if (scales) load_neighbours(scales + place.row * p.scale_stride + place.column, count, scale);
    if (Asymmetric && p.zero_point)
      load_neighbours(p.zero_point + place.row * p.zero_point_stride + place.column, count, zero_point);
    return true;
  }
  // Which of them is that of element j of row i.
  __device__ static constexpr int slot(int i, int j) { return one_a_row<P> ? i : N == 1 ? 0 : j; }
};

template <class In, class Out, class Scale, Per P, bool Asymmetric, bool Saturate, int V>
__device__ void quantize(const QuantizeParams& p) {
  using W = wide<In>;
  const unsigned k = static_cast<unsigned>(p.k);
  const Tile tile = tile_of<V>(blockIdx.x, k, p.columns_log2);
  const int count = left(static_cast<int>(k - tile.column), V);
  if (count == 0) return;
  const In* const x = static_cast<const In*>(p.x) + tile.column;
  Out* const q = static_cast<Out*>(p.q) + tile.column;

  Chunk<In, V> chunk[elementwise_rows];
  Segments<W, Scale, P, Asymmetric, V> segments;
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row >= p.m) break;
    chunk[i] = load<In, V>(x + row * p.x_stride, count);
    segments.prefetch(p, i, row, tile.column);
  }
  constexpr int divisors = one_a_row<P> ? 1 : segments.N;
  DivisorOf<Scale, W> divisor[divisors];
  const Codes<W> codes(p.q_min, p.q_max, 0);
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    if (row >= p.m) break;
    if (segments.move_to(p, i, row, tile.column, count)) {
#pragma unroll
      for (int j = 0; j < divisors; ++j) divisor[j] = DivisorOf<Scale, W>(segments.scale[segments.slot(i, j)]);
    }
    const Vec<Out, V> rounded = quantize_chunk<Out, Saturate>(
        widen_all<W, In, V>(chunk[i]), [&](int j, W value) { return divisor[divisors == 1 ? 0 : j].divide(value); },
        [&](int j, W quotient) {
          if constexpr (!Asymmetric) return codes(quotient);
          else return to_integer(quotient, segments.zero_point[segments.slot(i, j)], p.q_min, p.q_max);
        });
    store<Out, V>(q + row * p.q_stride, rounded, count);
  }
}

}  // namespace qp
