// Conversions between formats, each one rounding to nearest, ties to even. NaN becomes a NaN.
#pragma once

namespace qp::ptx {

// Widens an f16, exactly.
__device__ inline float f32_from_f16(unsigned short bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}

// Rounds to f16; overflow gives infinity.
__device__ inline unsigned short f16_from_f32(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// Rounds to f16, once; overflow gives infinity.
__device__ inline unsigned short f16_from_f64(double x) {
  unsigned short bits;
  asm("cvt.rn.f16.f64 %0, %1;" : "=h"(bits) : "d"(x));
  return bits;
}

// Rounds to bf16; overflow gives infinity.
__device__ inline unsigned short bf16_from_f32(float x) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

#if __CUDA_ARCH__ >= 890

// Rounds two numbers to e4m3, the second argument into the low byte; ±448 is the limit, infinities included.
__device__ inline unsigned short e4m3x2_from_f32(float high, float low) {
  unsigned short bits;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(high), "f"(low));
  return bits;
}

// Rounds two numbers to e5m2, the second argument into the low byte; ±57344 is the limit, infinities included.
__device__ inline unsigned short e5m2x2_from_f32(float high, float low) {
  unsigned short bits;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(high), "f"(low));
  return bits;
}

#endif

}  // namespace qp::ptx
