// Rows of real values on their way to the next GEMM: read once, held in registers, and stored quantized or rounded.
//
// A row is cut into runs of 8 neighbours. Run j belongs to lane j % Lanes of the row's threads, which keeps Keep of them
// in registers; what is left of a longer row (Longer) is read, or made, again.
//
//   row  │run 0│run 1│ … │Lanes−1│Lanes│ …        Lanes = 32: a warp has a row, and a block eight of them
//         lane 0, 1, …            lane 0, …         else: a block of Lanes threads has one row
//
// Sums are folded in one order, which depends on the length of the row alone (quantplan/reference/row_sums.py): within a run,
// over the runs of a lane, over the lanes of a warp, over warps. So a row's bits depend neither on alignment nor on M.
#pragma once

#include <qp/ptx/launch.cuh>
#include <qp/quantize.cuh>

namespace qp {

constexpr int run_length = 8;
constexpr int row_threads = 256;  // of a block that has several rows
template <int Lanes> constexpr int row_block = Lanes > 32 ? Lanes : row_threads;

// The parameters of a kernel that has enough of 64 registers: an SM holds 1024 of its threads.
template <class Params> struct Slim : Params {};
template <class Params> constexpr int least_threads<Slim<Params>> = 1024;

// ---- runs: moved 16 bytes at a time where all of them are whole and aligned so (Aligned), else element by element

template <class T, bool Aligned>
struct Run {
  static constexpr int piece = Aligned ? 16 / sizeof(T) : 1, pieces = run_length / piece;
  Chunk<T, piece> part[pieces];

  // The first `count` elements, from memory that nothing writes and that is read once; the others are zeros.
  __device__ static Run stream(const T* p, int count) {
    Run run;
#pragma unroll
    for (int i = 0; i < pieces; ++i) run.part[i] = load_whole<T, piece>(p + i * piece, i * piece < count);
    return run;
  }
  // The same from memory that many rows read, or that this thread has written.
  __device__ static Run load(const T* p, int count) {
    Run run;
#pragma unroll
    for (int i = 0; i < pieces; ++i)
      run.part[i] = i * piece < count ? reinterpret_cast<const Chunk<T, piece>*>(p)[i] : Chunk<T, piece>{};
    return run;
  }
  __device__ Vec<f32, run_length> widen() const {
    Vec<f32, run_length> values;
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const Vec<f32, piece> some = widen_all<f32, T, piece>(part[i]);
#pragma unroll
      for (int j = 0; j < piece; ++j) values.item[i * piece + j] = some.item[j];
    }
    return values;
  }
};

// Stores the first `count` elements, perhaps none.
template <bool Aligned, class T>
__device__ inline void store_run(T* p, const Vec<T, run_length>& values, int count) {
  constexpr int most = 16 / sizeof(T), piece = Aligned ? most < run_length ? most : run_length : 1;
#pragma unroll
  for (int i = 0; i < run_length; i += piece) {
    Vec<T, piece> some;
#pragma unroll
    for (int j = 0; j < piece; ++j) some.item[j] = values.item[i + j];
    if (i < count) store_whole<T, piece>(p + i, reinterpret<Chunk<T, piece>>(some));
  }
}

// ---- the threads of a row

template <int Lanes>
struct RowOfThreads {
  int64 row;
  int lane;
  bool present;

  __device__ explicit RowOfThreads(int64 m) : lane(threadIdx.x % Lanes) {
    constexpr int per_block = row_block<Lanes> / Lanes;
    row = int64(blockIdx.x) * per_block + threadIdx.x / Lanes;
    present = per_block == 1 || row < m;
  }
  // Where the lane's run i begins, and where in memory. In 64 bits, runs lie a constant behind one address.
  __device__ int column(int i) const { return (i * Lanes + lane) * run_length; }
  template <class T>
  __device__ T* run(T* begin, int i) const { return begin + int64(lane) * run_length + int64(i) * (Lanes * run_length); }
};

// ---- sums

struct Total {
  f32 sum;
  __device__ void merge(const Total& other) { sum = __fadd_rn(sum, other.sum); }
  __device__ Total from_lane(int lanes) const { return {shuffle_xor(sum, lanes)}; }
};

__device__ inline f32 sum_of_run(const Vec<f32, run_length>& v) {
  Vec<f32, run_length> sum = v;
#pragma unroll
  for (int half = run_length / 2; half > 0; half /= 2)
#pragma unroll
    for (int i = 0; i < half; ++i) sum.item[i] = __fadd_rn(sum.item[i], sum.item[i + half]);
  return sum.item[0];
}

// ---- what becomes of a row

// How many neighbours share a scale, as DynamicRangeQuantize's segments do: a row (0), groups, or everything, whose scale
// is given; none where the output is a real number.
enum class RowScale : int { none, given, token, group_32, group_128 };
template <RowScale S> constexpr int group_lanes = S == RowScale::group_32 ? 4 : 16;

struct RowTarget {
  void* output;
  void* scale;  // null, of everything: host_scale
  int64 output_stride, scale_stride;
  f32 host_scale;
};

// Calls `use` with what rounds the runs of a segment, whose largest magnitude led to `chosen`.
template <class Out, class Scale, class Use>
__device__ inline void with_rounding(const Chosen<Scale, f32>& chosen, const Use& use) {
  using Values = Vec<f32, run_length>;
  constexpr int limit = 127;
  const Codes<f32> codes(-limit, limit, 0);
  if (is_ordinary<Out, false>(chosen, -limit, limit)) {
    const auto divisor = own_divisor<f32, false>(chosen);
    use([&](Values y) {
#pragma unroll
      for (int i = 0; i < run_length; ++i) y.item[i] = divisor.divide_within(y.item[i]);
      return unpack<Out, run_length>(round_ordinary<Out, true, false>(y, codes));
    });
  } else {
    const DivisorOf<Scale, f32> divisor(chosen.scale);
    use([&](const Values& y) {
      return quantize_chunk<Out, true>(
          y, [&](int, f32 value) { return divisor.divide_within(value); },
          [&](int, f32 quotient) { return codes(quotient); });
    });
  }
}

// Stores a row: the Keep runs of each lane that are at hand, and those beyond, which `make(i)` makes once more each time.
// All lanes of a row take part, also those whose runs are behind its end and hold zeros. `shared` is not in use.
template <class Out, class Scale, RowScale S, bool Aligned, bool Longer, int Lanes, int Keep, class Make>
__device__ inline void store_row(const RowTarget& target, const RowOfThreads<Lanes>& place, int k,
                                 const Vec<f32, run_length> (&kept)[Keep], const Make& make, Magnitude<f32>* shared) {
  Out* const output = static_cast<Out*>(target.output) + place.row * target.output_stride;
  const auto each = [&](auto use) {  // every run of the lane, and zeros where other lanes still have one
#pragma unroll
    for (int i = 0; i < Keep; ++i) use(i, kept[i]);
    if constexpr (Longer)
#pragma unroll 1
      for (int i = Keep; i * Lanes * run_length < k; ++i) use(i, make(i));
  };
  const auto put = [&](int i, const Vec<Out, run_length>& values) {
    store_run<Aligned>(place.run(output, i), values, k - place.column(i));
  };

  if constexpr (S == RowScale::none) {
    each([&](int i, const Vec<f32, run_length>& y) {
      Vec<Out, run_length> rounded;
#pragma unroll
      for (int j = 0; j < run_length; ++j) rounded.item[j] = Round<Out>::from(y.item[j]);
      put(i, rounded);
    });
  } else if constexpr (S == RowScale::given) {
    const Divisor<f32> divisor(target.scale ? *static_cast<const f32*>(target.scale) : target.host_scale);
    const Codes<f32> codes(-127, 127, 0);
    each([&](int i, const Vec<f32, run_length>& y) {
      put(i, quantize_chunk<Out, true>(
                 y, [&](int, f32 value) { return divisor.divide(value); },
                 [&](int, f32 quotient) { return codes(quotient); }));
    });
  } else {
    constexpr bool whole = S == RowScale::token;
    const auto choose = [](const Magnitude<f32>& range) {
      return Choose<Scale, f32>::from(range, symmetric_limit<Out, f32>(127), -127, 127);
    };
    Scale* const scale = static_cast<Scale*>(target.scale) + place.row * target.scale_stride;
    if constexpr (whole) {
      Gather<f32, Magnitude<f32>> gather;
      each([&](int, const Vec<f32, run_length>& y) { gather.add(y); });
      const auto chosen = choose(reduce<Lanes>(gather.state(), shared));
      if (place.lane == 0) *scale = chosen.stored;
      with_rounding<Out>(chosen, [&](auto round) {
        each([&](int i, const Vec<f32, run_length>& y) { put(i, round(y)); });
      });
    } else {
      constexpr int lanes = group_lanes<S>;
      each([&](int i, const Vec<f32, run_length>& y) {
        Gather<f32, Magnitude<f32>> gather;
        gather.add(y);
        const auto chosen = choose(reduce_lanes<lanes>(gather.state()));
        if (place.lane % lanes == 0 && place.column(i) < k)
          scale[(i * Lanes + place.lane) / lanes] = chosen.stored;
        with_rounding<Out>(chosen, [&](auto round) { put(i, round(y)); });
      });
    }
  }
}

}  // namespace qp
