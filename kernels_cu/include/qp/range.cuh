// Ranges of segments: the largest magnitude (symmetric), or the interval that holds all values and 0 (asymmetric).
//
// NaN must survive: a segment with one gets a NaN scale. Magnitudes are compared as unsigned integers, in which order
// a NaN is above infinity; intervals by instructions that propagate NaN. f16 and bf16 are compared two at a time.
#pragma once

#include <qp/ptx/minmax.cuh>
#include <qp/vec.cuh>

namespace qp {

// ---- the state that crosses lanes and memory: wide, and as small as can be

__device__ inline f32 lesser(f32 a, f32 b) { return ptx::min_nan(a, b); }
__device__ inline f32 greater(f32 a, f32 b) { return ptx::max_nan(a, b); }
__device__ inline f64 lesser(f64 a, f64 b) { return is_nan(a) || a < b ? a : b; }  // b may be NaN: then it is taken
__device__ inline f64 greater(f64 a, f64 b) { return is_nan(a) || a > b ? a : b; }

__device__ inline f32 shuffle_xor(f32 x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
__device__ inline f64 shuffle_xor(f64 x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

template <class W>
struct Magnitude {
  using Wide = W;
  W amax;
  __device__ static Magnitude empty() { return {W(0)}; }
  __device__ void merge(const Magnitude& other) { amax = greater(amax, other.amax); }
  __device__ Magnitude from_lane(int lanes) const { return {shuffle_xor(amax, lanes)}; }
};

template <class W>
struct Interval {
  using Wide = W;
  W low, high;
  __device__ static Interval empty() { return {W(0), W(0)}; }
  __device__ void merge(const Interval& other) {
    low = lesser(low, other.low);
    high = greater(high, other.high);
  }
  __device__ Interval from_lane(int lanes) const { return {shuffle_xor(low, lanes), shuffle_xor(high, lanes)}; }
};

// ---- what a thread gathers from its elements

template <class In, class State> struct Gather;

template <> struct Gather<f32, Magnitude<f32>> {
  unsigned bits = 0;
  template <int V> __device__ void add(const Vec<f32, V>& v) {
#pragma unroll
    for (int i = 0; i < V; ++i) bits = max(bits, __float_as_uint(v.item[i]) & 0x7fffffffu);
  }
  __device__ Magnitude<f32> state() const { return {__uint_as_float(bits)}; }
};

template <> struct Gather<f64, Magnitude<f64>> {
  int64 bits = 0;
  template <int V> __device__ void add(const Vec<f64, V>& v) {
#pragma unroll
    for (int i = 0; i < V; ++i) bits = max(bits, __double_as_longlong(v.item[i]) & 0x7fffffffffffffff);
  }
  __device__ Magnitude<f64> state() const { return {__longlong_as_double(bits)}; }
};

template <class W> struct GatherWide {
  Interval<W> range = Interval<W>::empty();
  template <int V> __device__ void add(const Vec<W, V>& v) {
#pragma unroll
    for (int i = 0; i < V; ++i) range.merge({v.item[i], v.item[i]});
  }
  __device__ Interval<W> state() const { return range; }
};

template <> struct Gather<f32, Interval<f32>> : GatherWide<f32> {};
template <> struct Gather<f64, Interval<f64>> : GatherWide<f64> {};

// Two 16-bit elements in a register.
template <class In> __device__ inline unsigned lesser_x2(unsigned a, unsigned b) {
  if constexpr (same<In, f16>) return ptx::min_nan_f16x2(a, b);
  else return ptx::min_nan_bf16x2(a, b);
}
template <class In> __device__ inline unsigned greater_x2(unsigned a, unsigned b) {
  if constexpr (same<In, f16>) return ptx::max_nan_f16x2(a, b);
  else return ptx::max_nan_bf16x2(a, b);
}
template <class In> __device__ inline f32 half_of(unsigned pair, int half) {
  return widen<f32>(In{static_cast<unsigned short>(pair >> 16 * half)});
}
template <class In, int V, class F> __device__ inline void for_each_pair(const Vec<In, V>& v, F use) {
  if constexpr (V == 1) {
    use(static_cast<unsigned>(v.item[0].bits));  // beside a zero, which every range holds anyway
  } else {
    struct Pairs { unsigned pair[V / 2]; };
    const Pairs pairs = reinterpret<Pairs>(v);
#pragma unroll
    for (int i = 0; i < V / 2; ++i) use(pairs.pair[i]);
  }
}

template <class In> struct Gather<In, Magnitude<f32>> {
  unsigned pair = 0;
  template <int V> __device__ void add(const Vec<In, V>& v) {
    for_each_pair(v, [&](unsigned next) { pair = greater_x2<In>(pair, next & 0x7fff7fffu); });
  }
  __device__ Magnitude<f32> state() const { return {greater(half_of<In>(pair, 0), half_of<In>(pair, 1))}; }
};

template <class In> struct Gather<In, Interval<f32>> {
  unsigned low = 0, high = 0;
  template <int V> __device__ void add(const Vec<In, V>& v) {
    for_each_pair(v, [&](unsigned next) {
      low = lesser_x2<In>(low, next);
      high = greater_x2<In>(high, next);
    });
  }
  __device__ Interval<f32> state() const {
    return {lesser(half_of<In>(low, 0), half_of<In>(low, 1)), greater(half_of<In>(high, 0), half_of<In>(high, 1))};
  }
};

// ---- reductions: every lane gets the result; the order does not matter, for minima and maxima are exact

// Whether one instruction reduces a warp: magnitudes in f32 are in order as the unsigned integers that they are.
template <class State> constexpr bool reduced_at_once = same<State, Magnitude<f32>>;

// Over `Lanes` neighbouring lanes of a warp, a power of two.
template <int Lanes, class State>
__device__ inline State reduce_lanes(State state) {
  if constexpr (Lanes == 32 && reduced_at_once<State>)
    return {__uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(state.amax)))};
#pragma unroll
  for (int lanes = Lanes / 2; lanes > 0; lanes /= 2) state.merge(state.from_lane(lanes));
  return state;
}

// Over `Lanes` neighbouring lanes, within a warp or over a block, whose threads they then all are: through `shared`, which
// holds one state per warp and must not be in use.
template <int Lanes, class State>
__device__ inline State reduce(State state, State* shared) {
  if constexpr (Lanes <= 32) {
    return reduce_lanes<Lanes>(state);
  } else {
    constexpr bool at_once = reduced_at_once<State>;
    constexpr int warps = Lanes / 32, joined = at_once ? 32 : warps;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    state = reduce_lanes<32>(state);
    if (lane == 0) shared[warp] = state;
    __syncthreads();
    return reduce_lanes<joined>(shared[lane % warps]);
  }
}

}  // namespace qp
