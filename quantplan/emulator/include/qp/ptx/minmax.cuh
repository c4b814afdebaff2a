// Emulation of kernels_cu/include/qp/ptx/minmax.cuh.
#pragma once

#include <qp/ptx/convert.cuh>

namespace qp::ptx {

EMULATED_INSTRUCTION float min_nan(float a, float b) {
  if (!(a == a) || !(b == b)) return __uint_as_float(0x7fffffff);
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
EMULATED_INSTRUCTION float max_nan(float a, float b) {
  if (!(a == a) || !(b == b)) return __uint_as_float(0x7fffffff);
  return a > b || (a == b && std::signbit(b)) ? a : b;
}

}  // namespace qp::ptx

namespace emulated {

EMULATED_INSTRUCTION float bf16_value(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }

template <float (*Value)(unsigned short), bool Maximum>
EMULATED_INSTRUCTION unsigned choose_x2(unsigned a, unsigned b) {
  unsigned result = 0;
  for (int half = 0; half < 2; ++half) {
    const auto x = static_cast<unsigned short>(a >> 16 * half), y = static_cast<unsigned short>(b >> 16 * half);
    const float fx = Value(x), fy = Value(y);
    const bool nan = !(fx == fx) || !(fy == fy);
    const float chosen = Maximum ? qp::ptx::max_nan(fx, fy) : qp::ptx::min_nan(fx, fy);
    const bool first = __float_as_uint(chosen) == __float_as_uint(fx);
    result |= unsigned(nan ? 0x7fff : first ? x : y) << 16 * half;
  }
  return result;
}

}  // namespace emulated

namespace qp::ptx {

EMULATED_INSTRUCTION unsigned min_nan_f16x2(unsigned a, unsigned b) {
  return emulated::choose_x2<f32_from_f16, false>(a, b);
}
EMULATED_INSTRUCTION unsigned max_nan_f16x2(unsigned a, unsigned b) {
  return emulated::choose_x2<f32_from_f16, true>(a, b);
}
EMULATED_INSTRUCTION unsigned min_nan_bf16x2(unsigned a, unsigned b) {
  return emulated::choose_x2<emulated::bf16_value, false>(a, b);
}
EMULATED_INSTRUCTION unsigned max_nan_bf16x2(unsigned a, unsigned b) {
  return emulated::choose_x2<emulated::bf16_value, true>(a, b);
}

}  // namespace qp::ptx
