// Emulation of kernels_cu/include/qp/ptx/convert.cuh: in integers and the host's f32 and f64, which round the same way.
// PTX promises that NaN becomes a NaN, and not which: here it keeps its sign, so that nobody counts on the canonical one.
#pragma once

namespace qp::ptx {

EMULATED_INSTRUCTION float f32_from_f16(unsigned short bits) {
  const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
  const float magnitude = ldexpf(float(exponent ? mantissa | 0x400 : mantissa), int(exponent ? exponent : 1) - 25);
  return __uint_as_float(__float_as_uint(magnitude) | sign);
}

}  // namespace qp::ptx

namespace emulated {

// Rounds a finite or infinite magnitude to a format with so many bits of mantissa and such a bias; returns its code,
// which runs on beyond the largest finite one. rint() rounds ties to even, and everything before it is exact.
EMULATED_INSTRUCTION uint64_t code_of(double magnitude, int mantissa, int bias) {
  if (magnitude == 0) return 0;
  if (std::isinf(magnitude)) return ~0ull;
  int exponent = 0;
  frexp(magnitude, &exponent);
  const int scale = exponent - 1 < 1 - bias ? 1 - bias : exponent - 1;  // subnormals share the smallest exponent
  const auto steps = uint64_t(rint(ldexp(magnitude, mantissa - scale)));
  return steps + (uint64_t(scale + bias - 1) << mantissa);
}

EMULATED_INSTRUCTION unsigned short round_16(double x, int mantissa, int bias, unsigned infinity) {
  if (!(x == x)) return std::signbit(x) ? 0xffff : 0x7fff;
  const uint64_t code = code_of(fabs(x), mantissa, bias);
  return static_cast<unsigned short>((code < infinity ? code : infinity) | (std::signbit(x) ? 0x8000u : 0u));
}

EMULATED_INSTRUCTION unsigned round_8(float x, int mantissa, int bias, unsigned largest) {
  if (!(x == x)) return std::signbit(x) ? 0xff : 0x7f;
  const uint64_t code = code_of(fabs(double(x)), mantissa, bias);
  return unsigned(code < largest ? code : largest) | (std::signbit(x) ? 0x80u : 0u);
}

}  // namespace emulated

namespace qp::ptx {

EMULATED_INSTRUCTION unsigned short f16_from_f32(float x) { return emulated::round_16(x, 10, 15, 0x7c00); }
EMULATED_INSTRUCTION unsigned short f16_from_f64(double x) { return emulated::round_16(x, 10, 15, 0x7c00); }
EMULATED_INSTRUCTION unsigned short bf16_from_f32(float x) { return emulated::round_16(x, 7, 127, 0x7f80); }

#if __CUDA_ARCH__ >= 890

EMULATED_INSTRUCTION unsigned short e4m3x2_from_f32(float high, float low) {
  return static_cast<unsigned short>(emulated::round_8(high, 3, 7, 0x7e) << 8 | emulated::round_8(low, 3, 7, 0x7e));
}
EMULATED_INSTRUCTION unsigned short e5m2x2_from_f32(float high, float low) {
  return static_cast<unsigned short>(emulated::round_8(high, 2, 15, 0x7b) << 8 | emulated::round_8(low, 2, 15, 0x7b));
}

#endif

}  // namespace qp::ptx
