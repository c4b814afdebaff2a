// Emulation of kernels_cu/include/qp/ptx/half2.cuh. The product is exact in f64; where the sum is not, it is rounded to
// odd, so that rounding it to 16 bits is as if there had been no rounding before.
#pragma once

#include <qp/ptx/minmax.cuh>

namespace emulated {

EMULATED_INSTRUCTION double add_to_odd(double a, double b) {
  const double sum = a + b, of_b = sum - a, lost = (a - (sum - of_b)) + (b - of_b);
  const bool even = !(emulated_bit_cast<uint64_t>(sum) & 1);
  return lost != 0 && even ? std::nextafter(sum, lost > 0 ? INFINITY : -INFINITY) : sum;
}

template <float (*Value)(unsigned short), unsigned short (*Round)(double)>
EMULATED_INSTRUCTION unsigned fma_x2(unsigned a, unsigned b, unsigned c) {
  unsigned result = 0;
  for (int half = 0; half < 2; ++half) {
    const auto value = [half](unsigned pair) { return double(Value(static_cast<unsigned short>(pair >> 16 * half))); };
    const double product = value(a) * value(b), addend = value(c), plain = product + addend;
    result |= unsigned(Round(std::isfinite(plain) ? add_to_odd(product, addend) : plain)) << 16 * half;
  }
  return result;
}

EMULATED_INSTRUCTION unsigned short bf16_from_f64(double x) { return round_16(x, 7, 127, 0x7f80); }

}  // namespace emulated

namespace qp::ptx {

EMULATED_INSTRUCTION unsigned fma_f16x2(unsigned a, unsigned b, unsigned c) {
  return emulated::fma_x2<f32_from_f16, f16_from_f64>(a, b, c);
}
EMULATED_INSTRUCTION unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
  return emulated::fma_x2<emulated::bf16_value, emulated::bf16_from_f64>(a, b, c);
}
EMULATED_INSTRUCTION unsigned and_or(unsigned a, unsigned b, unsigned c) { return (a & b) | c; }

}  // namespace qp::ptx
