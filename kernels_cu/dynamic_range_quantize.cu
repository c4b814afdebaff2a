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
// All chunks are whole: V is 1 where rows do not end with a vector. Short segments are many: where they follow each other
// without gaps, each lane has Abreast of them, so that what a thread does once serves more elements. Segments with a NaN or
// an infinity, and those whose scale is huge, are read again and rounded with more care.
//
// Segments that cross rows need every row before the first code. A tensor takes two kernels: `ranges` reduces its parts,
// and `quantize_joined` joins them and reads x again. Segments of columns (channel:1, group along a column) take three:
// `ranges`, then `scales`, which joins the parts of each, then quantize.cu's `quantize`.
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

template <> constexpr int least_blocks<SegmentsParams> = 1;  // loads under way at once count for more than blocks do

constexpr int most_lanes = 1024;  // only then can a segment be longer than what is kept
template <int Lanes> constexpr int segment_threads = Lanes > 32 ? Lanes : 256;

// A segment, and what of it lies from a lane's first element on.
template <class In, class Out>
struct Segment {
  bool present;
  int64 row;
  unsigned index;  // in its row
  int rest;  // elements, or none where it is not positive
  const In* x;
  Out* q;

  // The segment so many further on in the same row, of segments that are all as long.
  __device__ Segment ahead(unsigned segments, const SegmentsParams& p) const {
    const unsigned at = index + segments, elements = segments * static_cast<unsigned>(p.length);
    const bool there = at < static_cast<unsigned>(p.per_row);
    return {there, row, at, there ? rest : 0, x + elements, q + elements};
  }
};

// Finds a thread's segment, the first of those that it has abreast. K < 2³¹, and a row has no more segments than elements.
template <class In, class Out, int V, int Lanes, int Abreast>
__device__ inline Segment<In, Out> find_segment(const SegmentsParams& p) {
  constexpr int per_block = segment_threads<Lanes> / Lanes;
  constexpr bool alone = per_block == 1;  // in its block, of which there are as many as segments
  const unsigned per_row = static_cast<unsigned>(p.per_row), length = static_cast<unsigned>(p.length);
  const unsigned aside = alone ? 0 : threadIdx.x / Lanes;
  int64 row = 0;
  unsigned index = 0;
  if (alone && per_row == 1) {
    row = blockIdx.x;
  } else if (Abreast > 1 || p.m == 1) {
    index = blockIdx.x * (per_block * Abreast) + aside;
  } else {
    // a 64-bit division a block, then 32-bit ones: its segments are neighbours
    const unsigned long long first = static_cast<unsigned long long>(blockIdx.x) * (per_block * Abreast);
    const unsigned long long first_row = first / per_row;
    const unsigned ahead = static_cast<unsigned>(first - first_row * per_row) + aside;
    const unsigned rows_on = alone ? 0 : ahead / per_row;
    row = static_cast<int64>(first_row) + rows_on;
    index = ahead - rows_on * per_row;
  }
  const bool present = alone || ((Abreast > 1 || row < p.m) && index < per_row);
  const unsigned begin = index * length;
  const unsigned end = Abreast > 1 ? begin + length : min(begin + length, static_cast<unsigned>(p.k));
  const int lane = threadIdx.x % Lanes, rest = present ? static_cast<int>(end - begin) - lane * V : 0;
  return {present, row, index, rest, static_cast<const In*>(p.x) + (row * p.x_stride + begin) + lane * V,
          static_cast<Out*>(p.q) + (row * p.q_stride + begin) + lane * V};
}

template <class In, class Out, class Scale, bool Asymmetric, bool Saturate, int V, int Lanes, int Keep, int Abreast>
__device__ void quantize_segments(const SegmentsParams& p) {
  static_assert((Lanes & (Lanes - 1)) == 0 && Lanes <= most_lanes, "Lanes is a power of two, at most a block");
  static_assert(Abreast == 1 || Lanes <= 32, "a block reduces one segment, a warp several");
  using W = wide<In>;
  using Range = State<Asymmetric, W>;
  constexpr int step = Lanes * V;
  const Segment<In, Out> first = find_segment<In, Out, V, Lanes, Abreast>(p);
  const auto find = [&](int a) { return a == 0 ? first : first.ahead(a * (segment_threads<Lanes> / Lanes), p); };
  const int lane = threadIdx.x % Lanes;

  Chunk<In, V> kept[Abreast][Keep];
#pragma unroll
  for (int a = 0; a < Abreast; ++a) {
    const Segment<In, Out> segment = find(a);
#pragma unroll
    for (int i = 0; i < Keep; ++i) kept[a][i] = load_whole<In, V>(segment.x + i * step, i * step < segment.rest);
  }
#pragma unroll
  for (int a = 0; a < Abreast; ++a) {
    const Segment<In, Out> segment = find(a);
    const auto from = [&](unsigned begin, auto use) {  // every step of the segment from one on, loaded again
#pragma unroll 1
      for (unsigned at = begin; static_cast<int>(segment.rest - at) > 0; at += step)
        use(load_whole<In, V>(segment.x + at, true), at);
    };
    Gather<In, Range> gather;
#pragma unroll
    for (int i = 0; i < Keep; ++i) gather.add(unpack<In, V>(kept[a][i]));
    if constexpr (Lanes == most_lanes)
      from(Keep * step, [&](Chunk<In, V> chunk, unsigned) { gather.add(unpack<In, V>(chunk)); });

    const Range range = reduce<Lanes>(gather.state(), reinterpret_cast<Range*>(ptx::shared_memory()));
    const auto chosen = Choose<Scale, W>::from(range, symmetric_limit<Out, W>(p.q_max), p.q_min, p.q_max);
    if (lane == 0 && segment.present) {
      static_cast<Scale*>(p.scale)[segment.row * p.scale_stride + segment.index] = chosen.stored;
      if constexpr (Asymmetric) p.zero_point[segment.row * p.zero_point_stride + segment.index] = chosen.zero_point;
    }

    const Codes<W> codes(p.q_min, p.q_max, chosen.zero_point);
    const bool ordinary = is_ordinary<Out, Asymmetric>(chosen, p.q_min, p.q_max);
    if (ordinary) {
      const auto divisor = own_divisor<In, Asymmetric>(chosen);
#pragma unroll
      for (int i = 0; i < Keep; ++i) {
        Vec<W, V> values = widen_all<W, In, V>(kept[a][i]);
#pragma unroll
        for (int j = 0; j < V; ++j) values.item[j] = divisor.divide_within(values.item[j]);
        if (i * step < segment.rest)
          store_whole<Out, V>(segment.q + i * step, round_ordinary<Out, Saturate, Asymmetric>(values, codes));
      }
    }
    if (Lanes == most_lanes || !ordinary) {
      const DivisorOf<Scale, W> divisor(chosen.scale);
      from(ordinary ? Keep * step : 0, [&](Chunk<In, V> chunk, unsigned at) {
        const Vec<Out, V> rounded = quantize_chunk<Out, Saturate>(
            widen_all<W, In, V>(chunk), [&](int, W value) { return divisor.divide_within(value); },
            [&](int, W quotient) { return codes(quotient); });
        store_whole<Out, V>(segment.q + at, reinterpret<Chunk<Out, V>>(rounded));
      });
    }
  }
}

// ---- a tensor

// Rounds chunks of a segment by the scale that was chosen for it: `each` calls what it is given with every one of them.
template <class In, class Out, bool Saturate, bool Asymmetric, int V, class Scale, class W, class Each>
__device__ inline void round_each(const Chosen<Scale, W>& chosen, int q_min, int q_max, Each each) {
  const Codes<W> codes(q_min, q_max, chosen.zero_point);
  if (is_ordinary<Out, Asymmetric>(chosen, q_min, q_max)) {
    const auto divisor = own_divisor<In, Asymmetric>(chosen);
    each([&](const Chunk<In, V>& chunk) {
      Vec<W, V> values = widen_all<W, In, V>(chunk);
#pragma unroll
      for (int j = 0; j < V; ++j) values.item[j] = divisor.divide_within(values.item[j]);
      return unpack<Out, V>(round_ordinary<Out, Saturate, Asymmetric>(values, codes));
    });
  } else {
    const DivisorOf<Scale, W> divisor(chosen.scale);
    each([&](const Chunk<In, V>& chunk) {
      return quantize_chunk<Out, Saturate>(
          widen_all<W, In, V>(chunk), [&](int, W value) { return divisor.divide_within(value); },
          [&](int, W quotient) { return codes(quotient); });
    });
  }
}

struct JoinedParams {
  const void* x;
  const void* partial;
  void* q;
  void* scale;
  int* zero_point;
  int64 m, k, x_stride, q_stride;
  int parts, q_min, q_max, columns_log2;
};

// A tensor whose parts' ranges are known: every block joins them. Blocks begin at the end, which was read last and is
// still in L2, if anything is.
template <class In, class Out, class Scale, bool Asymmetric, bool Saturate, int V>
__device__ void quantize_joined(const JoinedParams& p) {
  using W = wide<In>;
  using Range = State<Asymmetric, W>;
  const unsigned k = static_cast<unsigned>(p.k);
  const Tile tile = tile_of<V>(gridDim.x - 1 - blockIdx.x, k, p.columns_log2);
  const int count = left(static_cast<int>(k - tile.column), V);
  const In* const x = static_cast<const In*>(p.x) + tile.column;
  Out* const q = static_cast<Out*>(p.q) + tile.column;

  Chunk<In, V> chunk[elementwise_rows];
#pragma unroll
  for (int i = 0; i < elementwise_rows; ++i) {
    const int64 row = tile.row + i * tile.row_step;
    chunk[i] = load<In, V>(x + row * p.x_stride, row < p.m ? count : 0);
  }
  Range range = Range::empty();
  for (int part = threadIdx.x; part < p.parts; part += elementwise_threads)
    range.merge(static_cast<const Range*>(p.partial)[part]);
  range = reduce<elementwise_threads>(range, reinterpret_cast<Range*>(ptx::shared_memory()));
  const auto chosen = Choose<Scale, W>::from(range, symmetric_limit<Out, W>(p.q_max), p.q_min, p.q_max);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *static_cast<Scale*>(p.scale) = chosen.stored;
    if constexpr (Asymmetric) *p.zero_point = chosen.zero_point;
  }
  round_each<In, Out, Saturate, Asymmetric, V>(chosen, p.q_min, p.q_max, [&](auto round) {
#pragma unroll
    for (int i = 0; i < elementwise_rows; ++i) {
      const int64 row = tile.row + i * tile.row_step;
      if (row < p.m && count > 0) store<Out, V>(q + row * p.q_stride, round(chunk[i]), count);
    }
  });
}

// ---- ranges of parts

struct RangesParams {
  const void* x;
  void* partial;  // one state per part and column, or per block
  int64 m, k, x_stride;
  int64 rows_per_part;  // unless Whole
  int columns_log2, across;  // blocks
};

// Reduces the columns of each part of rows_per_part rows; with Whole, everything that a block sees to one state, and
// blocks go through the tensor side by side, from its beginning to its end.
template <class In, bool Asymmetric, bool Whole, int V>
__device__ void ranges(const RangesParams& p) {
  using Range = State<Asymmetric, wide<In>>;
  const int wide_ = 1 << p.columns_log2, high = elementwise_threads >> p.columns_log2;
  const unsigned k = static_cast<unsigned>(p.k), across = static_cast<unsigned>(p.across);
  const unsigned part = blockIdx.x / across, aside = blockIdx.x - part * across;
  const int row_in_block = threadIdx.x >> p.columns_log2, column_in_block = threadIdx.x & (wide_ - 1);
  const int64 begin = Whole ? int64(part) * high : part * p.rows_per_part;
  const int64 end = Whole ? p.m : min(begin + p.rows_per_part, p.m);
  const int64 row_step = Whole ? int64(gridDim.x / across) * high : high;
  Range* const shared = reinterpret_cast<Range*>(ptx::shared_memory());
  Range* const partial = static_cast<Range*>(p.partial);

  Gather<In, Range> whole;
  Gather<In, Range> each[V];
  for (unsigned strip = aside; strip < strips<V>(k, p.columns_log2); strip += across) {  // but one, unless Whole
    const unsigned column = (strip * wide_ + column_in_block) * V;
    const int count = left(static_cast<int>(k - column), V);
    const In* const x = static_cast<const In*>(p.x) + column;
    for (int64 row = begin + row_in_block; row < end; row += row_step * elementwise_rows) {
      Chunk<In, V> chunk[elementwise_rows];  // zeros behind the end: every range holds 0
#pragma unroll
      for (int i = 0; i < elementwise_rows; ++i)
        chunk[i] = load<In, V>(x + (row + i * row_step) * p.x_stride, row + i * row_step < end ? count : 0);
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
  }
  if constexpr (Whole) {
    const Range range = reduce<elementwise_threads>(whole.state(), shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = range;
  } else {
    // high × (wide · V) states: column c of the block belongs to thread c % 256 now, so that stores are neighbours
    const unsigned first = aside * wide_ * V;
    Range* const mine = shared + threadIdx.x * V;
#pragma unroll
    for (int i = 0; i < V; ++i) mine[i] = each[i].state();
    __syncthreads();
    for (int c = threadIdx.x; c < wide_ * V && first + c < k; c += elementwise_threads) {
      Range range = shared[c];
      for (int h = 1; h < high; ++h) range.merge(shared[h * wide_ * V + c]);
      partial[int64(part) * p.k + first + c] = range;
    }
  }
}

// ---- segments of columns

struct ScalesParams {
  const void* partial;
  void* scale;
  int* zero_point;
  int64 rows, columns;  // of the scales
  int64 scale_stride, zero_point_stride;
  int64 parts;  // of each segment, `columns` states apart; those of the next row of segments follow
  int q_min, q_max;
};

// Joins the parts of each segment, which is a thread's, and chooses its scale.
template <class In, class Out, class Scale, bool Asymmetric>
__device__ void scales(const ScalesParams& p) {
  using W = wide<In>;
  using Range = State<Asymmetric, W>;
  const Range* const partial = static_cast<const Range*>(p.partial);
  const int64 across = (p.columns + elementwise_threads - 1) / elementwise_threads, row = blockIdx.x / across;
  const int64 column = (blockIdx.x - row * across) * elementwise_threads + threadIdx.x;
  if (column >= p.columns) return;
  Range range = Range::empty();
  for (int64 part = 0; part < p.parts; ++part) range.merge(partial[(row * p.parts + part) * p.columns + column]);
  const auto chosen = Choose<Scale, W>::from(range, symmetric_limit<Out, W>(p.q_max), p.q_min, p.q_max);
  static_cast<Scale*>(p.scale)[row * p.scale_stride + column] = chosen.stored;
  if constexpr (Asymmetric) p.zero_point[row * p.zero_point_stride + column] = chosen.zero_point;
}

}  // namespace qp
