// DynamicRangeQuantize: scales from the values themselves, then q = code(x / scale + zero_point) as in quantize.cu.
//
// Segments that lie within a row (token, channel:0, group along a row) need one kernel: a segment is read once, kept in
// registers while its range is reduced, and written once.
//
//   row  │ segment 0     │ segment 1     │ …               Lanes ≤ 32: 256 / Lanes segments a block, Lanes lanes each
//        │ ▏ ▏ ▏ ▏ ▏ ▏ ▏ │                                 else: one segment a block of Lanes threads
//          └ chunk of V elements: lane 0, 1, 2, …, again lane 0, …: Keep chunks a lane stay in registers, and what is
//            left of a longer segment is read a second time, from cache
//
// Segments that cross rows (tensor, channel:1, group along a column) need every row before the first code. They take
// three kernels: `ranges` reduces parts of them, `scales` joins the parts, and quantize.cu's `quantize` reads x again.
#pragma once

#include <quantize.cu>

namespace qp {

template <bool Asymmetric, class W> struct State_ { using type = Magnitude<W>; };
template <class W> struct State_<true, W> { using type = Interval<W>; };
template <bool Asymmetric, class W> using State = typename State_<Asymmetric, W>::type;

// ---- segments within a row

struct SegmentsParams {
  const void* x;
  void* q;
  void* scale;
  int* zero_point;
  int64 m, k, x_stride, q_stride;
  int64 length, per_row;  // of a segment, the last of a row may be shorter; and how many a row has
  int64 scale_stride, zero_point_stride;
  int q_min, q_max;
};

constexpr int most_lanes = 1024;  // only then can a segment be longer than what is kept
template <int Lanes> constexpr int segment_threads = Lanes > 32 ? Lanes : 256;

template <class In, class Out, class Scale, bool Asymmetric, bool Saturate, int V, int Lanes, int Keep>
__device__ void quantize_segments(const SegmentsParams& p) {
  static_assert((Lanes & (Lanes - 1)) == 0 && Lanes <= most_lanes, "Lanes is a power of two, at most a block");
  using W = wide<In>;
  constexpr int per_block = segment_threads<Lanes> / Lanes;

  // one 64-bit division a block, then 32-bit ones: the segments of a block are neighbours
  const unsigned per_row = static_cast<unsigned>(p.per_row), length = static_cast<unsigned>(p.length);
  const unsigned long long first = static_cast<unsigned long long>(blockIdx.x) * per_block, first_row = first / per_row;
  const unsigned ahead = static_cast<unsigned>(first - first_row * per_row) + threadIdx.x / Lanes;
  const unsigned rows_on = ahead / per_row, index = ahead - rows_on * per_row;
  const int64 row = static_cast<int64>(first_row) + rows_on;
  const bool present = row < p.m;

  // of the segment, from this lane's first element on; K < 2³¹
  const unsigned begin = index * length, end = min(begin + length, static_cast<unsigned>(p.k));
  const int lane = threadIdx.x % Lanes, rest = present ? static_cast<int>(end - begin) - lane * V : 0;
  const In* const x = static_cast<const In*>(p.x) + row * p.x_stride + begin + lane * V;
  Out* const q = static_cast<Out*>(p.q) + row * p.q_stride + begin + lane * V;
  constexpr int step = Lanes * V;
  const auto chunk_at = [&](unsigned at) { return load<In, V>(x + at, left(static_cast<int>(rest - at), V)); };
  const auto behind_kept = [&](auto use) {
    if constexpr (Lanes == most_lanes)
      for (unsigned at = Keep * step; static_cast<int>(rest - at) > 0; at += step) use(at);
  };

  Chunk<In, V> kept[Keep];
  Gather<In, State<Asymmetric, W>> gather;
#pragma unroll
  for (int i = 0; i < Keep; ++i) kept[i] = chunk_at(i * step);
#pragma unroll
  for (int i = 0; i < Keep; ++i) gather.add(unpack<In, V>(kept[i]));
  behind_kept([&](unsigned at) { gather.add(unpack<In, V>(chunk_at(at))); });

  const auto range = reduce<Lanes>(gather.state(), reinterpret_cast<State<Asymmetric, W>*>(ptx::shared_memory()));
  const auto chosen = Choose<Scale, W>::from(range, symmetric_limit<Out, W>(p.q_max), p.q_min, p.q_max);
  if (lane == 0 && present) {
    static_cast<Scale*>(p.scale)[row * p.scale_stride + index] = chosen.stored;
    if constexpr (Asymmetric) p.zero_point[row * p.zero_point_stride + index] = chosen.zero_point;
  }

  const DivisorOf<Scale, W> divisor(chosen.scale);
  const Codes<W> codes(p.q_min, p.q_max, chosen.zero_point);
  const auto write = [&](Chunk<In, V> chunk, unsigned at) {
    const Vec<Out, V> rounded = quantize_chunk<Out, Saturate>(
        widen_all<W, In, V>(chunk), [&](int, W value) { return divisor.divide_within(value); },
        [&](int, W quotient) { return codes(quotient); });
    store<Out, V>(q + at, rounded, left(static_cast<int>(rest - at), V));
  };
#pragma unroll
  for (int i = 0; i < Keep; ++i)
    if (i * step < rest) write(kept[i], i * step);
  behind_kept([&](unsigned at) { write(chunk_at(at), at); });
}

// ---- segments that cross rows

struct RangesParams {
  const void* x;
  void* partial;  // one state per part and column, or per block
  int64 m, k, x_stride, rows_per_part;
  int columns_log2;
};

// Reduces the columns of each part of rows_per_part rows; with Whole, everything that a block sees to one state.
template <class In, bool Asymmetric, bool Whole, int V>
__device__ void ranges(const RangesParams& p) {
  using Range = State<Asymmetric, wide<In>>;
  const int wide_ = 1 << p.columns_log2, high = elementwise_threads >> p.columns_log2;
  const unsigned k = static_cast<unsigned>(p.k), across = strips<V>(k, p.columns_log2);
  const unsigned part = blockIdx.x / across, aside = (blockIdx.x - part * across) * wide_;
  const unsigned column = (aside + (threadIdx.x & (wide_ - 1))) * V;
  const int64 end = min((int64(part) + 1) * p.rows_per_part, p.m);
  const int count = left(static_cast<int>(k - column), V);
  Range* const shared = reinterpret_cast<Range*>(ptx::shared_memory());
  Range* const partial = static_cast<Range*>(p.partial);

  Gather<In, Range> whole;
  Gather<In, Range> each[V];
  const In* const x = static_cast<const In*>(p.x) + column;
  for (int64 row = part * p.rows_per_part + (threadIdx.x >> p.columns_log2); row < end;
       row += high * elementwise_rows) {
    Chunk<In, V> chunk[elementwise_rows];  // zeros behind the end: every range holds 0
#pragma unroll
    for (int i = 0; i < elementwise_rows; ++i)
      chunk[i] = load<In, V>(x + (row + i * high) * p.x_stride, row + i * high < end ? count : 0);
#pragma unroll
    for (int i = 0; i < elementwise_rows; ++i) {
      const Vec<In, V> values = unpack<In, V>(chunk[i]);
      if constexpr (Whole) {
        whole.add(values);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) each[j].add(Vec<In, 1>{values.item[j]});
      }
    }
  }
  if constexpr (Whole) {
    const Range range = reduce<elementwise_threads>(whole.state(), shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = range;
  } else {
    // high × (wide · V) states: column c of the block belongs to thread c % 256 now, so that stores are neighbours
    Range* const mine = shared + threadIdx.x * V;
#pragma unroll
    for (int i = 0; i < V; ++i) mine[i] = each[i].state();
    __syncthreads();
    for (int c = threadIdx.x; c < wide_ * V && aside * V + c < k; c += elementwise_threads) {
      Range range = shared[c];
      for (int h = 1; h < high; ++h) range.merge(shared[h * wide_ * V + c]);
      partial[int64(part) * p.k + aside * V + c] = range;
    }
  }
}

struct ScalesParams {
  const void* partial;
  void* scale;
  int* zero_point;
  int64 rows, columns;  // of the scales
  int64 scale_stride, zero_point_stride;
  int64 parts;  // of each segment, `columns` states apart; those of the next row of segments follow
  int q_min, q_max;
};

// Joins the parts of each segment and chooses its scale. Whole: one segment, by one block; else one segment a thread.
template <class In, class Out, class Scale, bool Asymmetric, bool Whole>
__device__ void scales(const ScalesParams& p) {
  using W = wide<In>;
  using Range = State<Asymmetric, W>;
  const Range* partial = static_cast<const Range*>(p.partial);
  int64 row = 0, column = 0;
  Range range = Range::empty();
  if constexpr (!Whole) {
    const int64 across = (p.columns + elementwise_threads - 1) / elementwise_threads;
    row = blockIdx.x / across;
    column = (blockIdx.x - row * across) * elementwise_threads + threadIdx.x;
    if (column >= p.columns) return;
    for (int64 part = 0; part < p.parts; ++part) range.merge(partial[(row * p.parts + part) * p.columns + column]);
  } else {
    for (int64 part = threadIdx.x; part < p.parts; part += elementwise_threads) range.merge(partial[part]);
    range = reduce<elementwise_threads>(range, reinterpret_cast<Range*>(ptx::shared_memory()));
    if (threadIdx.x != 0) return;
  }
  const auto chosen = Choose<Scale, W>::from(range, symmetric_limit<Out, W>(p.q_max), p.q_min, p.q_max);
  static_cast<Scale*>(p.scale)[row * p.scale_stride + column] = chosen.stored;
  if constexpr (Asymmetric) p.zero_point[row * p.zero_point_stride + column] = chosen.zero_point;
}

}  // namespace qp
