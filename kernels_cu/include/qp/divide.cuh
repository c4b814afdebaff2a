// Division of many numbers by one: each quotient is rounded as IEEE 754 rounds it, for four operations a number.
//
// Divisor and number are scaled by one power of two, which brings the divisor to d in [2, 4). With y = fl(1 / d), the
// quotient q = fl(x·y) is off by e < 1.5 ulp, and fl(q − (q·d − x)·y) is x / d rounded to nearest. With s = d / 2:
//   - y is off by at most 2⁻²⁵·s of itself, so what is rounded last is off by at most e·2⁻²⁵·s ulp.
//   - A quotient of 24-bit numbers is no midpoint between two others; it is 2⁻²⁴ / s ulp away from each, or more.
//   - Beside the midpoint half an ulp from q, e is a half, and e·2⁻²⁵·s < 2⁻²⁴ / s.
//   - Beside the one at 1.5 ulp, both significands would be above 2 − 2⁻¹¹, and their quotient at most a quarter of an
//     ulp from a number.
// Where a correction underflows, |x / d| < 2⁻⁸⁰: its sign is right, and every code of it is a zero.
#pragma once

#include <qp/element.cuh>

namespace qp {

template <class W> struct Divisor;

template <> struct Divisor<f32> {
  f32 scaled, reciprocal, factor;

  Divisor() = default;
  __device__ explicit Divisor(f32 divisor) {
    const unsigned bits = __float_as_uint(divisor);
    const int exponent = static_cast<int>(bits >> 23 & 0xff);
    // Of the divisor's sign too: the number's is then the quotient's, and a zero keeps it.
    factor = __uint_as_float(static_cast<unsigned>(255 - max(1, min(exponent, 254))) << 23 | (bits & 0x80000000u));
    const f32 normal = multiply(divisor, factor);
    reciprocal = qp::divide(1.0f, normal);
    scaled = is_finite(divisor) ? normal : 0.0f;  // x / ∞ is x·0, and needs no correction
  }
  // x / divisor, where it is NaN or of magnitude below 2⁶⁰.
  __device__ f32 divide_within(f32 x) const {
    const f32 number = multiply(x, factor);
    return corrected(number, multiply(number, reciprocal));
  }
  // x / divisor; where its magnitude is 2⁶⁰ or more, something that large, perhaps infinity.
  __device__ f32 divide(f32 x) const {
    const f32 number = multiply(x, factor), quotient = multiply(number, reciprocal);
    return fabsf(quotient) < 0x1p60f ? corrected(number, quotient) : quotient;
  }

 private:
  // The signs are such that −0 stays −0: its remainder is +0.
  __device__ f32 corrected(f32 number, f32 quotient) const {
    return __fmaf_rn(-__fmaf_rn(quotient, scaled, -number), reciprocal, quotient);
  }
};

template <> struct Divisor<f64> {
  f64 divisor;

  Divisor() = default;
  __device__ explicit Divisor(f64 divisor) : divisor(divisor) {}
  __device__ f64 divide_within(f64 x) const { return qp::divide(x, divisor); }
  __device__ f64 divide(f64 x) const { return qp::divide(x, divisor); }
};

// A power of two has a reciprocal, and multiplying by that is the division.
template <class W>
struct PowerOfTwoDivisor {
  W reciprocal;

  PowerOfTwoDivisor() = default;
  __device__ explicit PowerOfTwoDivisor(W divisor) : reciprocal(qp::divide(W(1), divisor)) {}
  // Its exponent changes its sign, and 2¹²⁷ becomes subnormal. Of NaN comes any number.
  __device__ explicit PowerOfTwoDivisor(e8m0 scale)
      : reciprocal(static_cast<W>(__int_as_float(max(static_cast<int>((254u - scale.bits) << 23), 0x00400000)))) {}
  __device__ W divide_within(W x) const { return multiply(x, reciprocal); }
  __device__ W divide(W x) const { return multiply(x, reciprocal); }
};

// The scale of a symmetric segment of f16 or bf16, d = fl(amax / limit) in [2⁻¹²⁶, 2¹⁰⁰], divides what lies in it by two
// multiplications: 1 / d is h + l, h rounded towards zero and l ≥ 0, so that a zero keeps its sign, and fl(x·h + fl(x·l))
// is off by 2⁻⁴⁷ of itself before it is rounded. There are 2²⁰ pairs of significands of amax and x: for 448, 57344 and all
// limits up to 255, every such pair gives the code of fl(x / d), as tests/kernels/test_division.py finds by trying them.
struct ShortDivisor {
  f32 high, low;

  __device__ explicit ShortDivisor(f32 divisor) : high(qp::divide(1.0f, divisor)) {
    f32 error = __fmaf_rn(-high, divisor, 1.0f);
    if (error < 0) {
      high = __uint_as_float(__float_as_uint(high) - 1);
      error = __fmaf_rn(-high, divisor, 1.0f);
    }
    low = multiply(error, high);
  }
  __device__ f32 divide_within(f32 x) const { return __fmaf_rn(x, high, multiply(x, low)); }
};

template <class Scale, class W> struct DivisorOf_ { using type = Divisor<W>; };
template <class W> struct DivisorOf_<e8m0, W> { using type = PowerOfTwoDivisor<W>; };
template <class Scale, class W> using DivisorOf = typename DivisorOf_<Scale, W>::type;

}  // namespace qp
