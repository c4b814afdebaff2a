// The numeric contract of quantizing, as docs/numerics.md states it: from ranges to scales, from quotients to codes, and
// back. quantplan/reference holds the same rules in NumPy, and every bit must agree.
#pragma once

#include <qp/range.cuh>

namespace qp {

// ---- from a range to a scale

// Floors a scale at the smallest normal number; 1 for a segment of zeros, NaN where a value was not finite.
template <class W>
__device__ inline W finish_scale(W scale, bool zeros) {
  if (zeros) return W(1);
  if (!is_finite(scale)) return canonical(scale - scale);
  return scale < smallest_normal<W> ? smallest_normal<W> : scale;
}

// A segment's scale and zero point; `scale` is what values are divided by, `stored` what is written.
template <class Scale, class W>
struct Chosen {
  W scale;
  Scale stored;
  int zero_point;
};

template <class Scale, class W>
struct Choose {
  // Symmetric: the largest magnitude becomes `limit`.
  __device__ static Chosen<Scale, W> from(const Magnitude<W>& range, W limit, int, int) {
    const W scale = finish_scale(divide(range.amax, limit), range.amax == W(0));
    return {scale, scale, 0};
  }
  // Asymmetric: [low, high] becomes [q_min, q_max]. The arithmetic is ONNX DynamicQuantizeLinear's.
  __device__ static Chosen<Scale, W> from(const Interval<W>& range, W, int q_min, int q_max) {
    const W steps = subtract(W(q_max), W(q_min)), span = subtract(range.high, range.low);
    const bool zeros = span == W(0), overflows = !is_finite(span);
    const W halves = subtract(multiply(range.high, W(0.5)), multiply(range.low, W(0.5)));
    const W scale = finish_scale(overflows ? divide(halves, multiply(steps, W(0.5))) : divide(span, steps), zeros);
    if (zeros || is_nan(scale)) return {scale, scale, 0};
    const W offset = to_nearest_integer(subtract(W(q_min), divide(range.low, scale)));
    return {scale, scale, offset < W(q_min) ? q_min : offset > W(q_max) ? q_max : static_cast<int>(offset)};
  }
};

// Powers of two: the smallest that is ≥ amax / limit, found by comparing significands, so that nothing clips.
template <class W>
struct Choose<e8m0, W> {
  __device__ static Chosen<e8m0, W> from(const Magnitude<W>& range, W limit, int, int) {
    e8m0 stored{0};
    if (!is_finite(range.amax)) {
      stored.bits = 0xff;
    } else if (range.amax != W(0)) {
      int exponent = exponent_of(range.amax) - exponent_of(limit);
      exponent += significand_of(range.amax) > significand_of(limit);
      stored.bits = static_cast<unsigned char>((exponent < -127 ? -127 : exponent > 127 ? 127 : exponent) + 127);
    }
    return {widen<W>(stored), stored, 0};
  }

 private:
  // Of positive finite numbers; subnormal ones are made normal first.
  __device__ static f32 normal(f32 x) { return x < smallest_normal<f32> ? multiply(x, 0x1p32f) : x; }
  __device__ static f64 normal(f64 x) { return x < smallest_normal<f64> ? multiply(x, 0x1p64) : x; }
  __device__ static int exponent_of(f32 x) {
    return static_cast<int>(__float_as_uint(normal(x)) >> 23) - (x < smallest_normal<f32> ? 32 : 0);
  }
  __device__ static int exponent_of(f64 x) {
    return static_cast<int>(__double_as_longlong(normal(x)) >> 52) - (x < smallest_normal<f64> ? 64 : 0);
  }
  __device__ static int64 significand_of(f32 x) { return int64(__float_as_uint(normal(x)) & 0x7fffffu) << 29; }
  __device__ static int64 significand_of(f64 x) { return __double_as_longlong(normal(x)) & 0xfffffffffffffll; }
};

// What the largest magnitude of a symmetric segment becomes.
template <class Out, class W>
__device__ inline W symmetric_limit(int q_max) {
  if constexpr (is_fp8<Out>) return W(Fp8<Out>::largest_value);
  else return W(q_max);
}

// ---- from a quotient to a code

// clamp(rne(quotient) + zero_point), and clamp(zero_point) for NaN. A zero point may be any 32-bit integer.
template <class W>
__device__ inline int to_integer(W quotient, int zero_point, int q_min, int q_max) {
  W rounded = to_nearest_integer(quotient);
  if (is_nan(rounded)) rounded = W(0);
  // Beyond ±2³³ nothing changes: the sum stays outside of every limit, and inside of what 64 bits hold.
  rounded = rounded > W(0x1p33) ? W(0x1p33) : rounded < W(-0x1p33) ? W(-0x1p33) : rounded;
  const int64 code = static_cast<int64>(rounded) + zero_point;
  return code < q_min ? q_min : code > q_max ? q_max : static_cast<int>(code);
}

// The same without a zero point: clamped as a number, then converted.
template <class W>
__device__ inline int to_integer(W quotient, int q_min, int q_max) {
  W rounded = to_nearest_integer(quotient);
  if (is_nan(rounded)) rounded = W(0);
  rounded = rounded < W(q_min) ? W(q_min) : rounded > W(q_max) ? W(q_max) : rounded;
  return static_cast<int>(rounded);
}

// Rounds a chunk of quotients of `x` by scales; `scale(i)` and `zero_point(i)` are those of element i.
template <class Out, bool Saturate, bool Asymmetric, class In, int V, class Scales, class ZeroPoints>
__device__ inline Vec<Out, V> quantize_chunk(const Vec<In, V>& x, Scales scale, ZeroPoints zero_point, int q_min,
                                             int q_max) {
  using W = wide<In>;
  Vec<Out, V> q;
  if constexpr (is_fp8<Out>) {
    f32 quotient[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const W exact = divide(widen<W>(x.item[i]), scale(i));
      if constexpr (same<W, f64>) quotient[i] = round_to_odd(exact);
      else quotient[i] = exact;
    }
    if constexpr (V == 1) {
      Out unused;
      round_fp8_pair<Out, Saturate>(quotient[0], 0.0f, q.item[0], unused);
    } else {
#pragma unroll
      for (int i = 0; i < V; i += 2)
        round_fp8_pair<Out, Saturate>(quotient[i], quotient[i + 1], q.item[i], q.item[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const W quotient = divide(widen<W>(x.item[i]), scale(i));
      if constexpr (Asymmetric) q.item[i] = static_cast<Out>(to_integer(quotient, zero_point(i), q_min, q_max));
      else q.item[i] = static_cast<Out>(to_integer(quotient, q_min, q_max));
    }
  }
  return q;
}

// ---- and back

// rne((q − zero_point) · scale) in f32. The difference has up to 33 bits and the product up to 57, more than f64 has:
// beyond what f32 holds exactly the product is rounded to odd in f64, which may be followed by one rounding to nearest.
__device__ inline f32 scaled_difference(int q, int zero_point, f32 scale) {
  const int64 difference = static_cast<int64>(q) - zero_point;
  if (difference >= -(1 << 24) && difference <= 1 << 24) return multiply(static_cast<f32>(difference), scale);
  const f64 exact = static_cast<f64>(difference), factor = scale, product = multiply(exact, factor);
  const f64 error = __fma_rn(exact, factor, -product);
  if (!(error < 0) && !(error > 0)) return __double2float_rn(product);
  const bool beyond = (error < 0) != (product < 0);  // the product's magnitude is above the exact one's
  return __double2float_rn(__longlong_as_double((__double_as_longlong(product) - beyond) | 1));
}
__device__ inline f64 scaled_difference(int q, int zero_point, f64 scale) {
  return multiply(static_cast<f64>(static_cast<int64>(q) - zero_point), scale);
}

}  // namespace qp
