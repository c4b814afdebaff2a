// The numeric contract of quantizing, as docs/numerics.md states it: from ranges to scales, from quotients to codes, and
// back. quantplan/reference holds the same rules in NumPy, and every bit must agree.
#pragma once

#include <qp/divide.cuh>
#include <qp/range.cuh>

namespace qp {

// ---- from a range to a scale

// Floors a scale at the smallest normal number; 1 for a segment of zeros, NaN where a value was not finite.
template <class W>
__device__ inline W finish_scale(W scale, bool zeros) {
  if (zeros) return W(1);
  if (!is_finite(scale)) return canonical(scale - scale);
  return greater(scale, smallest_normal<W>);
}

// A segment's scale and zero point; `scale` is what values are divided by, `stored` what is written.
template <class Scale, class W>
struct Chosen {
  W scale;
  Scale stored;
  int zero_point = 0;
};

template <class Scale, class W>
struct Choose {
  // Symmetric: the largest magnitude becomes `limit`.
  __device__ static Chosen<Scale, W> from(const Magnitude<W>& range, W limit, int, int) {
    const W scale = finish_scale(divide(range.amax, limit), range.amax == W(0));
    return {scale, scale};
  }
  // Asymmetric: [low, high] becomes [q_min, q_max]. The arithmetic is ONNX DynamicQuantizeLinear's.
  __device__ static Chosen<Scale, W> from(const Interval<W>& range, W, int q_min, int q_max) {
    const W steps = subtract(W(q_max), W(q_min)), span = subtract(range.high, range.low);
    const bool zeros = span == W(0), overflows = !is_finite(span);
    const W halves = subtract(multiply(range.high, W(0.5)), multiply(range.low, W(0.5)));
    const W scale = finish_scale(overflows ? divide(halves, multiply(steps, W(0.5))) : divide(span, steps), zeros);
    if (zeros || is_nan(scale)) return {scale, scale};
    // 0 ≤ −low ≤ span, so the quotient is at most `steps`, but for roundings: the nearest integer is a code
    return {scale, scale, static_cast<int>(to_nearest_integer(subtract(W(q_min), divide(range.low, scale))))};
  }
};

// Powers of two: the smallest that is ≥ amax / limit, found in the bits, so that nothing clips.
template <class W>
struct Choose<e8m0, W> {
  __device__ static Chosen<e8m0, W> from(const Magnitude<W>& range, W limit, int, int) {
    e8m0 stored{0xff};
    if (is_finite(range.amax)) {
      const int exponent = exponent_of_quotient(range.amax, limit);
      stored.bits = static_cast<unsigned char>(max(-127, min(exponent, 127)) + 127);
    }
    return {widen<W>(stored), stored};
  }

 private:
  // ⌈log2(a / b)⌉ of finite a ≥ 0 and normal b: exponents are subtracted, and a larger significand carries into them. Of a
  // subnormal a, and of 0, it is too large, and yet below every exponent that E8M0 has.
  __device__ static int exponent_of_quotient(f32 a, f32 b) {
    return (__float_as_int(a) - __float_as_int(b) + 0x7fffff) >> 23;
  }
  __device__ static int exponent_of_quotient(f64 a, f64 b) {
    return static_cast<int>((__double_as_longlong(a) - __double_as_longlong(b) + 0xfffffffffffff) >> 52);
  }
};

// What the largest magnitude of a symmetric segment becomes.
template <class Out, class W>
__device__ inline W symmetric_limit(int q_max) {
  if constexpr (is_fp8<Out>) return W(Fp8<Out>::largest_value);
  else return W(q_max);
}

// ---- from a quotient to a code

// rne(x), 0 for NaN; x is within what an int holds.
__device__ inline int nearest_int(f32 x) { return __float2int_rn(x); }
__device__ inline int nearest_int(f64 x) { return is_nan(x) ? 0 : static_cast<int>(to_nearest_integer(x)); }

// clamp(rne(quotient) + zero_point), and zero_point for NaN. Limits and zero point are integers that W holds exactly.
template <class W>
struct Codes {
  W low, high;
  int zero_point;
  __device__ Codes(int q_min, int q_max, int zero_point)
      : low(W(q_min - zero_point)), high(W(q_max - zero_point)), zero_point(zero_point) {}
  __device__ int operator()(W quotient) const {
    return nearest_int(lesser(greater(quotient, low), high)) + zero_point;
  }
};

// The same for a zero point that may be any 32-bit integer.
template <class W>
__device__ inline int to_integer(W quotient, int zero_point, int q_min, int q_max) {
  W rounded = to_nearest_integer(quotient);
  if (is_nan(rounded)) rounded = W(0);
  // Beyond ±2³³ nothing changes: the sum stays outside of every limit, and inside of what 64 bits hold.
  rounded = lesser(greater(rounded, W(-0x1p33)), W(0x1p33));
  const int64 code = static_cast<int64>(rounded) + zero_point;
  return static_cast<int>(max(int64(q_min), min(code, int64(q_max))));
}

// Rounds a chunk: `quotient(i, x)` divides element i, `code(i, quotient)` rounds it to an integer.
template <class Out, bool Saturate, class W, int V, class Quotient, class Code>
__device__ inline Vec<Out, V> quantize_chunk(const Vec<W, V>& x, Quotient quotient, Code code) {
  Vec<Out, V> q;
  if constexpr (is_fp8<Out>) {
    f32 narrow[V];
#pragma unroll
    for (int i = 0; i < V; ++i) narrow[i] = round_to_odd(quotient(i, x.item[i]));
    if constexpr (V == 1) {
      Out unused;
      round_fp8_pair<Out, Saturate>(narrow[0], narrow[0], q.item[0], unused);
    } else {
#pragma unroll
      for (int i = 0; i < V; i += 2) round_fp8_pair<Out, Saturate>(narrow[i], narrow[i + 1], q.item[i], q.item[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) q.item[i] = static_cast<Out>(code(i, quotient(i, x.item[i])));
  }
  return q;
}

// ---- the same for an ordinary segment of dynamic quantization: its values and its scale are finite

// What divides the values of a segment by their own scale.
template <class In, class Scale, bool Asymmetric> struct OwnDivisor_ { using type = DivisorOf<Scale, wide<In>>; };
template <> struct OwnDivisor_<f16, f32, false> { using type = ShortDivisor; };
template <> struct OwnDivisor_<bf16, f32, false> { using type = ShortDivisor; };
template <class In, bool Asymmetric, class Scale, class W>
__device__ inline auto own_divisor(const Chosen<Scale, W>& chosen) {
  using Own = typename OwnDivisor_<In, Scale, Asymmetric>::type;
  if constexpr (same<Scale, e8m0> && same<W, f32>) return Own(chosen.stored);
  else return Own(chosen.scale);
}

// Symmetric quotients are at most `limit`, but for a rounding that no code sees: they need no upper limit, and none below
// if codes go down to −limit.
template <class Out, bool Asymmetric>
__device__ inline bool needs_no_limit(int q_min, int q_max) {
  return is_fp8<Out> || Asymmetric || same<Out, u8> || q_min <= -q_max;
}

// Whether a segment is such a one. Scales beyond 2¹⁰⁰ are not: no ShortDivisor divides by them, and they are rare.
template <class Out, bool Asymmetric>
__device__ inline bool is_ordinary(const Chosen<f32, f32>& chosen, int q_min, int q_max) {
  return chosen.scale <= 0x1p100f && needs_no_limit<Out, Asymmetric>(q_min, q_max);
}
template <class Out, bool Asymmetric>
__device__ inline bool is_ordinary(const Chosen<e8m0, f32>& chosen, int, int) { return chosen.stored.bits != 0xff; }
template <class Out, bool Asymmetric, class Scale>
__device__ inline bool is_ordinary(const Chosen<Scale, f64>&, int, int) { return true; }  // as any other: f64 is slow

// Rounds a chunk of its quotients.
template <class Out, bool Saturate, bool Asymmetric, int V>
__device__ inline Chunk<Out, V> round_ordinary(const Vec<f32, V>& quotient, const Codes<f32>& codes) {
  Vec<Out, V> q;
  if constexpr (!is_fp8<Out>) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      f32 within = quotient.item[i];
      if constexpr (Asymmetric || same<Out, u8>) within = greater(within, codes.low);
      if constexpr (Asymmetric) within = lesser(within, codes.high);
      // this addition rounds to an integer, whose last bits are the sum's: a conversion would take longer
      q.item[i] = static_cast<Out>(__float_as_int(__fadd_rn(within, 0x1.8p23f)) + codes.zero_point);
    }
  } else {
#if __CUDA_ARCH__ >= 890
    if constexpr (Saturate && V % 4 == 0) {
      struct { unsigned word[V / 4]; } words;
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        const unsigned low = fp8_pair<Out>(quotient.item[i], quotient.item[i + 1]);
        const unsigned high = fp8_pair<Out>(quotient.item[i + 2], quotient.item[i + 3]);
        words.word[i / 4] = high << 16 | low;
      }
      return reinterpret<Chunk<Out, V>>(words);
    }
#endif
    q = quantize_chunk<Out, Saturate>(quotient, [](int, f32 value) { return value; }, [](int, f32) { return 0; });
  }
  return reinterpret<Chunk<Out, V>>(q);
}
template <class Out, bool Saturate, bool Asymmetric, int V>
__device__ inline Chunk<Out, V> round_ordinary(const Vec<f64, V>& quotient, const Codes<f64>& codes) {
  return reinterpret<Chunk<Out, V>>(quantize_chunk<Out, Saturate>(
      quotient, [](int, f64 value) { return value; }, [&](int, f64 value) { return codes(value); }));
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
