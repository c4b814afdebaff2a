// Minimum and maximum that propagate NaN: if either operand is one, so is the result.
#pragma once

namespace qp::ptx {

__device__ inline float min_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

__device__ inline float max_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// On the two f16 in a register.
__device__ inline unsigned min_nan_f16x2(unsigned a, unsigned b) {
  unsigned result;
  asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// On the two f16 in a register.
__device__ inline unsigned max_nan_f16x2(unsigned a, unsigned b) {
  unsigned result;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// On the two bf16 in a register.
__device__ inline unsigned min_nan_bf16x2(unsigned a, unsigned b) {
  unsigned result;
  asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// On the two bf16 in a register.
__device__ inline unsigned max_nan_bf16x2(unsigned a, unsigned b) {
  unsigned result;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

}  // namespace qp::ptx
