// Element types, and the one rounding from f32 or f64 into each.
//
// Elements are their bits: no CUDA header is needed. f64 never passes through a nearest f32 on its way to a narrower
// format, for two nearest roundings are not one. It passes through a round-to-odd f32, which is harmless: an inexact
// result never lands on a value of the coarser grid nor on the midpoint between two of them.
#pragma once

#include <qp/ptx/convert.cuh>

namespace qp {

using int64 = long long;
using f32 = float;
using f64 = double;
using s8 = signed char;
using u8 = unsigned char;
struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };
struct e4m3 { unsigned char bits; };
struct e5m2 { unsigned char bits; };
struct e8m0 { unsigned char bits; };

template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

template <class T> constexpr bool is_fp8 = same<T, e4m3> || same<T, e5m2>;

// The arithmetic that an element's values are worked with in: f64 for f64, else f32.
template <class T> struct wide_of { using type = f32; };
template <> struct wide_of<f64> { using type = f64; };
template <class T> using wide = typename wide_of<T>::type;

// ---- f32 and f64 alike

__device__ inline bool is_nan(f32 x) { return !(x == x); }
__device__ inline bool is_nan(f64 x) { return (__double_as_longlong(x) & 0x7fffffffffffffff) > 0x7ff0000000000000; }
__device__ inline bool is_finite(f32 x) { return (__float_as_uint(x) & 0x7fffffff) < 0x7f800000; }
__device__ inline bool is_finite(f64 x) { return (__double_as_longlong(x) & 0x7fffffffffffffff) < 0x7ff0000000000000; }
__device__ inline f32 canonical(f32 x) { return is_nan(x) ? __uint_as_float(0x7fffffff) : x; }
__device__ inline f64 canonical(f64 x) { return is_nan(x) ? __longlong_as_double(0x7fffffffffffffff) : x; }
__device__ inline f32 divide(f32 a, f32 b) { return __fdiv_rn(a, b); }
__device__ inline f64 divide(f64 a, f64 b) { return __ddiv_rn(a, b); }
__device__ inline f32 multiply(f32 a, f32 b) { return __fmul_rn(a, b); }
__device__ inline f64 multiply(f64 a, f64 b) { return __dmul_rn(a, b); }
__device__ inline f32 subtract(f32 a, f32 b) { return __fsub_rn(a, b); }
__device__ inline f64 subtract(f64 a, f64 b) { return __dsub_rn(a, b); }
__device__ inline f32 to_nearest_integer(f32 x) { return rintf(x); }
__device__ inline f64 to_nearest_integer(f64 x) { return rint(x); }

template <class T> constexpr T smallest_normal = T(0x1p-126);
template <> constexpr f64 smallest_normal<f64> = 0x1p-1022;
template <class T> constexpr T largest_finite = T(0x1.fffffep127);
template <> constexpr f64 largest_finite<f64> = 0x1.fffffffffffffp1023;

// ---- widening: exact

template <class W> __device__ inline W widen(f64 x) { return static_cast<W>(x); }
template <class W> __device__ inline W widen(f32 x) { return static_cast<W>(x); }
template <class W> __device__ inline W widen(f16 x) { return static_cast<W>(ptx::f32_from_f16(x.bits)); }
template <class W> __device__ inline W widen(bf16 x) {
  return static_cast<W>(__uint_as_float(static_cast<unsigned>(x.bits) << 16));
}
template <class W> __device__ inline W widen(e5m2 x) {  // the upper half of an f16
  return widen<W>(f16{static_cast<unsigned short>(x.bits << 8)});
}
template <class W> __device__ inline W widen(e4m3 x) {  // as an f16 with a bias of 15 it is 2⁻⁸ of itself
  const unsigned magnitude = x.bits & 0x7fu, sign = x.bits & 0x80u;
  if (magnitude == 0x7f) return static_cast<W>(__uint_as_float(0x7fffffff));
  const f16 scaled{static_cast<unsigned short>(sign << 8 | magnitude << 7)};
  return static_cast<W>(multiply(widen<f32>(scaled), 256.0f));
}
template <class W> __device__ inline W widen(e8m0 x) {
  if (x.bits == 0xff) return static_cast<W>(__uint_as_float(0x7fffffff));
  return static_cast<W>(__uint_as_float(x.bits ? static_cast<unsigned>(x.bits) << 23 : 0x00400000u));
}

// ---- rounding: to nearest, ties to even, once; every NaN becomes the canonical one

// The nearest f32 if it is exact, else the neighbour whose last bit is set.
__device__ inline f32 round_to_odd(f64 x) {
  const f32 truncated = __double2float_rz(x);
  const bool inexact = static_cast<f64>(truncated) != x;  // a NaN gets its last bit set, and stays one
  return inexact ? __uint_as_float(__float_as_uint(truncated) | 1u) : truncated;
}
__device__ inline f32 round_to_odd(f32 x) { return x; }

template <class T> struct Round;

template <> struct Round<f64> {
  __device__ static f64 from(f64 x) { return canonical(x); }
  __device__ static f64 from(f32 x) { return canonical(static_cast<f64>(x)); }
};
template <> struct Round<f32> {
  __device__ static f32 from(f64 x) { return canonical(__double2float_rn(x)); }
  __device__ static f32 from(f32 x) { return canonical(x); }
};
template <> struct Round<f16> {
  __device__ static f16 from(f64 x) { return is_nan(x) ? f16{0x7fff} : f16{ptx::f16_from_f64(x)}; }
  __device__ static f16 from(f32 x) { return is_nan(x) ? f16{0x7fff} : f16{ptx::f16_from_f32(x)}; }
};
template <> struct Round<bf16> {
  __device__ static bf16 from(f64 x) { return from(round_to_odd(x)); }
  __device__ static bf16 from(f32 x) { return is_nan(x) ? bf16{0x7fff} : bf16{ptx::bf16_from_f32(x)}; }
};

// ---- FP8

template <class T> struct Fp8;
template <> struct Fp8<e4m3> {
  static constexpr int bias = 7, mantissa = 3;
  static constexpr unsigned largest = 0x7e, beyond = 0x7f;  // codes: 448, and what overflow gives (NaN)
  static constexpr f32 largest_value = 448;
};
template <> struct Fp8<e5m2> {
  static constexpr int bias = 15, mantissa = 2;
  static constexpr unsigned largest = 0x7b, beyond = 0x7c;  // 57344, and infinity
  static constexpr f32 largest_value = 57344;
};

// In integers, for what the hardware cannot: GPUs before sm_89, and overflow that does not saturate.
template <class T, bool Saturate>
__device__ inline T round_fp8_in_integers(f32 x) {
  constexpr int shift = 23 - Fp8<T>::mantissa;
  const unsigned bits = __float_as_uint(x), magnitude = bits & 0x7fffffff, sign = bits >> 24 & 0x80;
  if (magnitude > 0x7f800000) return T{0x7f};
  unsigned code;
  if (magnitude < static_cast<unsigned>(128 - Fp8<T>::bias) << 23) {
    // Subnormal: the sum's last bit is worth the format's smallest number, so that the addition rounds to it.
    const unsigned anchor = static_cast<unsigned>(127 + 24 - Fp8<T>::bias - Fp8<T>::mantissa) << 23;
    code = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), __uint_as_float(anchor))) - anchor;
  } else {
    const unsigned half = (1u << (shift - 1)) - 1 + (magnitude >> shift & 1);
    code = ((magnitude + half) >> shift) - (static_cast<unsigned>(127 - Fp8<T>::bias) << Fp8<T>::mantissa);
  }
  if (!Saturate && same<T, e4m3> && code >= Fp8<T>::beyond) return T{0x7f};  // NaN has no sign
  constexpr unsigned limit = Saturate ? Fp8<T>::largest : Fp8<T>::beyond;
  return T{static_cast<unsigned char>(min(code, limit) | sign)};
}

#if __CUDA_ARCH__ >= 890
// Rounds two neighbours, the first into the low byte; of a NaN comes some NaN.
template <class T>
__device__ inline unsigned short fp8_pair(f32 first, f32 second) {
  return same<T, e4m3> ? ptx::e4m3x2_from_f32(second, first) : ptx::e5m2x2_from_f32(second, first);
}
#endif

// Rounds two neighbours, as the hardware does from sm_89 on.
template <class T, bool Saturate>
__device__ inline void round_fp8_pair(f32 first, f32 second, T& a, T& b) {
#if __CUDA_ARCH__ >= 890
  if constexpr (Saturate) {
    const unsigned pair = fp8_pair<T>(first, second);
    a = is_nan(first) ? T{0x7f} : T{static_cast<unsigned char>(pair & 0xff)};
    b = is_nan(second) ? T{0x7f} : T{static_cast<unsigned char>(pair >> 8)};
    return;
  }
#endif
  a = round_fp8_in_integers<T, Saturate>(first);
  b = round_fp8_in_integers<T, Saturate>(second);
}

}  // namespace qp
